"""Asks which of some students need somebody to step in: python who_needs_help.py STUDENT... --token TOKEN."""

import argparse

from mastery_client import Client, error_of


def main() -> None:
    """Prints them, most urgent first, with the reasons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_ids", nargs="+")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    with Client(arguments.address, token=arguments.token) as client:
        results = client.prediction.check_intervention(student_ids=arguments.student_ids).results
    for result in sorted(results, key=lambda each: -each.intervention.intervention_probability):
        if result.HasField("error"):
            print(f"{result.student_id}: {error_of(result.error)}")
            continue
        found = result.intervention
        verdict = "needs help" if found.intervention_needed else "does well"
        print(f"{result.student_id}: {verdict} ({found.intervention_probability:.0%}) {'; '.join(found.reasons)}")


if __name__ == "__main__":
    main()
