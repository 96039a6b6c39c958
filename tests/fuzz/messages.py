"""Request messages of every degree of badness, made from the descriptors; the same for a seed."""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from mastery_grpc.domain.batch import requested_batch_id

STUDENTS = ("s1", "s2", "s3")
SCHOOLS = ("", "", "", "north")
SETTLER = "settler"
"""Who hands in what is there before the first message."""
DONE, PENDING = (str(uuid.UUID(int=number, version=4)) for number in (1, 2))
"""The request ids of his batches in each school."""
BATCHES = [
    requested_batch_id(request_id, school_id, "", "service", SETTLER)
    for school_id in sorted(set(SCHOOLS))
    for request_id in (DONE, PENDING)
]
COHORTS = tuple(f"c{number}" for number in range(24))
"""Every other one is there from the start."""
MOST_SHOWN = 2000
"""Characters of a message that a fault shows."""
KIBIBYTE = 1024
DAY = 86_400


@dataclass(frozen=True, slots=True)
class FuzzedMessage:
    """What a client might send, and how to get it again."""

    kind: str
    data: bytes
    seed: str

    def shown(self, method: MethodDescriptor) -> str:
        """Returns the message in words, or its bytes if it is none."""
        message = GetMessageClass(method.input_type)()
        try:
            message.ParseFromString(self.data)
            text = text_format.MessageToString(message, as_one_line=True)
        except DecodeError:
            text = self.data.hex()
        if len(text) > MOST_SHOWN:
            text = f"{text[:MOST_SHOWN]}… ({len(text)} characters)"
        return f"{self.kind}, seed {self.seed!r}: {text}"


def fuzzed_message(method: MethodDescriptor, seed: str) -> FuzzedMessage:
    """Returns the message of a seed, of any kind."""
    rng = random.Random(seed)
    make = rng.choices(_MAKERS, _SHARES)[0]
    return FuzzedMessage(make.__name__.strip("_").replace("_", " "), make(rng, method.input_type), seed)


# --- messages that are in order ---------------------------------------------------------------------------

ONE = ("student_id", "student_ids", "caller")
IDS = ("event_id", "request_id")
COUNTS = {"total_exercises": (20, 20), "total_questions": (20, 20), "page_size": (0, 50), "horizon_days": (1, 30)}
"""From, to; others from 1 to 10."""


def _valid_message(rng: random.Random, kind: Descriptor) -> Any:
    """Returns a message of which nearly all follow the rules."""
    message: Any = GetMessageClass(kind)()
    match kind.full_name:
        case "google.type.Date":
            message.year, message.month, message.day = 2026, rng.randint(1, 12), rng.randint(1, 28)
        case "google.protobuf.Timestamp":
            message.FromSeconds(int(time.time()) - rng.randrange(20 * DAY))
        case "google.protobuf.Duration":
            message.FromSeconds(rng.randint(300, 43_200))
        case "mastery.v1.Weights":
            message.completion = message.quiz = message.quality = message.consistency = 0.25
        case _:
            for field in kind.fields:
                if field.containing_oneof is None and (field.message_type is None or rng.random() < 0.9):
                    _set(message, field, _valid, rng)
            for oneof in kind.oneofs:
                chosen = rng.choice(oneof.fields)
                if len(oneof.fields) > 1 or rng.random() < 0.9:
                    _set(message, chosen, _valid, rng)
    if kind.full_name == "mastery.v1.UpdateCohortRequest":  # members are replaced or changed, not both
        for name in rng.choice((("listed", "whole_school"), ("add_student_ids", "remove_student_ids"))):
            message.ClearField(name)
    return message


def _set(message: Any, field: Any, value: Callable[[random.Random, Any], Any], rng: random.Random) -> None:
    if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    if field.is_repeated:
        getattr(message, field.name).extend(value(rng, field) for _ in range(rng.choice((1, 1, 2, 3))))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value(rng, field))
    else:
        setattr(message, field.name, value(rng, field))


