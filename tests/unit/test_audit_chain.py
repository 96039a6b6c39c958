"""The chain of an audit log: what is authenticated, and what a check finds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.domain.audit_chain import (
    AuditFault,
    AuditKeys,
    Chain,
    ChainCheck,
    Draft,
    FaultKind,
    Mark,
    NotARecord,
    decode_record,
    encode_call,
    micros_of,
)
from tests.builders import at

KEYS = AuditKeys.derived_from(b"a secret of the tests, long enough")
CHAIN = Chain(KEYS, "north")
Log = list[tuple[int, bytes]]
printable = st.text(st.characters(codec="utf-8"), max_size=80)
hashes = st.sampled_from([b"", bytes(range(16))])


def a_draft(number: int = 0, **given: str) -> Draft:
    told = {
        "role": "teacher",
        "caller": "jane",
        "method": "mastery.v1.MasteryService/GetMastery",
        "request_id": "r",
    }
    return Draft(
        micros_of(at(seconds=number)), number % 17, bytes([number % 256]) * 16, encode_call(**told | given)
    )


def a_log(count: int, chain: Chain = CHAIN, after: Mark = Mark()) -> tuple[Log, bytes]:  # noqa: B008
    records, mark = chain.seal(after, [a_draft(number) for number in range(count)])
    return list(enumerate(records, start=after.sequence + 1)), chain.sign_head(mark)


def checked(
    log: Log, head: bytes, *, anchor: bytes = b"", is_new: bool = False, witness: Mark | None = None
) -> ChainCheck:
    check = ChainCheck(CHAIN, witness)
    check.begin(anchor)
    check.follow(log)
    check.end(head, is_new=is_new)
    return check


def fault(log: Log, head: bytes, **given: bytes) -> AuditFault | None:
    return checked(log, head, anchor=given.get("anchor", b"")).fault


# --- entries ----------------------------------------------------------------------------------------------


@given(
    micros=st.integers(0, 4_000_000_000_000_000),
    code=st.integers(0, 16),
    student_hash=hashes,
    told=st.fixed_dictionaries(dict.fromkeys(("role", "caller", "method", "request_id"), printable)),
)
def test_an_entry_is_read_back_as_it_was_sealed(
    micros: int, code: int, student_hash: bytes, told: dict[str, str]
) -> None:
    [record], mark = CHAIN.seal(Mark(6, bytes(32)), [Draft(micros, code, student_hash, encode_call(**told))])
    entry = decode_record(record, "north")
    assert (entry.sequence, entry.mac) == mark
    assert micros_of(entry.create_time) == micros
    assert (entry.code, entry.student_hash, entry.school_id) == (code, student_hash.hex(), "north")
    assert {name: getattr(entry, name) for name in told} == told


@pytest.mark.parametrize(
    "request_id", ["0123456789abcdef0123456789abcdef", "0123456789ABCDEF0123456789abcdef", "é" * 32]
)
def test_a_request_id_is_the_same_afterwards_whatever_it_looks_like(request_id: str) -> None:
    [record], _ = CHAIN.seal(Mark(), [a_draft(request_id=request_id)])
    assert decode_record(record, "").request_id == request_id


def test_texts_of_any_length_and_kind_are_taken_down() -> None:
    [record], _ = CHAIN.seal(Mark(), [a_draft(caller="x" * 1000, method="\ud800")])
    entry = decode_record(record, "")
    assert (entry.caller, entry.method) == ("x" * 255, "?")


@given(first=st.tuples(printable, printable), second=st.tuples(printable, printable))
def test_no_two_calls_have_the_same_bytes(first: tuple[str, str], second: tuple[str, str]) -> None:
    one, other = (
        encode_call(role="admin", caller=caller, method=method, request_id="")
        for caller, method in (first, second)
    )
    assert (one == other) == (first == second)


@given(st.binary(max_size=200))
def test_what_is_no_record_is_told(value: bytes) -> None:
    try:
        decode_record(value, "")
    except NotARecord:
        return
    assert len(value) > 32


def test_an_ordinary_entry_takes_less_than_160_bytes() -> None:
    [record], _ = CHAIN.seal(Mark(10**6), [a_draft(request_id="0123456789abcdef0123456789abcdef")])
    assert len(record) < 160


# --- keys -------------------------------------------------------------------------------------------------


def test_each_purpose_has_a_key_of_its_own_and_none_is_shown() -> None:
    mark = Mark(3, bytes(32))
    assert CHAIN.sign_head(mark) != CHAIN.sign_anchor(mark)
    assert CHAIN.anchor_in(CHAIN.sign_head(mark)) is None
    assert CHAIN.head_in(CHAIN.sign_anchor(mark)) is None
    assert "HMAC" not in repr(KEYS)
    assert "secret" not in repr(KEYS)


def test_a_head_holds_for_its_school_and_its_key_only() -> None:
    signed = CHAIN.sign_head(Mark(3, b"m" * 32))
    assert CHAIN.head_in(signed) == Mark(3, b"m" * 32)
    assert Chain(KEYS, "south").head_in(signed) is None
    assert Chain(AuditKeys.derived_from(b"another secret of the same length"), "north").head_in(signed) is None
    assert CHAIN.head_in(signed[:-1]) is None
    assert all(CHAIN.head_in(_flipped(signed, at)) is None for at in range(len(signed)))


def test_a_pseudonym_needs_the_key_and_the_salt() -> None:
    pseudonym = KEYS.pseudonym("north", "s1", b"salt" * 4)
    assert len(pseudonym) == 16
    others = {
        KEYS.pseudonym("north", "s1", b"tlas" * 4),
        KEYS.pseudonym("north", "s2", b"salt" * 4),
        KEYS.pseudonym("norths", "1", b"salt" * 4),
        KEYS.pseudonym("", "s1", b"salt" * 4),
        AuditKeys.derived_from(b"another").pseudonym("north", "s1", b"salt" * 4),
    }
    assert pseudonym not in others
    assert len(others) == 5


# --- the check --------------------------------------------------------------------------------------------


def test_a_log_as_it_was_written_is_intact() -> None:
    check = checked(*a_log(10))
    assert (check.fault, check.entry_count) == (None, 10)


def test_a_log_that_was_never_begun_is_intact() -> None:
    assert checked([], b"", is_new=True).fault is None


def test_a_log_of_which_everything_is_gone_is_not() -> None:
    assert checked([], b"", is_new=False).fault == (1, FaultKind.HEAD_INVALID)


def test_it_is_checked_in_portions_as_well() -> None:
    log, head = a_log(10)
    check = ChainCheck(CHAIN)
    for start in range(0, 10, 3):
        check.follow(log[start : start + 3])
    check.end(head, is_new=False)
    assert (check.fault, check.entry_count) == (None, 10)


@given(st.integers(0, 9), st.data())
def test_every_bit_of_every_entry_counts(index: int, data: st.DataObject) -> None:
    log, head = a_log(10)
    place, record = log[index]
    position = data.draw(st.integers(0, len(record) - 1))
    log[index] = place, _flipped(record, position)
    found = fault(log, head)
    assert found is not None
    assert found.sequence == place
    is_in_sequence = 32 <= position < 40
    assert found.kind == (FaultKind.OUT_OF_SEQUENCE if is_in_sequence else FaultKind.NOT_AUTHENTIC)


@pytest.mark.parametrize("missing", [1, 5, 9])
def test_a_missing_entry_is_found_where_it_was(missing: int) -> None:
    log, head = a_log(10)
    assert fault([entry for entry in log if entry[0] != missing], head) == (missing, FaultKind.OUT_OF_SEQUENCE)
    closed_up = list(enumerate((record for place, record in log if place != missing), start=1))
    assert fault(closed_up, head) == (missing, FaultKind.OUT_OF_SEQUENCE)


def test_a_missing_end_is_found() -> None:
    log, head = a_log(10)
    assert fault(log[:7], head) == (8, FaultKind.TRUNCATED)
    assert fault([], head) == (1, FaultKind.TRUNCATED)


def test_entries_that_changed_places_are_found() -> None:
    log, head = a_log(10)
    log[3], log[6] = (4, log[6][1]), (7, log[3][1])
    assert fault(log, head) == (4, FaultKind.OUT_OF_SEQUENCE)


def test_an_entry_of_another_school_is_found() -> None:
    log, head = a_log(10)
    log[4] = a_log(10, Chain(KEYS, "south"))[0][4]
    assert fault(log, head) == (5, FaultKind.NOT_AUTHENTIC)


def test_an_entry_behind_the_head_is_found_even_if_it_is_authentic() -> None:
    log, _ = a_log(10)
    _, shorter = a_log(6)
    assert fault(log, shorter) == (7, FaultKind.HEAD_INVALID)


@pytest.mark.parametrize("head", [b"", b"x" * 72, CHAIN.sign_anchor(Mark(10, b"m" * 32))])
def test_a_head_that_is_missing_or_forged_is_found(head: bytes) -> None:
    assert fault(a_log(10)[0], head) == (11, FaultKind.HEAD_INVALID)


def test_after_the_oldest_part_was_cut_off_the_check_begins_at_the_anchor() -> None:
    log, head = a_log(10)
    anchor = CHAIN.sign_anchor(Mark(4, log[3][1][:32]))
    check = checked(log[4:], head, anchor=anchor)
    assert (check.fault, check.entry_count) == (None, 6)
    assert fault(log[5:], head, anchor=anchor) == (5, FaultKind.OUT_OF_SEQUENCE)
    assert fault(log[4:], head) == (1, FaultKind.OUT_OF_SEQUENCE)
    assert fault(log[4:], head, anchor=_flipped(anchor, 7)) == (1, FaultKind.HEAD_INVALID)
    everything = CHAIN.sign_anchor(Mark(10, log[9][1][:32]))
    assert fault([], head, anchor=everything) is None


def test_an_anchor_that_moves_on_meanwhile_is_followed() -> None:
    log, head = a_log(10)
    check = ChainCheck(CHAIN)
    check.follow(log[:3])
    check.begin(CHAIN.sign_anchor(Mark(6, log[5][1][:32])))
    check.follow(log[6:])
    check.end(head, is_new=False)
    assert (check.fault, check.entry_count) == (None, 7)


def test_a_break_stays_to_be_seen_however_long_the_log_goes_on() -> None:
    log, _ = a_log(4)
    after, head = a_log(5, after=Mark(4, CHAIN.broken))
    assert fault(log + after, head) == (5, FaultKind.HEAD_INVALID)


def test_a_witness_tells_of_a_log_that_was_put_back_to_an_older_state() -> None:
    log, _ = a_log(10)
    witness = Mark(9, log[8][1][:32])
    older, older_head = a_log(6)
    assert checked(older, older_head).fault is None
    assert checked(older, older_head, witness=witness).fault == (7, FaultKind.TRUNCATED)
    records, mark = CHAIN.seal(Mark(6, older[5][1][:32]), [a_draft(99)] * 4)
    went_on = older + list(enumerate(records, start=7))
    assert checked(went_on, CHAIN.sign_head(mark), witness=witness).fault == (9, FaultKind.TRUNCATED)
    assert checked(*a_log(10), witness=witness).fault is None


def test_entries_are_equal_if_all_they_tell_is() -> None:
    [record], _ = CHAIN.seal(Mark(), [a_draft()])
    entry = decode_record(record, "north")
    assert entry == decode_record(record, "north")
    assert entry != replace(entry, school_id="south")


def _flipped(value: bytes, position: int) -> bytes:
    return value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]
