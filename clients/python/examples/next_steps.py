"""Asks what a student should do next: python next_steps.py STUDENT --token TOKEN."""

import argparse

from mastery_client import Client


def main() -> None:
    """Prints the advice, most important first, and the path it lies on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_id")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    with Client(arguments.address, token=arguments.token) as client:
        advice = client.recommendation.get_recommendations(student_id=arguments.student_id, max_results=3)
        path = client.recommendation.get_learning_path(student_id=arguments.student_id).path
    for each in advice.recommendations:
        print(f"{each.area}: {each.rationale} (+{each.expected_gain:.2f})")
    print(f"{len(path.steps)} steps, {len(path.schedule)} days")


if __name__ == "__main__":
    main()