def _valid(rng: random.Random, field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return _valid_message(rng, field.message_type)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 32)))
        case FieldDescriptor.CPPTYPE_STRING:
            if field.name in IDS:
                return str(uuid.UUID(int=rng.getrandbits(128), version=4))
            if field.name == "batch_id":
                return rng.choice(BATCHES)
            if field.name == "school_id":
                return rng.choice(SCHOOLS)
            if field.name in ("page_token", "etag"):
                return ""
            if field.name.endswith("cohort_id"):
                return rng.choice(COHORTS)
            return rng.choice(STUDENTS) if field.name.endswith(ONE) else rng.choice(("a1", "practice-completion"))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return 0.9 if field.name == "confidence_level" else rng.randint(0, 8) / 8
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([value.number for value in field.enum_type.values][1:])
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.3
        case _:
            return rng.randint(*COUNTS.get(field.name, (1, 10)))


def _valid_bytes(rng: random.Random, kind: Descriptor) -> bytes:
    data: bytes = _valid_message(rng, kind).SerializeToString()
    return data


# --- messages that are not --------------------------------------------------------------------------------

TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\x00",
        "a b",
        "ü",
        "s1\n",
        "{s1}",
        "s1:events",
        "*",
        "..",
        "' OR 1=1",
        "\u202e",
        "\U0001f600",
    ),
    *(
        "x" * 63,
        "x" * 64,
        "x" * 65,
        "x" * 255,
        "x" * 256,
        "é" * 255,
        "é" * 256,
        "0" * 36,
        "%s%n",
        "\ud7ff",
        "\ufffe",
    ),
    *("550e8400-e29b-41d4-a716-446655440000", "550E8400-E29B-41D4-A716-446655440000", "AAAA", "eyJhIjoxfQ==", "-"),
)
DOUBLES = (0.0, -0.0, 1.0, 1.0 + 2**-52, -(2**-1074), 2**-1074, 0.5, 1e300, -1e300, 1e-300, nan, inf, -inf)
INTEGERS = (0, 1, -1, 2, 10, 11, 29, 30, 31, 100, 1000, 1001, 2026, 9999, 10_000)
LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_INT64: (2**63 - 1, -(2**63), 253_402_300_799, 253_402_300_800, -62_135_596_801),
    FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1,),
    FieldDescriptor.CPPTYPE_UINT64: (2**64 - 1,),
}


def _edge(rng: random.Random, field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return _valid_message(rng, field.message_type)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 31, 33, 4096)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(DOUBLES)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, -1, 99, 2**31 - 1, -(2**31)))
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case kind:
            edges = (*INTEGERS, *LIMITS[kind])
            return rng.choice([edge for edge in edges if edge >= 0] if kind in _UNSIGNED else edges)


_UNSIGNED = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)


def _places(message: Any) -> list[tuple[Any, Any]]:
    """Returns every field of a message and of those within it."""
    found: list[tuple[Any, Any]] = []
    for field in message.DESCRIPTOR.fields:
        found.append((message, field))
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if field.is_repeated:
                within = list(getattr(message, field.name))[:3]
            else:
                within = [getattr(message, field.name)] if message.HasField(field.name) else []
            for part in within:
                found += _places(part)
    return found


def _at_the_edge(rng: random.Random, kind: Descriptor) -> bytes:
    """One to three fields at the edge of what they may be, or beyond."""
    message = _valid_message(rng, kind)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if places := _places(message):
            owner, field = rng.choice(places)
            _set(owner, field, _edge, rng)
    return bytes(message.SerializeToString())


def _everything_at_the_edge(rng: random.Random, kind: Descriptor) -> bytes:
    message = _valid_message(rng, kind)
    for owner, field in _places(message):
        if field.message_type is None and rng.random() < 0.7:
            _set(owner, field, _edge, rng)
    return bytes(message.SerializeToString())


