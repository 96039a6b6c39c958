"""The gRPC server: what it serves, on which terms connections are kept, and how it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mastery_grpc.rpc.observation import UnknownMethods

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import ServiceDescriptor

    from mastery_grpc.rpc.health import Health
    from mastery_grpc.rpc.observation import CallObserver
    from mastery_grpc.rpc.pipeline import CallPipeline

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTerms:
    """On which terms clients are served; durations in seconds, sizes in bytes."""

    shares_port: bool = False
    """Whether several processes serve the same port; otherwise a port in use is an error."""
    max_receive_message_size: int = 4 * MEBIBYTE
    max_send_message_size: int = 16 * MEBIBYTE
    max_metadata_size: int = 16 * KIBIBYTE
    """Of the headers of one call: the longest token, and room for what proxies add."""
    max_concurrent_streams: int = 1000
    """Calls under way on one connection."""
    keepalive_time: float = 60.0
    """After so long without a sign of life the server pings."""
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 10.0
    """Clients that ping more often are cut off."""
    max_connection_age: float = 300.0
    """So long a connection is kept: clients come back by name, and find new replicas."""
    max_connection_age_grace: float = 60.0

    def channel_options(self) -> list[tuple[str, int]]:
        """Returns the terms as gRPC's channel arguments."""
        return [
            ("grpc.so_reuseport", int(self.shares_port)),
            ("grpc.max_receive_message_length", self.max_receive_message_size),
            ("grpc.max_send_message_length", self.max_send_message_size),
            # Both the same: between them gRPC would refuse at random.
            ("grpc.max_metadata_size", self.max_metadata_size),
            ("grpc.absolute_max_metadata_size", self.max_metadata_size),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.keepalive_time_ms", round(self.keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", round(self.min_ping_interval * 1000)),
            ("grpc.max_connection_age_ms", round(self.max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", round(self.max_connection_age_grace * 1000)),
        ]


def build_server(
    *,
    terms: ServerTerms,
    pipeline: CallPipeline,
    servicers: Mapping[ServiceDescriptor, object],
    health: Health,
    with_reflection: bool,
    observer: CallObserver | None = None,
) -> grpc.aio.Server:
    """Returns a server for the given servicers, for health, and for reflection if wanted; not yet bound."""
    server = health_server(health, terms=terms)
    for service, servicer in servicers.items():
        server.add_generic_rpc_handlers((pipeline.compose(service, servicer),))
    if with_reflection:
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        _serve_reflection(server, [service.full_name for service in servicers] + [health_name])
    if observer is not None:
        server.add_generic_rpc_handlers((UnknownMethods(observer),))
    return server


def health_server(health: Health, *, terms: ServerTerms) -> grpc.aio.Server:
    """Returns a server for health alone."""
    server = grpc.aio.server(options=terms.channel_options())
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    return server


def _serve_reflection(server: grpc.aio.Server, names: list[str]) -> None:
    """Serves v1alpha with the library, and v1, which it lacks: the same messages under another name."""
    names = [*names, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )
