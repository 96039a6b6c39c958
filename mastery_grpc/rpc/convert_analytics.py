"""Between the messages of histories, cohorts and comparisons and the domain; no rule lives here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery.v1 import analytics_service_pb2 as pb
from mastery.v1 import mastery_pb2
from mastery_grpc.domain.analytics.history import Granularity
from mastery_grpc.domain.cohorts import WholeSchool
from mastery_grpc.domain.forecasting.forecast import Trend
from mastery_grpc.domain.scoring import Component
from mastery_grpc.rpc.convert import time_to_proto
from mastery_grpc.rpc.convert_prediction import date_to_proto

if TYPE_CHECKING:
    from mastery_grpc.application.cohorts.compare import ComparedCohorts, ComparedStudent
    from mastery_grpc.application.cohorts.manage import CountedCohort, CountedProfile
    from mastery_grpc.application.read_history import HistoryPage
    from mastery_grpc.domain.analytics.comparison import Comparison
    from mastery_grpc.domain.analytics.history import HistoryBucket
    from mastery_grpc.domain.analytics.samples import Figures, SampleStatistics
    from mastery_grpc.domain.analytics.standing import Standing
    from mastery_grpc.domain.analytics.trend import TrendEstimate
    from mastery_grpc.domain.cohorts import CohortProfile, Membership

_COMPONENTS: dict[Component | None, mastery_pb2.Component.ValueType] = {
    component: mastery_pb2.Component.Value(f"COMPONENT_{component.name}") for component in Component
}
_COMPONENTS[None] = mastery_pb2.COMPONENT_UNSPECIFIED
_TRENDS: dict[Trend | None, mastery_pb2.Trend.ValueType] = {
    trend: mastery_pb2.Trend.Value(f"TREND_{trend.name}") for trend in Trend
}
_TRENDS[None] = mastery_pb2.TREND_UNSPECIFIED
_GRANULARITY_OF = {
    pb.Granularity.Value(f"GRANULARITY_{granularity.name}"): granularity for granularity in Granularity
}
_GRANULARITY_OF[pb.GRANULARITY_UNSPECIFIED] = Granularity.DAILY


# --- histories --------------------------------------------------------------------------------------------


def granularity_from_proto(value: pb.Granularity.ValueType) -> Granularity:
    """Returns the granularity meant by a value that has been validated."""
    return _GRANULARITY_OF[value]


def history_to_proto(page: HistoryPage) -> pb.GetHistoryResponse:
    """Returns a page of a history as the contract shapes it."""
    summary = page.summary
    return pb.GetHistoryResponse(
        buckets=map(_bucket_to_proto, page.buckets),
        summary=pb.HistorySummary(
            scores=statistics_to_proto(summary.scores),
            volatility=summary.volatility,
            improvement=summary.improvement,
            trend=_trend_to_proto(summary.trend),
            component_trends=map(_trend_to_proto, summary.component_trends),
        ),
        next_page_token=page.next_page_token,
    )


def _bucket_to_proto(bucket: HistoryBucket) -> pb.HistoryBucket:
    return pb.HistoryBucket(
        start_date=date_to_proto(bucket.start_day),
        end_date=date_to_proto(bucket.end_day),
        last_score=bucket.last.score,
        last_components=_components_to_proto(bucket.last),
        mean_score=bucket.mean_score,
        minimum_score=bucket.minimum_score,
        maximum_score=bucket.maximum_score,
        day_count=bucket.day_count,
    )


def _components_to_proto(figures: Figures) -> mastery_pb2.Components:
    return mastery_pb2.Components(
        completion=figures.completion,
        quiz=figures.quiz,
        quality=figures.quality,
        consistency=figures.consistency,
    )


def _trend_to_proto(estimate: TrendEstimate) -> pb.TrendEstimate:
    return pb.TrendEstimate(
        component=_COMPONENTS[estimate.component],
        trend=_TRENDS[estimate.trend],
        slope_per_day=estimate.slope_per_day,
        slope_lower_bound=estimate.lower_bound,
        slope_upper_bound=estimate.upper_bound,
    )


def statistics_to_proto(statistics: SampleStatistics) -> mastery_pb2.SampleStatistics:
    """Returns what describes a sample as the contract shapes it."""
    return mastery_pb2.SampleStatistics(
        count=statistics.count,
        mean=statistics.mean,
        median=statistics.median,
        standard_deviation=statistics.standard_deviation,
        minimum=statistics.minimum,
        maximum=statistics.maximum,
        lower_quartile=statistics.lower_quartile,
        upper_quartile=statistics.upper_quartile,
    )


# --- cohorts ----------------------------------------------------------------------------------------------


def membership_from_proto(
    request: pb.CreateCohortRequest | pb.UpdateCohortRequest,
) -> Membership | None:
    """Returns who is to belong to a cohort, None if the request does not say."""
    if request.HasField("whole_school"):
        return WholeSchool()
    return tuple(request.listed.student_ids) if request.HasField("listed") else None


def cohort_to_proto(counted: CountedCohort) -> pb.Cohort:
    """Returns a cohort with its members, by id."""
    profile = counted.cohort.profile
    message = _profile_to_proto(profile, counted.member_count)
    if profile.whole_school:
        message.whole_school.SetInParent()
    else:
        message.listed.SetInParent()
        message.listed.student_ids.extend(sorted(counted.cohort.members))
    return message


def listed_cohort_to_proto(counted: CountedProfile) -> pb.Cohort:
    """Returns a cohort without its members."""
    return _profile_to_proto(counted.profile, counted.member_count)


def _profile_to_proto(profile: CohortProfile, member_count: int) -> pb.Cohort:
    return pb.Cohort(
        cohort_id=profile.cohort_id,
        school_id=profile.school_id,
        display_name=profile.display_name,
        member_count=member_count,
        etag=profile.etag,
        create_time=time_to_proto(profile.create_time),
        update_time=time_to_proto(profile.update_time),
    )


# --- comparisons ------------------------------------------------------------------------------------------


def comparison_to_proto(compared: ComparedCohorts) -> pb.CompareCohortsResponse:
    """Returns the comparison of two cohorts as the contract shapes it."""
    return pb.CompareCohortsResponse(
        score=_comparison_to_proto(compared.score),
        components=map(_comparison_to_proto, compared.components),
        confidence_level=compared.level,
        verdict=compared.verdict,
        common_count=compared.common_count,
    )


def standing_to_proto(compared: ComparedStudent) -> pb.CompareToCohortResponse:
    """Returns where a student stands as the contract shapes it."""
    return pb.CompareToCohortResponse(
        score=_standing_to_proto(compared.score),
        components=map(_standing_to_proto, compared.components),
        cohort=statistics_to_proto(compared.cohort),
    )


def _comparison_to_proto(comparison: Comparison) -> pb.Comparison:
    welch, effect = comparison.welch, comparison.effect
    return pb.Comparison(
        component=_COMPONENTS[comparison.component],
        first=statistics_to_proto(comparison.first),
        second=statistics_to_proto(comparison.second),
        mean_difference=comparison.mean_difference,
        mean_difference_lower_bound=comparison.difference_interval.lower,
        mean_difference_upper_bound=comparison.difference_interval.upper,
        welch_t=welch and welch.t,
        welch_degrees_of_freedom=welch and welch.freedom,
        welch_p_value=welch and welch.p_value,
        mann_whitney_u=comparison.rank_sum.u,
        mann_whitney_p_value=comparison.rank_sum.p_value,
        hedges_g=effect and effect.g,
        hedges_g_lower_bound=effect and effect.interval.lower,
        hedges_g_upper_bound=effect and effect.interval.upper,
        adjusted_p_value=comparison.adjusted_p_value,
    )


def _standing_to_proto(standing: Standing) -> pb.Standing:
    return pb.Standing(
        component=_COMPONENTS[standing.component],
        value=standing.value,
        percentile_rank=standing.percentile_rank,
        rank=standing.rank,
        standard_score=standing.standard_score,
    )
