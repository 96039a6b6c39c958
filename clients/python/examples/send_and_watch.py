"""Sends quizzes of one student and watches his mastery meanwhile: python send_and_watch.py STUDENT --token TOKEN.

The token is of the role admin or service.
"""

import argparse
import asyncio
import uuid
from collections.abc import Iterator
from contextlib import aclosing

from mastery.v1.events_pb2 import LearningEvent, QuizPerformanceSubmitted
from mastery_client import AsyncClient

QUESTIONS = 10


def quizzes(student_id: str) -> Iterator[LearningEvent]:
    """Yields a quiz for each number of correct answers."""
    for correct in range(QUESTIONS + 1):
        quiz = QuizPerformanceSubmitted(total_questions=QUESTIONS, correct_answers=correct)
        event = LearningEvent(event_id=str(uuid.uuid4()), student_id=student_id, quiz_performance_submitted=quiz)
        event.event_time.GetCurrentTime()
        yield event


async def watch(client: AsyncClient, student_id: str) -> None:
    """Prints each state, until it has seen them all."""
    async with aclosing(client.mastery.watch_mastery(student_ids=[student_id])) as updates:
        changes = 0
        async for update in updates:
            changes += not update.initial
            print(f"version {update.mastery.version}: {update.mastery.mastery_score:.3f}", flush=True)
            if update.mastery.components.quiz > 0.9 or changes > QUESTIONS:
                return


async def main() -> None:
    """Prints what was accepted, and every change seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_id")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    async with AsyncClient(arguments.address, token=arguments.token) as client:
        watching = asyncio.create_task(watch(client, arguments.student_id))
        acknowledged = [each async for each in client.mastery.stream_events(quizzes(arguments.student_id))]
        print(f"{sum(each.accepted for each in acknowledged)} events accepted")
        await watching


if __name__ == "__main__":
    asyncio.run(main())
