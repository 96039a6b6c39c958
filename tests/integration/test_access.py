"""Who may call what, and which tokens are believed: a real server, and tokens of every kind."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_status import rpc_status

from mastery.v1 import access_pb2
from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.assembly import MASTERY_SERVICE
from mastery_grpc.rpc.access import AccessRule, PermissionDenied
from tests.integration.every_method import answers, contract, request_for, served_methods
from tests.integration.serving import (
    SECRET,
    SERVICE_NAME,
    Client,
    Engine,
    Metadata,
    bearer,
    failure_from,
    failure_in,
    failure_of,
    quiz_event,
    running_engine,
    token,
)
from tests.real.redis_servers import RedisServer

EFFECTS = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
}
"""What only those are told who were admitted."""
ADMITTED, NOT_OWN, ELSEWHERE = "admitted", "NOT_OWN_RECORD", "OTHER_SCHOOL"
CONTRACT = contract()
METHOD = dict(MASTERY_SERVICE.methods_by_name)
METHODS = list(METHOD)

STUDENT, TEACHER, ADMIN, SERVICE = Role
ANYBODY = {STUDENT, TEACHER, ADMIN, SERVICE}
MAY_CALL = {
    "MasteryService.GetMastery": ANYBODY,
    "MasteryService.BatchGetMastery": {TEACHER, ADMIN, SERVICE},
    "MasteryService.CalculateMastery": {TEACHER, ADMIN, SERVICE},
    "MasteryService.IngestEvents": {ADMIN, SERVICE},
    "MasteryService.StreamEvents": {ADMIN, SERVICE},
    "MasteryService.WatchMastery": ANYBODY,
    "PredictionService.PredictNextWeek": ANYBODY,
    "PredictionService.PredictTrajectory": ANYBODY,
    "PredictionService.CheckIntervention": {TEACHER, ADMIN, SERVICE},
    "PredictionService.DetectPatterns": ANYBODY,
    "RecommendationService.GetRecommendations": ANYBODY,
    "RecommendationService.GetLearningPath": ANYBODY,
    "RecommendationService.GetRecommendationConfig": ANYBODY,
    "RecommendationService.RecordFeedback": ANYBODY,
    "AnalyticsService.GetHistory": ANYBODY,
    "AnalyticsService.CreateCohort": {TEACHER, ADMIN},
    "AnalyticsService.GetCohort": {TEACHER, ADMIN, SERVICE},
    "AnalyticsService.ListCohorts": {TEACHER, ADMIN, SERVICE},
    "AnalyticsService.UpdateCohort": {TEACHER, ADMIN},
    "AnalyticsService.DeleteCohort": {TEACHER, ADMIN},
    "AnalyticsService.CompareCohorts": {TEACHER, ADMIN, SERVICE},
    "AnalyticsService.CompareToCohort": {TEACHER, ADMIN, SERVICE},
    "BatchService.SubmitBatch": {TEACHER, ADMIN, SERVICE},
    "BatchService.GetBatch": {TEACHER, ADMIN, SERVICE},
    "BatchService.ListBatchResults": {TEACHER, ADMIN, SERVICE},
    "BatchService.CancelBatch": {TEACHER, ADMIN, SERVICE},
    "BatchService.WatchBatch": {TEACHER, ADMIN, SERVICE},
    "ComplianceService.ExportStudentData": {STUDENT, ADMIN},
    "ComplianceService.EraseStudentData": {ADMIN},
    "ComplianceService.ListAuditEntries": {ADMIN},
    "ComplianceService.VerifyAuditLog": {ADMIN},
    "ComplianceService.GetRetentionPolicy": ANYBODY,
}
"""Written out by hand: what the protos declare is held against it."""
ABOUT_NO_STUDENT = {"RecommendationService.GetRecommendationConfig", "ComplianceService.GetRetentionPolicy"}
ABOUT_NO_SCHOOL = {"ComplianceService.GetRetentionPolicy"}


@dataclass(frozen=True)
class Situation:
    """Whom a caller asks about: himself or another, in which school, and which school his token names."""

    himself: bool
    school_id: str
    of_the_token: str
    student: str
    teacher: str
    platform: str
    """The verdict on an administrator or a service."""

    def verdict(self, name: str, role: Role) -> str:
        if role not in MAY_CALL[name]:
            return "ROLE_NOT_ALLOWED"
        if name in ABOUT_NO_SCHOOL:
            return ADMITTED
        verdict = {STUDENT: self.student, TEACHER: self.teacher}.get(role, self.platform)
        # A student asks about no other where he asks about nobody: he is as confined as a teacher.
        return self.teacher if name in ABOUT_NO_STUDENT and verdict == NOT_OWN else verdict


SITUATIONS = {
    "himself": Situation(True, "", "north", ADMITTED, ADMITTED, ADMITTED),
    "himself, school named": Situation(True, "north", "north", ADMITTED, ADMITTED, ADMITTED),
    "another": Situation(False, "", "north", NOT_OWN, ADMITTED, ADMITTED),
    "another, school named": Situation(False, "north", "north", NOT_OWN, ADMITTED, ADMITTED),
    "his id elsewhere": Situation(True, "south", "north", ELSEWHERE, ELSEWHERE, ELSEWHERE),
    "another elsewhere": Situation(False, "south", "north", NOT_OWN, ELSEWHERE, ELSEWHERE),
    "himself, of no school": Situation(True, "", "", ADMITTED, ADMITTED, ADMITTED),
    "another, of no school": Situation(False, "", "", NOT_OWN, ADMITTED, ADMITTED),
    "his id elsewhere, of no school": Situation(True, "south", "", ELSEWHERE, ELSEWHERE, ADMITTED),
    "another elsewhere, of no school": Situation(False, "south", "", NOT_OWN, ELSEWHERE, ADMITTED),
}


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with running_engine(redis_url) as engine:
        yield engine


def request_of(method: str, student_id: str, school_id: str = "") -> Message:
    """Returns a valid request about one student."""
    request: Message = request_for(METHOD[method], student_id, school_id)
    return request


async def verdict(client: Client, method: MethodDescriptor, request: Message) -> str:
    """Returns whether a call was admitted, or the reason why not; for events, what their own outcome says."""
    try:
        found = await answers(client.channel, method, request, client.metadata)
    except grpc.aio.AioRpcError as error:
        failure = failure_from(error)
        if failure.code in EFFECTS:
            return ADMITTED
        assert failure.code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}, failure
        return failure.reason
    outcome: Any = None
    if method.name == "IngestEvents":
        [outcome] = found[0].results
    elif method.name == "StreamEvents":
        [outcome] = found
    return ADMITTED if outcome is None or outcome.accepted else failure_in(outcome.error).reason


# --- roles, students and schools --------------------------------------------------------------------------


def test_the_contract_says_what_these_tests_take_it_to_say() -> None:
    declared = {
        name: {
            Role(access_pb2.Role.Name(role).removeprefix("ROLE_").lower())
            for role in method.GetOptions().Extensions[access_pb2.access].roles
        }
        for name, method in CONTRACT.items()
    }
    assert declared == MAY_CALL


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", CONTRACT)
def test_the_rule_of_each_method_admits_whom_it_should(name: str, role: Role) -> None:
    method = CONTRACT[name]
    rule = AccessRule(method)
    found = {}
    for situation, asked in SITUATIONS.items():
        caller = Caller("s1", role, asked.of_the_token)
        request = request_for(method, "s1" if asked.himself else "s2", asked.school_id)
        try:
            call = rule.admit(caller, None if method.client_streaming else request)
            reached = [call.school_of(event.school_id) for event in events_in(request)] or [call.school_id]
        except PermissionDenied as refusal:
            found[situation] = refusal.reason
        else:
            found[situation] = ADMITTED
            meant = "" if name in ABOUT_NO_SCHOOL else asked.school_id
            assert reached == [meant or asked.of_the_token]
    assert found == expected(name, role)


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_reaches_what_the_contract_allows_it(engine: Engine, role: Role) -> None:
    served = await served_methods(engine)
    assert served.keys() >= {
        name for name in MAY_CALL if name.startswith(("Mastery", "Predict", "Recomm", "Analyt"))
    }
    everywhere = [
        quiz_event(student_id=student_id, school_id=school_id)
        for name in served
        for student_id in pair(name)
        for school_id in ("", "north", "south")
    ]
    await engine.client().ingest(*everywhere)  # so that there is something to see at once
    for name, method in served.items():
        himself, another = pair(name)  # of each method's own: a caller has a limit of calls
        found = {}
        for situation, asked in SITUATIONS.items():
            client = engine.client(role, himself, asked.of_the_token)
            request = request_for(method, himself if asked.himself else another, asked.school_id)
            found[situation] = await verdict(client, method, request)
        assert {name: found} == {name: expected(name, role)}


async def test_nobody_reaches_anything_without_a_token(engine: Engine) -> None:
    stranger = engine.client_with(())
    for method in (await served_methods(engine)).values():
        for asked in SITUATIONS.values():
            request = request_for(method, "s1", asked.school_id)
            assert await verdict(stranger, method, request) == "TOKEN_MISSING"


def expected(name: str, role: Role) -> dict[str, str]:
    return {situation: asked.verdict(name, role) for situation, asked in SITUATIONS.items()}


def events_in(request: Any) -> list[Any]:
    names = request.DESCRIPTOR.fields_by_name
    return list(request.events) if "events" in names else [request.event] if "event" in names else []


def pair(name: str) -> tuple[str, str]:
    """Returns two students whom the tests of one method are about."""
    return f"{name.replace('.', '-')}-1", f"{name.replace('.', '-')}-2"


async def test_a_student_may_not_watch_himself_together_with_another(engine: Engine) -> None:
    student = engine.client(Role.STUDENT, "s1")
    assert (await failure_of(student.watch("s1", "s2").read())).reason == "NOT_OWN_RECORD"


async def test_what_is_refused_has_no_effect(engine: Engine, redis_server: RedisServer) -> None:
    student, confined = engine.client(Role.STUDENT, "s1"), engine.client(school_id="north")
    for method in ("CalculateMastery", "IngestEvents", "StreamEvents"):
        assert await verdict(student, METHOD[method], request_of(method, "s1")) == "ROLE_NOT_ALLOWED"
        assert await verdict(confined, METHOD[method], request_of(method, "s1", "south")) == "OTHER_SCHOOL"
    with redis_server.client() as redis:
        assert [key for key in redis.scan_iter() if not key.startswith(("audit:", "limit:", "upkeep:"))] == []


async def test_an_event_without_a_school_goes_to_the_callers_own(engine: Engine) -> None:
    await engine.client(school_id="north").ingest(quiz_event())
    assert (await engine.client().get(school_id="north")).school_id == "north"
    assert (await failure_of(engine.client().get())).code is grpc.StatusCode.NOT_FOUND


async def test_a_refusal_never_tells_whether_the_student_exists(engine: Engine) -> None:
    await engine.client().ingest(quiz_event(student_id="there"), quiz_event(student_id="there", school_id="south"))
    student, teacher = engine.client(Role.STUDENT, "s1"), engine.client(Role.TEACHER, school_id="north")
    for client, school, method in (
        (student, "", "GetMastery"),
        (student, "", "WatchMastery"),
        (student, "", "BatchGetMastery"),
        (teacher, "south", "GetMastery"),
        (teacher, "south", "BatchGetMastery"),
        (teacher, "south", "WatchMastery"),
        (teacher, "south", "CalculateMastery"),
    ):
        existing, missing = [
            await refusal(client, method, request_of(method, student_id, school))
            for student_id in ("there", "absent")
        ]
        assert existing == missing
        assert b"PERMISSION" not in existing
        assert b"there" not in existing


async def refusal(client: Client, method: str, request: Message) -> bytes:
    """Returns the status of a call that must be denied, as the bytes that were sent."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.send(method, request)
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]
    assert status is not None
    sent: bytes = status.SerializeToString(deterministic=True)
    return sent


