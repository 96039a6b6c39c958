"""Cross-validation asks a model only about students whom it has not seen."""

from collections.abc import Callable, Mapping, Sequence

from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.forecasting.forecast import Forecast, ForecastTerms, History, Past
from mastery_grpc.domain.forecasting.persistence import PersistenceForecaster
from mastery_grpc.training.backtest import Backtest
from mastery_grpc.training.cross_validation import cross_validated
from tests.builders import DEFAULT_RULES, at, exercise, student


class Remembering:
    """Forecasts like persistence, and refuses students that it was made of."""

    name = "remembering"
    model_version = "1"

    def __init__(self, seen: set[StudentKey]) -> None:
        self.seen = seen
        self.asked: set[StudentKey] = set()

    def forecast(
        self, pasts: Sequence[Past], horizons: Sequence[int], terms: ForecastTerms
    ) -> list[list[Forecast]]:
        students = {past.events[0].student for past in pasts}
        assert not students & self.seen
        self.asked |= students
        return PersistenceForecaster().forecast(pasts, horizons, terms)


def history_of(key: StudentKey) -> History:
    return History((exercise(1, 2, number=days + 1, time=at(days), of=key) for days in (0, 14, 21)), DEFAULT_RULES)


def validated(histories: Mapping[StudentKey, History], made: list[Remembering], *, seed: int = 1) -> Backtest:
    def fit(seen: Mapping[StudentKey, History], _: Callable[[str, int, int], None]) -> Remembering:
        made.append(Remembering(set(seen)))
        return made[-1]

    return cross_validated(
        histories, fit, 7, ForecastTerms(), folds=3, seed=seed, progress=lambda _stage, _done, _of: None
    )


def test_every_student_is_forecast_once_by_a_model_made_without_him() -> None:
    histories = {key: history_of(key) for key in (student(f"s{number}") for number in range(10))}
    made: list[Remembering] = []

    result = validated(histories, made)

    assert [model.seen | model.asked for model in made] == [set(histories)] * 3
    assert sorted(len(model.asked) for model in made) == [3, 3, 4]
    assert set(result.metrics) == {"remembering", "persistence", "linear_regression"}
    rows = [row.student for row in result.rows if row.forecaster == "remembering"]
    assert sorted(rows, key=str) == sorted([*histories, *histories], key=str)
    assert result.metrics["remembering"].cases == 20
    assert result.metrics["remembering"].rmse == result.metrics["persistence"].rmse


def test_the_seed_decides_who_is_held_back_together() -> None:
    histories = {key: history_of(key) for key in (student(f"s{number}") for number in range(30))}
    first: list[Remembering] = []
    again: list[Remembering] = []
    other: list[Remembering] = []
    for made, seed in ((first, 1), (again, 1), (other, 2)):
        validated(histories, made, seed=seed)
    assert [model.asked for model in first] == [model.asked for model in again]
    assert [model.asked for model in first] != [model.asked for model in other]
