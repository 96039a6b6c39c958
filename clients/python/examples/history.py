"""Asks how a student did week by week: python history.py STUDENT --token TOKEN."""

import argparse

from mastery.v1.analytics_service_pb2 import GRANULARITY_WEEKLY
from mastery_client import Client


def main() -> None:
    """Prints a line for each week that has events, however many pages that takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_id")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    with Client(arguments.address, token=arguments.token) as client:
        weeks = client.analytics.get_history.each(student_id=arguments.student_id, granularity=GRANULARITY_WEEKLY)
        for week in weeks:
            day = week.start_date
            print(f"{day.year}-{day.month:02}-{day.day:02}  {week.last_score:.3f}  {week.day_count} days")


if __name__ == "__main__":
    main()
