"""Whose data a request is about, read from the fields of its message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mastery_grpc.domain.events import StudentKey
from mastery_grpc.rpc.access import LONGEST_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

_NAMES = ("student_id", "student_ids", "add_student_ids", "remove_student_ids")


_Parts = list[tuple["FieldDescriptor", list["FieldDescriptor"]]]


def names_subjects(request: Descriptor) -> bool:
    """Tells whether requests of this kind may name students."""
    own, parts = _fields(request)
    return bool(own or parts)


def subjects_of(message_type: Descriptor) -> Callable[[Message, str], tuple[StudentKey, ...]]:
    """Returns what reads the students out of a message, each once, given the school that its call reaches.

    They stand in its own fields, or in those of the messages that it repeats, such as events; such a message may
    name a school of its own. A request need not be valid: an id that is too long to be one is cut off.
    """
    own, parts = _fields(message_type)

    def read(message: Message, school_id: str) -> tuple[StudentKey, ...]:
        found = {StudentKey(student_id[:LONGEST_ID], school_id): None for student_id in _ids(message, own)}
        for field, inner in parts:
            value = getattr(message, field.name)
            for part in value if field.is_repeated else (value,):
                its_school = getattr(part, "school_id", "")[:LONGEST_ID] or school_id
                for student_id in _ids(part, inner):
                    found[StudentKey(student_id[:LONGEST_ID], its_school)] = None
        return tuple(found)

    return read


def _fields(message_type: Descriptor) -> tuple[list[FieldDescriptor], _Parts]:
    """Returns the fields that name students: those of a message, and those of the messages in its fields."""
    parts = [
        (field, [inner for inner in field.message_type.fields if inner.name in _NAMES])
        for field in message_type.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    ]
    return (
        [field for field in message_type.fields if field.name in _NAMES],
        [(field, inner) for field, inner in parts if inner],
    )


def _ids(message: Message, fields: list[FieldDescriptor]) -> Iterator[str]:
    for field in fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            yield from value
        elif value:
            yield value
