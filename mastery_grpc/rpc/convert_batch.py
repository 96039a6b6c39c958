"""Between the messages of batches and the domain; no rule lives here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from mastery.v1 import batch_service_pb2 as pb
from mastery.v1 import mastery_service_pb2, prediction_service_pb2, recommendation_service_pb2
from mastery_grpc.application.batches.store import BatchItem, ItemForecast
from mastery_grpc.application.event_protobuf import components_from_proto, rule_violations
from mastery_grpc.domain.batch import BatchOperation, BatchPriority, BatchState
from mastery_grpc.domain.errors import InvalidInput, MasteryError
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.domain.student import Mastery
from mastery_grpc.rpc.access import LONGEST_ID
from mastery_grpc.rpc.convert import mastery_to_proto, time_to_proto
from mastery_grpc.rpc.convert_advice import recommendation_to_proto
from mastery_grpc.rpc.convert_prediction import forecast_to_proto
from mastery_grpc.rpc.status import status_of

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.message import Message

    from mastery_grpc.application.batches.store import ItemResult
    from mastery_grpc.domain.batch import Batch

_OPERATIONS = {each: pb.BatchOperation.Value(f"BATCH_OPERATION_{each.name}") for each in BatchOperation}
_OPERATION_OF = {number: operation for operation, number in _OPERATIONS.items()}
_PRIORITIES = {each: pb.BatchPriority.Value(f"BATCH_PRIORITY_{each.name}") for each in BatchPriority}
_PRIORITY_OF = {number: priority for priority, number in _PRIORITIES.items()}
_PRIORITY_OF[pb.BATCH_PRIORITY_UNSPECIFIED] = BatchPriority.NORMAL
_STATES = {each: pb.BatchState.Value(f"BATCH_STATE_{each.name}") for each in BatchState}


def operation_from_proto(value: pb.BatchOperation.ValueType) -> BatchOperation:
    """Returns the operation in a value that has been validated."""
    return _OPERATION_OF[value]


def priority_from_proto(value: pb.BatchPriority.ValueType) -> BatchPriority:
    """Returns the priority meant by a value that has been validated."""
    return _PRIORITY_OF[value]


def item_from_proto(message: pb.BatchItem, operation: BatchOperation) -> BatchItem:
    """Returns an item; one that breaks the rules of the call for one student carries what that would fail with."""
    if violations := rule_violations(_single_call(message, operation)):
        return BatchItem(message.student_id[:LONGEST_ID], error=InvalidInput(violations))
    if operation is BatchOperation.CALCULATE:
        return BatchItem(message.student_id, components_from_proto(message.components))
    return BatchItem(message.student_id)


def _single_call(item: pb.BatchItem, operation: BatchOperation) -> Message:
    match operation:
        case BatchOperation.CALCULATE:
            components = item.components if item.HasField("components") else None
            return mastery_service_pb2.CalculateMasteryRequest(student_id=item.student_id, components=components)
        case BatchOperation.PREDICT:
            return prediction_service_pb2.PredictNextWeekRequest(student_id=item.student_id)
        case BatchOperation.RECOMMEND:
            return recommendation_service_pb2.GetRecommendationsRequest(student_id=item.student_id)
        case BatchOperation.RECALCULATE:
            return mastery_service_pb2.GetMasteryRequest(student_id=item.student_id)


def batch_to_proto(batch: Batch, now: datetime) -> pb.Batch:
    """Returns how far a batch is as the contract shapes it."""
    remaining = batch.remaining(now)
    message = pb.Batch(
        batch_id=batch.key.batch_id,
        school_id=batch.key.school_id,
        operation=_OPERATIONS[batch.operation],
        priority=_PRIORITIES[batch.priority],
        state=_STATES[batch.state],
        item_count=batch.item_count,
        succeeded_count=batch.succeeded_count,
        failed_count=batch.failed_count,
        progress=batch.progress,
        create_time=time_to_proto(batch.create_time),
        expire_time=time_to_proto(batch.expire_time),
    )
    if remaining is not None:
        duration = Duration()
        duration.FromTimedelta(remaining)
        message.remaining_duration.CopyFrom(duration)
    if batch.start_time is not None:
        message.start_time.FromDatetime(batch.start_time)
    if batch.end_time is not None:
        message.end_time.FromDatetime(batch.end_time)
    return message


def result_to_proto(result: ItemResult) -> pb.BatchResult:
    """Returns what became of an item as the contract shapes it."""
    message = pb.BatchResult(index=result.index, student_id=result.student_id)
    match result.outcome:
        case MasteryError() as error:
            message.error.CopyFrom(status_of(error))
        case Mastery() as mastery:
            message.mastery.CopyFrom(mastery_to_proto(mastery))
        case ItemForecast() as found:
            message.prediction.CopyFrom(
                forecast_to_proto(
                    found.forecast,
                    StudentKey(found.student_id, found.school_id),
                    forecaster=found.forecaster,
                    model_version=found.model_version,
                    create_time=found.create_time,
                    from_cache=found.from_cache,
                )
            )
        case advice:
            listed = pb.RecommendationList(recommendations=map(recommendation_to_proto, advice))
            message.recommendations.CopyFrom(listed)
    return message
