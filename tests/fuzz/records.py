"""Records of every degree of badness, from valid ones to a megabyte of brackets; the same for a seed."""

import json
import random
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mastery.v1 import events_pb2, mastery_pb2

EventJson = dict[str, Any]
Headers = list[tuple[str, bytes | None]]

PROTOBUF: Headers = [("content-type", b"application/x-protobuf")]
MEGABYTE = 1_000_000
ONE_GIANT_IN = 5000
"""Records: so rare are those of a megabyte."""
FIRST_MILLISECOND, LAST_MILLISECOND = 1_735_689_600_000, 1_767_225_600_000  # the year 2025
STUDENTS = 400
TEXT_FIELDS = ("event_id", "event_type", "student_id", "school_id", "source", "course_id", "quiz_id")


@dataclass(frozen=True, slots=True)
class FuzzedRecord:
    """What a producer might send."""

    kind: str
    """What was done to it."""
    value: bytes | None
    headers: Headers
    key: bytes | None = b"somebody"


def fuzzed_records(seed: str, count: int) -> Iterator[FuzzedRecord]:
    """Yields records of all kinds, in no order."""
    rng = random.Random(seed)
    makers, shares = zip(*KINDS.items(), strict=True)
    for _ in range(count):
        make = rng.choice(GIANTS) if rng.randrange(ONE_GIANT_IN) == 0 else rng.choices(makers, shares)[0]
        yield make(rng)


