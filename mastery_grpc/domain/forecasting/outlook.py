"""What is expected of one student over the next 30 days, made at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.forecast import Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The forecasts for each of the next 30 days and what follows from them; the field names are those stored."""

    student: StudentKey
    forecasts: tuple[Forecast, ...]
    """For 1, 2, … 30 days ahead of the day of `create_time`."""
    reasons: tuple[str, ...]
    """Why someone should step in, in words for a teacher, weightiest first; empty if nobody should."""
    forecaster: str
    model_version: str
    create_time: datetime

    def ahead(self, horizon_days: int) -> Forecast:
        """Returns the forecast for so many days ahead, 1..30."""
        return self.forecasts[horizon_days - 1]

    def days_until_intervention(self) -> int | None:
        """Returns the first day ahead on which the score is expected below the threshold, None for no such day."""
        return next((one.horizon_days for one in self.forecasts if one.intervention_needed), None)
