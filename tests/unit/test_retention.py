"""How long data is kept, as set, and what is told of it."""

from datetime import timedelta

import pytest

from mastery_grpc.application.compliance.data_kinds import DataKind
from mastery_grpc.application.compliance.retention import DEAD_LETTERS_KEPT, Retention, policy
from mastery_grpc.settings import SettingsError, read_settings


def test_the_policy_has_one_rule_for_each_kind_in_their_order() -> None:
    assert [rule.kind for rule in policy(Retention())] == list(DataKind)


def test_the_policy_tells_the_lifetimes_that_are_kept_to() -> None:
    told = {rule.kind: rule.lifetime for rule in policy(Retention(event_log=timedelta(days=30)))}

    assert told[DataKind.EVENT] == timedelta(days=30)
    assert told[DataKind.SNAPSHOT] == timedelta(days=90)
    assert told[DataKind.CURRENT_MASTERY] is None


def test_a_mark_of_an_erasure_outlives_every_dead_letter() -> None:
    assert Retention().erasure_mark > DEAD_LETTERS_KEPT


def test_the_policy_says_in_words_what_each_kind_is_kept_for() -> None:
    assert all(rule.purpose.endswith(".") for rule in policy(Retention()))


def test_lifetimes_are_settings() -> None:
    kept = read_settings(retention_snapshot_days=30, retention_path_hours=2).retention()

    assert (kept.snapshots, kept.path) == (timedelta(days=30), timedelta(hours=2))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"retention_processed_days": 1}, "RETENTION_PROCESSED_DAYS"),
        ({"retention_processed_days": 20, "retention_event_log_days": 10}, "RETENTION_PROCESSED_DAYS"),
        ({"retention_feedback_days": 7}, "RETENTION_FEEDBACK_DAYS"),
        ({"retention_erasure_mark_days": 30}, "RETENTION_ERASURE_MARK_DAYS"),
        ({"retention_snapshot_days": 0}, "RETENTION_SNAPSHOT_DAYS"),
    ],
)
def test_a_lifetime_that_would_break_a_guarantee_is_refused_by_its_name(given: dict[str, int], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^MASTERY_{named}: ") as refused:
        read_settings(**given)

    assert "\n" not in str(refused.value)