def valid_records(seed: str, count: int) -> Iterator[FuzzedRecord]:
    """Yields records that nothing is wrong with."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.choice((valid_json, valid_protobuf))(rng)


# --- events that are in order -----------------------------------------------------------------------------


def event(rng: random.Random) -> EventJson:
    """Returns an event of one of the students, with an id that no other event has."""
    return {
        "event_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "timestamp": rng.randrange(FIRST_MILLISECOND, LAST_MILLISECOND),
        "student_id": f"student_{rng.randrange(STUDENTS)}",
        **({"school_id": "north"} if rng.random() < 0.2 else {}),
        **({"source": "fuzz", "course_id": "Algèbre 1, été"} if rng.random() < 0.3 else {}),
        **rng.choice(PAYLOADS)(rng),
    }


def _exercise(rng: random.Random) -> EventJson:
    total = rng.randint(1, 30)
    return {
        "event_type": "exercise.completion.submitted",
        "total_exercises": total,
        "completed_exercises": rng.randint(0, total),
        "exercise_id": "e1",
        "time_spent": rng.randint(0, 4000),
    }


def _quiz(rng: random.Random) -> EventJson:
    total = rng.randint(1, 30)
    return {
        "event_type": "quiz.performance.submitted",
        "total_questions": total,
        "correct_answers": rng.randint(0, total),
        "quiz_id": "q1",
        "confidence_score": rng.random(),
    }


def _quality(rng: random.Random) -> EventJson:
    marks = {name: rng.random() for name in ("code_quality_score", "efficiency_score") if rng.random() < 0.5}
    return {"event_type": "quality.assessment.completed", "correctness_score": rng.random(), **marks}


def _activity(rng: random.Random) -> EventJson:
    score = {"consistency_score": rng.random()} if rng.random() < 0.3 else {}
    return {"event_type": "consistency.activity.recorded", **score}


def _calculation(rng: random.Random) -> EventJson:
    values = {name: rng.random() for name in ("completion", "quiz", "quality", "consistency")}
    return {"event_type": "mastery.calculation.requested", "components": values}


PAYLOADS = (_exercise, _quiz, _quality, _activity, _calculation)


def json_of(shape: EventJson) -> bytes:
    return json.dumps(shape, separators=(",", ":")).encode()


def protobuf_of(shape: EventJson) -> bytes:
    """Returns an event in its binary shape."""
    message = events_pb2.LearningEvent(
        **{
            name: shape[name]
            for name in ("event_id", "student_id", "school_id", "source", "course_id") & shape.keys()
        }
    )
    message.event_time.FromMilliseconds(shape["timestamp"])
    match shape["event_type"]:
        case "exercise.completion.submitted":
            message.exercise_completion_submitted.total_exercises = shape["total_exercises"]
            message.exercise_completion_submitted.completed_exercises = shape["completed_exercises"]
            message.exercise_completion_submitted.time_spent.seconds = shape["time_spent"]
        case "quiz.performance.submitted":
            message.quiz_performance_submitted.total_questions = shape["total_questions"]
            message.quiz_performance_submitted.correct_answers = shape["correct_answers"]
            message.quiz_performance_submitted.confidence_score = shape["confidence_score"]
        case "quality.assessment.completed":
            for name in shape.keys() & {"code_quality_score", "efficiency_score", "correctness_score"}:
                setattr(message.quality_assessment_completed, name, shape[name])
        case "consistency.activity.recorded":
            message.consistency_activity_recorded.SetInParent()
            if "consistency_score" in shape:
                message.consistency_activity_recorded.consistency_score = shape["consistency_score"]
        case "mastery.calculation.requested":
            components = mastery_pb2.Components(**shape["components"])
            message.mastery_calculation_requested.components.CopyFrom(components)
    return message.SerializeToString()


def valid_json(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord("valid JSON", json_of(event(rng)), [])


def valid_protobuf(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord("valid protobuf", protobuf_of(event(rng)), PROTOBUF)


# --- bytes that were hurt on the way ----------------------------------------------------------------------


def _flipped(rng: random.Random, value: bytes) -> bytes:
    hurt = bytearray(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        hurt[rng.randrange(len(hurt))] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, rng.randrange(1, 256)))
    return bytes(hurt)


def _cut(rng: random.Random, value: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(value) + 1), rng.randrange(len(value) + 1)))
    return rng.choice((value[:end], value[start:], value[:start] + value[end:], value[:end] + value[start:]))


def _spliced(rng: random.Random, value: bytes, other: bytes) -> bytes:
    return value[: rng.randrange(len(value) + 1)] + other[rng.randrange(len(other) + 1) :]


def _sown(rng: random.Random, value: bytes) -> bytes:
    hurt = bytearray(value)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(hurt) + 1)
        hurt[place:place] = rng.choice(
            (
                b"\x00",
                b"\xff",
                b"\xed\xa0\x80",
                b"\xf4\x90\x80\x80",
                b"\xc0\xaf",
                b"\xef\xbb\xbf",
                b"\\",
                b'"',
                b"{",
                b"\n",
            )
        )
    return bytes(hurt)


def hurt_json(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord("hurt JSON", _hurt(rng, json_of(event(rng))), [])


def hurt_protobuf(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord("hurt protobuf", _hurt(rng, protobuf_of(event(rng))), PROTOBUF)


def _hurt(rng: random.Random, value: bytes) -> bytes:
    match rng.randrange(5):
        case 0 | 1:
            return _flipped(rng, value)
        case 2:
            return _cut(rng, value)
        case 3:
            return _spliced(rng, value, rng.choice((json_of, protobuf_of))(event(rng)))
        case _:
            return _sown(rng, value)


def random_bytes(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord(
        "random bytes", rng.randbytes(rng.choice((0, 1, 2, 8, 60, 400))), rng.choice(([], PROTOBUF))
    )


def strange_header(rng: random.Random) -> FuzzedRecord:
    """What the header says is not what it is, or says nothing."""
    shape = event(rng)
    value = rng.choice((json_of(shape), protobuf_of(shape), b"", None))
    said = (b"application/x-protobuf", b"application/json", b"", None, b"\xff\xfe", b"x" * 300)
    headers: Headers = [("content-type", rng.choice(said)) for _ in range(rng.randrange(4))]
    headers += [("dlq-attempt-count", rng.choice((b"1", b"-1", b"", None, b"9" * 5000, b"\xb2")))]
    return FuzzedRecord("strange header", value, headers, rng.choice((None, b"", b"\xff\x00", b"k" * 2000)))


# --- JSON that means harm ---------------------------------------------------------------------------------

HOSTILE_TEXTS = (
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "-0",
        "-1",
        "0",
        "0.0",
        "1e0",
        "1.0",
        "1e2",
        "NaN",
        "Infinity",
        "-Infinity",
    ),
    *("1e308", "1e309", "-1e309", "5e-324", "1e-400", "9" * 400, "-" + "9" * 400, "1" + "0" * 18, "1e999999999"),
    *("2147483647", "2147483648", "9007199254740993", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551615", "18446744073709551616", "253402300799000", "253402300799001", "-62135596800001"),
    *(
        "0.1e",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "1_000",
        "tru",
        "'a'",
        "//",
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
    ),
    *(
        '"\\ud83d\\ude00"',
        '"\\u12"',
        '"\\x41"',
        '"\x01"',
        '"' + "x" * 300 + '"',
        '"' + "é" * 128 + '"',
        '"\u202e"',
    ),
    *('"2025-01-01T00:00:00Z"', '"2025-02-30T00:00:00Z"', '"2025-01-01T24:00:00Z"', '"2025-01-01T00:00:60Z"'),
    *('"2025-01-01T00:00:00.1234567890Z"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59.999999-23:59"'),
    *(
        '"2025-01-01T00:00:00+99:00"',
        '"\uff12\uff10\uff12\uff15-01-01T00:00:00Z"',
        '"1"',
        '"1e3"',
        "[1]",
        '{"a":1}',
        "[[[[[[]]]]]]",
    ),
    *("0.30000000000000004", "1.0000000000000002", "0.9999999999999999", "-1e-320", '"student_1\\n"', '"../../x"'),
)


def swapped_type(rng: random.Random) -> FuzzedRecord:
    """A field that is something else than it should be."""
    shape = event(rng)
    name = rng.choice(list(shape))
    parts = [
        f'"{key}":{json.dumps(value) if key != name else rng.choice(HOSTILE_TEXTS)}'
        for key, value in shape.items()
    ]
    if rng.random() < 0.2:
        parts.remove(rng.choice(parts))
    return FuzzedRecord("swapped type", ("{" + ",".join(parts) + "}").encode(errors="surrogatepass"), [])


def duplicate_keys(rng: random.Random) -> FuzzedRecord:
    shape, other = event(rng), event(rng)
    fields = [*shape.items(), *rng.sample(list(other.items()), rng.randint(1, len(other)))]
    if rng.random() < 0.3:
        fields += [(name, rng.choice((None, -1, "x", [], {}))) for name in rng.sample(list(shape), 2)]
    rng.shuffle(fields)
    text = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields)
    return FuzzedRecord("duplicate keys", ("{" + text + "}").encode(), [])


def deep_nesting(rng: random.Random) -> FuzzedRecord:
    depth = rng.choice((10, 100, 900, 1100, 5000, 30_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('{"components":', "}"), ("[{}, ", "]")))
    nested = opening * depth + "0" + (closing * depth if rng.random() < 0.7 else "")
    name = rng.choice((*event(rng), "unknown"))
    whole = rng.choice((nested, json_of(event(rng)).decode()[:-1] + f',"{name}":{nested}}}'))
    return FuzzedRecord("deep nesting", whole.encode(), [])


def hostile_names(rng: random.Random) -> FuzzedRecord:
    """Many fields that nobody knows, and names that are no names."""
    shape: EventJson = event(rng)
    names = (
        "",
        "\x00",
        "__proto__",
        "__class__",
        "é" * 100,
        "event_Id",
        "\U0001f600",
        "event_type\u0000",
        "$.x",
        "`",
    )
    for name in rng.sample(names, 3):
        shape[name] = rng.choice((None, 1, "x", [1, {"a": "b"}], 1e300))
    shape |= {f"f{number}": number for number in range(rng.choice((0, 0, 300)))}
    if rng.random() < 0.3:
        shape[rng.choice(TEXT_FIELDS)] = rng.choice(names)
    return FuzzedRecord("hostile names", json.dumps(shape, ensure_ascii=rng.random() < 0.5).encode(), [])


def odd_whole(rng: random.Random) -> FuzzedRecord:
    """Values that are not one object in UTF-8."""
    text = json_of(event(rng)).decode()
    value = rng.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xef\xbb\xbf" + text.encode(),
            f" \t\r\n{text}\n ".encode(),
            f"{text}{text}".encode(),
            f"{text}\x00".encode(),
            f"[{text}]".encode(),
            json.dumps(text).encode(),
            rng.choice(HOSTILE_TEXTS).encode(errors="surrogatepass"),
            text.replace("student_", "student_\udcff").encode(errors="surrogateescape"),
        )
    )
    return FuzzedRecord("odd whole", value, [])


# --- protobuf that means harm -----------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    return _varint(number << 3 | wire_type) + content


def _chunk(number: int, content: bytes) -> bytes:
    return _field(number, 2, _varint(len(content)) + content)


def hostile_protobuf(rng: random.Random) -> FuzzedRecord:
    """A message with further fields: repeated, of the wrong wire type, unknown, too deep, too long."""
    number = rng.choice((*range(1, 7), *range(10, 15), 99, 2**29 - 1))
    double = struct.pack("<d", rng.choice((float("nan"), float("inf"), -0.0, 5e-324, 1.5, -1.0, 0.5)))
    depth = rng.choice((5, 50, 101, 3000))
    nested = b""
    for _ in range(depth):
        nested = _chunk(1, nested)
    further = rng.choice(
        (
            _field(number, 0, _varint(rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)))),
            _field(number, 0, b"\xff" * 11),
            _field(number, 1, double),
            _field(number, 5, double[:4]),
            _field(number, 3, b"") * depth + _field(number, 4, b"") * depth,
            _chunk(number, nested),
            _chunk(number, _field(rng.randint(1, 6), 1, double)),
            _chunk(3, _field(1, 0, _varint(rng.choice((2**63, 253402300800, 2**64 - 1)))) + _field(2, 0, b"\x01")),
            _chunk(3, _field(2, 0, _varint(rng.choice((10**9, 2**31 - 1, 2**64 - 1))))),
            _chunk(10, _chunk(4, _field(1, 0, _varint(rng.choice((2**64 - 1, 31622401, 2**63)))))),
            _chunk(14, _chunk(1, _field(rng.randint(1, 4), 1, double))),
            _chunk(number, rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"a" * 300, "é".encode() * 200))),
            _field(number, 2, _varint(2**31)),
            _field(number, rng.choice((6, 7)), b""),
        )
    )
    value = protobuf_of(event(rng))
    return FuzzedRecord("hostile protobuf", rng.choice((value + further, further + value, further)), PROTOBUF)


# --- giants -----------------------------------------------------------------------------------------------


def giant_json(rng: random.Random) -> FuzzedRecord:
    text = json_of(event(rng)).decode()[:-1]
    name = rng.choice((*TEXT_FIELDS, "unknown", "timestamp", "total_questions"))
    giant = rng.choice(
        ('"' + "x" * MEGABYTE + '"', '"' + "\\ud800" * (MEGABYTE // 6) + '"', "9" * MEGABYTE, "[" * MEGABYTE)
    )
    return FuzzedRecord("giant JSON", f'{text},"{name}":{giant}}}'.encode(), [])


def giant_name(rng: random.Random) -> FuzzedRecord:
    text = json_of(event(rng)).decode()[:-1]
    return FuzzedRecord("giant JSON", f'{text},"{"n" * MEGABYTE}":0}}'.encode(), [])


def many_names(rng: random.Random) -> FuzzedRecord:
    text = json_of(event(rng)).decode()[:-1]
    further = "".join(f',"f{number}":{number}' for number in range(MEGABYTE // 16))
    return FuzzedRecord("giant JSON", f"{text}{further}}}".encode(), [])


def giant_noise(rng: random.Random) -> FuzzedRecord:
    return FuzzedRecord("giant noise", rng.randbytes(MEGABYTE), rng.choice(([], PROTOBUF)))


def giant_protobuf(rng: random.Random) -> FuzzedRecord:
    value = protobuf_of(event(rng))
    giant = rng.choice(
        (
            _chunk(rng.choice((1, 2, 4, 5, 6, 99)), b"x" * MEGABYTE),
            value * (MEGABYTE // len(value)),
            b"\x08\x01" * 500_000,
        )
    )
    return FuzzedRecord("giant protobuf", value + giant, PROTOBUF)


GIANTS: tuple[Callable[[random.Random], FuzzedRecord], ...] = (
    giant_json,
    giant_name,
    many_names,
    giant_noise,
    giant_protobuf,
)
KINDS: dict[Callable[[random.Random], FuzzedRecord], int] = {
    valid_json: 8,
    valid_protobuf: 8,
    hurt_json: 22,
    hurt_protobuf: 16,
    random_bytes: 6,
    strange_header: 5,
    swapped_type: 14,
    duplicate_keys: 8,
    deep_nesting: 2,
    hostile_names: 3,
    odd_whole: 4,
    hostile_protobuf: 8,
}
"""Weights."""