def _fields_missing(rng: random.Random, kind: Descriptor) -> bytes:
    message = _valid_message(rng, kind)
    for owner, field in _places(message):
        if rng.random() < 0.4:
            owner.ClearField(field.name)
    return bytes(message.SerializeToString())


def _no_numbers(rng: random.Random, kind: Descriptor) -> bytes:
    """Enums that nobody knows, doubles that are no numbers."""
    message = _valid_message(rng, kind)
    for owner, field in _places(message):
        if field.cpp_type in (FieldDescriptor.CPPTYPE_ENUM, FieldDescriptor.CPPTYPE_DOUBLE):
            _set(owner, field, _edge, rng)
    return bytes(message.SerializeToString())


def _huge(rng: random.Random, kind: Descriptor) -> bytes:
    """Texts of up to a megabyte, lists of thousands."""
    message = _valid_message(rng, kind)
    texts = [place for place in _places(message) if place[1].type == FieldDescriptor.TYPE_STRING]
    if not texts:
        return _chunk(rng.randint(1, 99), b"x" * KIBIBYTE * KIBIBYTE)
    owner, field = rng.choice(texts)
    if field.is_repeated:
        getattr(owner, field.name).extend(
            f"{rng.choice(TEXTS) if rng.random() < 0.5 else 's'}{n}" for n in range(1200)
        )
    else:
        letter = rng.choice(("x", "é", "\U0001f600", "\n", "\x00", '"', "%"))
        setattr(owner, field.name, letter * rng.choice((KIBIBYTE, 8 * KIBIBYTE, 64 * KIBIBYTE, 256 * KIBIBYTE)))
    return bytes(message.SerializeToString())


def _unknown_fields(rng: random.Random, kind: Descriptor) -> bytes:
    number, depth = rng.choice((1, 2, 3, 5, 15, 99, 2**29 - 1)), rng.choice((1, 5, 50, 99, 101, 3000))
    nested = b""
    for _ in range(depth):
        nested = _chunk(number, nested)
    groups = _tag(number, 3) * depth + _tag(number, 4) * rng.choice((depth, depth - 1))
    further = rng.choice((nested, groups, _tag(number, 0) + b"\x01", _tag(number, 5) + b"abcd", _tag(number, 6)))
    value = _valid_bytes(rng, kind)
    return rng.choice((value + further, further + value, further))


def _hurt(rng: random.Random, kind: Descriptor) -> bytes:
    """A message with bits turned over, bytes lost or bytes sown in."""
    value = bytearray(_valid_bytes(rng, kind) or b"\x00")
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                value[place] ^= 1 << rng.randrange(8)
            case 1:
                value[place] = rng.randrange(256)
            case 2:
                del value[place : place + rng.randint(1, 8)]
                value = value or bytearray(b"\x00")
            case _:
                value[place:place] = rng.randbytes(rng.randint(1, 4))
    return bytes(value)


def _cut_and_joined(rng: random.Random, kind: Descriptor) -> bytes:
    one, other = _valid_bytes(rng, kind), _valid_bytes(rng, kind)
    return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]


def _two_in_one(rng: random.Random, kind: Descriptor) -> bytes:
    """Two messages after each other, which is one: the fields of the second win."""
    return _valid_bytes(rng, kind) + rng.choice((_valid_bytes, _at_the_edge))(rng, kind)


def _random_bytes(rng: random.Random, kind: Descriptor) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 8, 60, 400)))


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _chunk(number: int, content: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(content)) + content


_WEIGHTED: dict[Callable[[random.Random, Descriptor], bytes], int] = {
    _valid_bytes: 200,
    _at_the_edge: 250,
    _everything_at_the_edge: 60,
    _fields_missing: 100,
    _no_numbers: 80,
    _huge: 4,
    _unknown_fields: 30,
    _hurt: 150,
    _cut_and_joined: 60,
    _two_in_one: 40,
    _random_bytes: 40,
}
_MAKERS, _SHARES = tuple(_WEIGHTED), tuple(_WEIGHTED.values())
