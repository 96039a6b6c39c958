"""Forecasts many students in the background: python forecast_class.py STUDENT... --token TOKEN."""

import argparse

from mastery.v1.batch_service_pb2 import BATCH_OPERATION_PREDICT, BatchItem
from mastery_client import Client, error_of


def main() -> None:
    """Prints how far the batch is, then the forecasts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student_ids", nargs="+")
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    with Client(arguments.address, token=arguments.token) as client:
        items = [BatchItem(student_id=student_id) for student_id in arguments.student_ids]
        batch = client.batch.submit_batch(operation=BATCH_OPERATION_PREDICT, items=items).batch
        for update in client.batch.watch_batch(batch_id=batch.batch_id):
            print(f"{update.batch.progress:.0%}")
        for result in client.batch.list_batch_results.each(batch_id=batch.batch_id):
            told = error_of(result.error) if result.HasField("error") else result.prediction.predicted_score
            print(f"{result.student_id}: {told}")


if __name__ == "__main__":
    main()
