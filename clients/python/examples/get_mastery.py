"""Asks for the mastery of one student: python get_mastery.py STUDENT --token TOKEN."""

import argparse

from mastery.v1 import mastery_pb2
from mastery_client import Client


def main() -> None:
    """Prints score, level and components."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_id")
    parser.add_argument("--token", required=True, help="a bearer token, as made by `mastery-grpc token`")
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    with Client(arguments.address, token=arguments.token) as client:
        mastery = client.mastery.get_mastery(student_id=arguments.student_id).mastery
    print(f"{mastery.student_id}: {mastery.mastery_score:.3f}, {mastery_pb2.Level.Name(mastery.level)}")
    for part in mastery.breakdown:
        name = mastery_pb2.Component.Name(part.component).removeprefix("COMPONENT_").lower()
        note = "" if part.observed else "  (not observed)"
        print(f"  {name:12} {part.score:.3f} x {part.weight:.2f}{note}")


if __name__ == "__main__":
    main()
