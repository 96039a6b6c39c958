"""A forecaster under watch: calibrated by what became of its forecasts, replaced while persistence is better."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mastery_grpc.domain.forecasting.verification import Calibration, Issuer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mastery_grpc.domain.forecasting.forecast import Forecast, Forecaster, ForecastTerms, Past


class WatchedForecaster:
    """Implements `Forecaster`: the configured one, or `persistence` while that is not trusted.

    Pure in its inputs, of which `calibration` is one: whoever verifies forecasts sets it.
    """

    def __init__(self, configured: Forecaster, persistence: Forecaster, *, interval_level: float) -> None:
        """`interval_level` is the one that forecasts are issued with, and that `calibration` is for."""
        self._configured = configured
        self._persistence = persistence
        self.issuer = Issuer(configured.name, configured.model_version, interval_level)
        """Who is watched."""
        self.calibration = Calibration(working_level=interval_level)

    @property
    def name(self) -> str:
        return self._answering.name

    @property
    def model_version(self) -> str:
        return self._answering.model_version

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        calibration = self.calibration
        if calibration.is_trusted:
            return self.forecast_as_trusted(pasts, horizons, terms, calibration.working_level)
        return self._persistence.forecast(pasts, horizons, terms)

    def forecast_as_trusted(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms, working_level: float
    ) -> list[list[Forecast]]:
        """Returns the calibrated forecasts of the configured forecaster, whether it is trusted or not."""
        level = terms.interval_level
        if level != self.issuer.interval_level or working_level == level:
            return self._configured.forecast(pasts, horizons, terms)
        # The interval was made for the working level so that it holds as often as the one asked for says.
        made = self._configured.forecast(pasts, horizons, replace(terms, interval_level=working_level))
        return [[replace(forecast, interval_level=level) for forecast in row] for row in made]

    @property
    def _answering(self) -> Forecaster:
        return self._configured if self.calibration.is_trusted else self._persistence
