"""Ask a running process how it is."""

from __future__ import annotations

from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc


def health(
    service: Annotated[
        str, typer.Argument(help="`liveness`, a service's full name, or nothing for all that the process does.")
    ] = "",
    address: Annotated[str, typer.Option(help="Where it serves health without TLS.")] = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Seconds.", min=0.1)] = 3.0,
) -> None:
    """Ask a server or a worker whether it is serving; ends with status 1 if not."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
            told = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        except grpc.RpcError as error:
            told = error.code().name
    typer.echo(told)
    if told != "SERVING":
        raise typer.Exit(1)
