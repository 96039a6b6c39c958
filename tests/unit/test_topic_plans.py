"""How the topics are to be, by what they are for and by what an operator decides."""

import pytest

from mastery_grpc.ingest.topics import Topics, TopicTerms, plan_topics


def test_the_plan_is_that_of_the_design() -> None:
    day = 24 * 60 * 60 * 1000
    plans = {
        plan.name: (plan.partitions, int(plan.config["retention.ms"]) // day)
        for plan in plan_topics(Topics(), TopicTerms())
    }
    assert plans == {"mastery.requests": (6, 1), "mastery.results": (6, 2), "mastery.dlq": (3, 30)}


def test_events_are_deleted_by_age_and_never_compacted() -> None:
    for plan in plan_topics(Topics(), TopicTerms()):
        assert plan.config["cleanup.policy"] == "delete"


@pytest.mark.parametrize(("replicas", "in_sync"), [(0, None), (1, None), (2, None), (3, "2"), (5, "2")])
def test_what_is_acknowledged_outlives_a_broker_where_there_are_enough(replicas: int, in_sync: str | None) -> None:
    for plan in plan_topics(Topics(), TopicTerms(replication_factor=replicas)):
        assert plan.replication_factor == replicas
        assert plan.config.get("min.insync.replicas") == in_sync
