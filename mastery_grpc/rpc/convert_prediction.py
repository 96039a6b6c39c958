"""From forecasts, interventions and patterns to the messages of the contract; no rule lives here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.type.date_pb2 import Date

from mastery.v1 import mastery_pb2
from mastery.v1 import prediction_service_pb2 as pb
from mastery_grpc.domain.forecasting.forecast import Trend
from mastery_grpc.domain.scoring import Level

if TYPE_CHECKING:
    from datetime import date, datetime

    from mastery_grpc.application.predict_mastery import Intervention, Sighted
    from mastery_grpc.domain.events import StudentKey
    from mastery_grpc.domain.forecasting.forecast import Forecast
    from mastery_grpc.domain.patterns import Pattern

_LEVELS = {level: mastery_pb2.Level.Value(f"LEVEL_{level.name}") for level in Level}
_TRENDS = {trend: mastery_pb2.Trend.Value(f"TREND_{trend.name}") for trend in Trend}


def prediction_to_proto(sighted: Sighted, horizon_days: int) -> mastery_pb2.Prediction:
    """Returns the forecast for so many days ahead, 1..30."""
    outlook = sighted.outlook
    return forecast_to_proto(
        outlook.ahead(horizon_days),
        outlook.student,
        forecaster=outlook.forecaster,
        model_version=outlook.model_version,
        create_time=outlook.create_time,
        from_cache=sighted.from_cache,
    )


def forecast_to_proto(
    forecast: Forecast,
    student: StudentKey,
    *,
    forecaster: str,
    model_version: str,
    create_time: datetime,
    from_cache: bool,
) -> mastery_pb2.Prediction:
    """Returns a forecast, and how it was made, as the contract shapes it."""
    components = forecast.predicted_components
    message = mastery_pb2.Prediction(
        student_id=student.student_id,
        school_id=student.school_id,
        horizon_days=forecast.horizon_days,
        current_score=forecast.current_score,
        predicted_score=forecast.predicted_score,
        lower_bound=forecast.lower_bound,
        upper_bound=forecast.upper_bound,
        interval_level=forecast.interval_level,
        confidence=forecast.confidence,
        trend=_TRENDS[forecast.trend],
        predicted_level=_LEVELS[forecast.predicted_level],
        predicted_components=mastery_pb2.Components(
            completion=components.completion,
            quiz=components.quiz,
            quality=components.quality,
            consistency=components.consistency,
        ),
        intervention_needed=forecast.intervention_needed,
        intervention_probability=forecast.intervention_probability,
        history_days=forecast.history_days,
        forecaster=forecaster,
        model_version=model_version,
        from_cache=from_cache,
    )
    message.create_time.FromDatetime(create_time)
    return message


def trajectory_to_proto(sighted: Sighted, horizon_days: int) -> pb.PredictTrajectoryResponse:
    """Returns the forecasts for 1, 2, … so many days ahead, 1..30."""
    outlook = sighted.outlook
    first = outlook.ahead(1)
    return pb.PredictTrajectoryResponse(
        points=[_point_to_proto(outlook.ahead(horizon)) for horizon in range(1, horizon_days + 1)],
        interval_level=first.interval_level,
        history_days=first.history_days,
        forecaster=outlook.forecaster,
        model_version=outlook.model_version,
        from_cache=sighted.from_cache,
    )


def intervention_to_proto(intervention: Intervention) -> pb.Intervention:
    """Returns whether someone should step in."""
    return pb.Intervention(
        intervention_needed=intervention.needed,
        intervention_probability=intervention.probability,
        current_score=intervention.current_score,
        reasons=intervention.reasons,
        days_until=intervention.days_until,
    )


def pattern_to_proto(pattern: Pattern) -> pb.Pattern:
    """Returns a pattern as the contract shapes it."""
    return pb.Pattern(
        kind=pb.PatternKind.Value(f"PATTERN_KIND_{pattern.kind.name}"),
        strength=pattern.strength,
        start_date=date_to_proto(pattern.start_day),
        end_date=date_to_proto(pattern.end_day),
        evidence=[
            pb.Evidence(figure=each.figure, value=each.value, days=[date_to_proto(day) for day in each.days])
            for each in pattern.evidence
        ],
        summary=pattern.summary,
    )


def date_to_proto(day: date) -> Date:
    """Returns a day as a message."""
    return Date(year=day.year, month=day.month, day=day.day)


def _point_to_proto(forecast: Forecast) -> pb.TrajectoryPoint:
    return pb.TrajectoryPoint(
        date=date_to_proto(forecast.target_date),
        predicted_score=forecast.predicted_score,
        lower_bound=forecast.lower_bound,
        upper_bound=forecast.upper_bound,
        confidence=forecast.confidence,
        level=_LEVELS[forecast.predicted_level],
        intervention_needed=forecast.intervention_needed,
    )
