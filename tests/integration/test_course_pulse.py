"""What courses do is counted behind both doors, once, and is in Redis by the time that a process has ended."""

import asyncio

from mastery_grpc.domain.events import QuizPerformance
from mastery_grpc.settings import Settings
from tests.builders import event_of, student
from tests.integration.ingesting import Log, json_record, work
from tests.integration.serving import quiz_event, running_engine
from tests.real.redis_servers import RedisServer


def quizzes_counted(server: RedisServer) -> list[str]:
    with server.client() as client:
        return [
            f"{key}/{field} {count}"
            for key in sorted(map(str, client.scan_iter("course:*:pulse:*")))
            for field, count in client.hgetall(key).items()
            if field.endswith(":quiz")
        ]


def exercises_counted(server: RedisServer) -> dict[str, dict[str, str]]:
    with server.client() as client:
        return {str(key): client.hgetall(key) for key in client.scan_iter("course:*:exercises:*")}


async def test_what_a_server_applies_is_counted(redis_server: RedisServer, redis_url: str) -> None:
    event = quiz_event()
    event.course_id = "algebra"
    event.quiz_performance_submitted.quiz_id = "sheet"
    async with running_engine(redis_url) as engine:
        for _ in range(2):
            [result] = await engine.client().ingest(event)
            assert result.accepted
    time = event.event_time.ToDatetime()

    assert quizzes_counted(redis_server) == [f"course:{{algebra}}:pulse:{time:%Y-%m}/{time:%d}:quiz 1"]
    assert exercises_counted(redis_server) == {
        f"course:{{algebra}}:exercises:{time:%Y-%m}": {
            "ids": "1",
            "=sheet": "1",
            f"{time:%d}:quiz:1": "1",
            f"{time:%d}:marks:1": "500",
        }
    }


async def test_what_a_worker_applies_is_counted(redis_server: RedisServer, log: Log, settings: Settings) -> None:
    quiz = QuizPerformance(total_questions=1, correct_answers=1, quiz_id="sheet")
    events = [event_of(quiz, number=each, of=student(f"s{each}"), course_id="algebra") for each in range(5)]
    await asyncio.wait_for(work(log, settings, [json_record(event) for event in [*events, *events]]), 60)

    assert quizzes_counted(redis_server) == ["course:{algebra}:pulse:2026-01/12:quiz 5"]
    assert exercises_counted(redis_server) == {
        "course:{algebra}:exercises:2026-01": {"ids": "1", "=sheet": "1", "12:quiz:1": "5", "12:marks:1": "5000"}
    }
