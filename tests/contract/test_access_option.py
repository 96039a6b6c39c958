"""Who may call what is declared in the protos, for every method and completely."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pkgutil import iter_modules

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

import mastery.v1
from mastery.v1 import access_pb2, mastery_service_pb2
from mastery_grpc.application.audit.log import AuditedCall
from mastery_grpc.application.callers import CallClass, Caller, Role
from mastery_grpc.rpc.authentication import TokenVerifier
from mastery_grpc.rpc.pipeline import CallPipeline
from mastery_grpc.rpc.signing_keys import SigningKeys
from tests.builders import at

SERVICES = {
    "AnalyticsService",
    "BatchService",
    "ComplianceService",
    "MasteryService",
    "PredictionService",
    "RecommendationService",
}
SCHOOL_IS_IN_THE_EVENT = {"IngestEvents", "StreamEvents"}


def services() -> Iterator[ServiceDescriptor]:
    for module in iter_modules(mastery.v1.__path__):
        if module.name.endswith("_pb2"):
            yield from import_module(f"mastery.v1.{module.name}").DESCRIPTOR.services_by_name.values()


def named(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


METHODS = [method for service in services() for method in service.methods]
every_method = pytest.mark.parametrize("method", METHODS, ids=named)


def access(method: MethodDescriptor) -> access_pb2.Access:
    option: access_pb2.Access = method.GetOptions().Extensions[access_pb2.access]
    return option


def tells_of_students(message: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    """Returns whether a message, or one within it, names students."""
    return any(
        field.name.endswith(("student_id", "student_ids"))
        or (
            field.message_type is not None
            and field.message_type.full_name not in seen
            and tells_of_students(field.message_type, seen | {message.full_name})
        )
        for field in message.fields
    )


def test_every_service_of_the_contract_is_looked_at() -> None:
    assert {service.name for service in services()} == SERVICES
    assert len(METHODS) == len({named(method) for method in METHODS}) >= 30


@every_method
def test_every_method_says_which_roles_may_call_it(method: MethodDescriptor) -> None:
    roles = access(method).roles

    assert method.GetOptions().HasExtension(access_pb2.access)
    assert roles
    assert len(set(roles)) == len(roles)
    assert {access_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in roles} <= set(Role)


@every_method
def test_a_method_for_students_names_the_field_that_must_be_the_student_himself(
    method: MethodDescriptor,
) -> None:
    option = access(method)
    if access_pb2.ROLE_STUDENT in option.roles and tells_of_students(method.input_type):
        assert option.self_field
    if option.self_field:
        assert access_pb2.ROLE_STUDENT in option.roles
        field = method.input_type.fields_by_name[option.self_field]
        assert field.type == FieldDescriptor.TYPE_STRING
        assert not method.client_streaming  # a stream is admitted before its first message


@every_method
def test_no_method_for_students_reads_students_beside_the_one_who_asks(method: MethodDescriptor) -> None:
    option = access(method)
    if access_pb2.ROLE_STUDENT in option.roles:
        others = [
            field.name
            for field in method.input_type.fields
            if field.name.endswith(("student_id", "student_ids")) and field.name != option.self_field
        ]
        assert others == []


@every_method
def test_every_request_about_students_says_which_school(method: MethodDescriptor) -> None:
    if method.name in SCHOOL_IS_IN_THE_EVENT:
        assert "school_id" not in method.input_type.fields_by_name
        return
    if tells_of_students(method.input_type):
        field = method.input_type.fields_by_name["school_id"]
        assert field.type == FieldDescriptor.TYPE_STRING
        assert not field.is_repeated


# --- enforced when the server is built --------------------------------------------------------------------


class Unlimited:
    """Lets everybody through."""

    async def admit(self, caller: Caller, call_class: CallClass) -> None: ...

    def open_stream(self, caller: Caller) -> AbstractContextManager[None]:
        return nullcontext()


class Unaudited:
    """Takes nothing down."""

    def record(self, call: AuditedCall) -> None: ...


class Silent:
    """Has a method for every name."""

    def __getattr__(self, name: str) -> object:
        return lambda: None


def pipeline() -> CallPipeline:
    verifier = TokenVerifier(SigningKeys(timer=lambda: 0.0), issuer=None, audience=None, now=lambda: 0.0)
    return CallPipeline(
        verifier,
        limiter=Unlimited(),
        audit=Unaudited(),
        clock=lambda: at(0),
        default_timeout=1.0,
        slow_reader_timeout=1.0,
    )


def service_with(*methods: tuple[str, access_pb2.Access | None]) -> ServiceDescriptor:
    """Returns a service of its own pool, with these methods and their options."""
    file = descriptor_pb2.FileDescriptorProto(
        name="made_up.proto",
        package="made.up",
        syntax="proto3",
        message_type=[descriptor_pb2.DescriptorProto(name="Thing")],
    )
    service = file.service.add(name="MadeUpService")
    for name, option in methods:
        method = service.method.add(name=name, input_type=".made.up.Thing", output_type=".made.up.Thing")
        if option is not None:
            method.options.Extensions[access_pb2.access].CopyFrom(option)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: ServiceDescriptor = pool.FindServiceByName("made.up.MadeUpService")
    return found


FOR_TEACHERS = access_pb2.Access(roles=[access_pb2.ROLE_TEACHER], call_class=access_pb2.CALL_CLASS_READ)


def test_a_service_whose_methods_all_have_the_option_is_composed() -> None:
    handlers = pipeline().compose(service_with(("One", FOR_TEACHERS), ("Two", FOR_TEACHERS)), Silent())

    assert handlers.service_name() == "made.up.MadeUpService"  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", [None, access_pb2.Access(), access_pb2.Access(self_field="student_id")])
def test_a_service_with_a_method_that_does_not_say_who_may_call_it_is_refused(
    option: access_pb2.Access | None,
) -> None:
    with pytest.raises(ValueError, match=r"made\.up\.MadeUpService\.Two"):
        pipeline().compose(service_with(("One", FOR_TEACHERS), ("Two", option)), Silent())


def test_a_service_without_a_handler_for_a_method_is_refused() -> None:
    service = mastery_service_pb2.DESCRIPTOR.services_by_name["MasteryService"]

    with pytest.raises(AttributeError, match="GetMastery"):
        pipeline().compose(service, object())


def test_a_service_with_a_method_that_counts_as_nothing_is_refused() -> None:
    unclassed = access_pb2.Access(roles=[access_pb2.ROLE_TEACHER])

    with pytest.raises(ValueError, match="unspecified"):
        pipeline().compose(service_with(("One", unclassed)), Silent())
