"""Prints everything held about a student, one JSON a line: python export_student.py STUDENT --token TOKEN.

The token is of the role admin, or the student's own.
"""

import argparse
import sys

from mastery.v1.compliance_service_pb2 import DataKind
from mastery_client import Client


def main() -> None:
    """Prints the records to standard output and the manifest to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_id")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    is_whole = False
    with Client(arguments.address, token=arguments.token) as client:
        for part in client.compliance.export_student_data(student_id=arguments.student_id):
            if part.HasField("record"):
                print(part.record.json)
            for entry in part.manifest.entries:
                print(f"{DataKind.Name(entry.kind)}: {entry.count}", file=sys.stderr)
            is_whole = part.HasField("manifest")
    if not is_whole:
        sys.exit("the export was cut off")


if __name__ == "__main__":
    main()