async def test_a_foreign_school_of_any_length_is_refused_the_same(engine: Engine) -> None:
    teacher = engine.client(Role.TEACHER, school_id="north")
    failure = await failure_of(teacher.get(school_id="x" * 1_000_000))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OTHER_SCHOOL")


# --- tokens -----------------------------------------------------------------------------------------------

NOW = int(time.time())
CLAIMS: dict[str, Any] = {"sub": "someone", "role": "service", "exp": NOW + 3600}


def signed(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Returns a token with these claims changed, or left out where None."""
    given = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(given, secret, algorithm=algorithm)


def unsigned(header: object, payload: object = CLAIMS) -> str:
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    return ".".join([*(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts), ""])


def tampered(original: str) -> str:
    header, _, signature = original.split(".")
    payload = base64.urlsafe_b64encode(json.dumps(CLAIMS | {"role": "admin"}).encode()).decode().rstrip("=")
    return f"{header}.{payload}.{signature}"


MISSING: dict[str, Metadata] = {
    "no metadata": (),
    "empty": (("authorization", ""),),
    "another scheme": (("authorization", "Basic c29tZW9uZTpzZWNyZXQ="),),
    "a bare token": (("authorization", signed()),),
    "another key": (("x-authorization", f"Bearer {signed()}"),),
}

INVALID: dict[str, str] = {
    "nothing": "",
    "garbage": "garbage",
    "three dots": "...",
    "no base64": "a.b.c",
    "another secret": signed(SECRET[::-1]),
    "cut signature": signed()[:-10],
    "changed claims": tampered(signed()),
    "no algorithm": jwt.encode(CLAIMS, "", algorithm="none"),
    "no algorithm, capitals": unsigned({"alg": "NONE", "typ": "JWT"}),
    "another algorithm": signed(algorithm="HS512"),
    "another algorithm of the family": signed(algorithm="HS384"),
    "no exp": signed(exp=None),
    "no sub": signed(sub=None),
    "no role": signed(role=None),
    "empty sub": signed(sub=""),
    "unknown role": signed(role="root"),
    "role in capitals": signed(role="SERVICE"),
    "empty role": signed(role=""),
    "several roles": signed(role=["service", "admin"]),
    "role is an object": signed(role={"service": True}),
    "school is a number": signed(school_id=7),
    "school is a list": signed(school_id=["north"]),
    "exp is a word": signed(exp="tomorrow"),
    "exp is endless": signed(exp=float("inf")),
    "not valid yet": signed(nbf=NOW + 3600),
    "claims are a list": unsigned({"alg": "HS256"}, [1, 2, 3]),
    "header is nested deeply": unsigned("[" * 3000, "{}"),
    "header is no object": unsigned([], {}),
    "critical extension": jwt.encode(CLAIMS, SECRET, algorithm="HS256", headers={"crit": ["x"], "x": 1}),
}


@pytest.mark.parametrize("method", METHODS)
async def test_without_a_token_nothing_is_answered(engine: Engine, method: str) -> None:
    for metadata in MISSING.values():
        failure = await failure_of(engine.client_with(metadata).send(method, request_of(method, "s1")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


@pytest.mark.parametrize("kind", INVALID)
async def test_a_token_that_cannot_be_believed_is_refused_without_a_cause(engine: Engine, kind: str) -> None:
    client = engine.client_with(bearer(INVALID[kind]))
    for _ in range(2):  # nor is it remembered as a good one
        failure = await failure_of(client.get())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        assert failure.message == "the token is not valid"


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_asks_for_a_token_that_can_be_believed(engine: Engine, method: str) -> None:
    for kind in ("garbage", "another secret", "unknown role"):
        client = engine.client_with(bearer(INVALID[kind]))
        failure = await failure_of(client.send(method, request_of(method, "s1")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_stranger_learns_nothing_of_the_rules_of_a_request(engine: Engine) -> None:
    failure = await failure_of(engine.client_with(()).send("GetMastery", b"\xff"))
    assert failure.reason == "TOKEN_MISSING"


async def test_an_expired_token_is_told_apart(engine: Engine) -> None:
    failure = await failure_of(engine.client_with(bearer(signed(exp=NOW - 60))).get())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_a_token_expires_although_it_was_believed_before(engine: Engine) -> None:
    client = engine.client_with(bearer(signed(exp=int(time.time()) - 3)))  # within the leeway for two seconds
    await client.calculate()
    async with asyncio.timeout(4):
        while True:
            await asyncio.sleep(0.1)
            try:
                await client.get()
            except grpc.aio.AioRpcError as error:
                failure = failure_from(error)
                break
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_name_of_the_scheme_is_taken_in_any_case(engine: Engine, scheme: str) -> None:
    client = engine.client_with((("authorization", f"{scheme} {token()}"),))
    assert (await client.calculate()).mastery.version == 1


async def test_the_pinned_algorithm_is_the_only_one(redis_url: str) -> None:
    async with running_engine(redis_url, jwt_algorithm="HS512") as engine:
        await engine.client_with(bearer(signed(algorithm="HS512"))).calculate()
        assert (await failure_of(engine.client_with(bearer(signed())).get())).reason == "TOKEN_INVALID"


async def test_issuer_and_audience_are_checked_where_they_are_set(redis_url: str) -> None:
    async with running_engine(redis_url, jwt_issuer="school-sso", jwt_audience="mastery") as engine:
        right = {"iss": "school-sso", "aud": "mastery"}
        await engine.client_with(bearer(signed(**right))).calculate()
        await engine.client_with(bearer(signed(iss="school-sso", aud=["grades", "mastery"]))).get()
        for wrong in ({"iss": "elsewhere"}, {"aud": "grades"}, {"iss": None}, {"aud": None}):
            failure = await failure_of(engine.client_with(bearer(signed(**right | wrong))).get())
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_token_for_others_is_taken_where_no_audience_is_set(engine: Engine) -> None:
    await engine.client_with(bearer(signed(iss="anyone", aud="anything"))).calculate()


async def test_unknown_methods_are_told_as_such_to_strangers_too(engine: Engine) -> None:
    channel: Any = engine.channel
    failure = await failure_of(channel.unary_unary(f"/{SERVICE_NAME}/Nothing")(b"", timeout=5))
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
