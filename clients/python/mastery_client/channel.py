"""The channel to the service: when it is encrypted, how it is kept alive, and which calls gRPC repeats."""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import MethodDescriptor

MEBIBYTE = 1024 * 1024
LARGEST_ANSWER = 16 * MEBIBYTE
"""What the service sends at most, unless its settings say otherwise."""
KEEPALIVE_SECONDS = 30.0
"""The service cuts off who pings more often than every 10 s."""
KEEPALIVE_TIMEOUT_SECONDS = 10.0
SHORTEST_RECONNECT_SECONDS, LONGEST_RECONNECT_SECONDS = 0.1, 5.0
"""Between attempts to connect, while calls fail at once: gRPC's own 1 s and 2 min are too long for a restart."""
MOST_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Tls:
    """How the connection is encrypted; PEM files."""

    ca: Path | None = None
    """Who vouches for the server; without it the authorities that gRPC knows."""
    certificate: Path | None = None
    """What the client shows a server that asks for it; with its `key`."""
    key: Path | None = None
    server_name: str = ""
    """The name in the server's certificate, where it is not that of the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError if one cannot be read."""
        ca, key, certificate = (
            path.read_bytes() if path else None for path in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


def open_channel(
    address: str, *, tls: Tls | None, plaintext: bool, repeatable: Iterable[MethodDescriptor]
) -> grpc.aio.Channel:
    """Returns a channel of the running event loop; it connects with the first call.

    It is encrypted, except to this machine itself where no `tls` is given, and where `plaintext` allows it.
    """
    options = _options(repeatable)
    if not is_plaintext(address, tls=tls, plaintext=plaintext):
        tls = tls or Tls()
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        return grpc.aio.secure_channel(address, tls.credentials(), options=options)
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))  # else a proxy of the environment would see the token
    return grpc.aio.insecure_channel(address, options=options)


def is_plaintext(address: str, *, tls: Tls | None, plaintext: bool) -> bool:
    """Tells whether the channel to an address is not encrypted. Raises ValueError for a contradiction."""
    if plaintext and tls is not None:
        raise ValueError("either tls or plaintext")
    return plaintext or (tls is None and is_loopback(address))


def is_loopback(address: str) -> bool:
    """Tells whether an address in gRPC's syntax leads nowhere but to this machine. In doubt it does not."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("ipv4", "ipv6"):
        return all(map(_is_loopback_host, rest.split(",")))
    return _is_loopback_host(address.removeprefix("dns:///").removeprefix("dns:"))


def _is_loopback_host(host_and_port: str) -> bool:
    host = host_and_port.rpartition(":")[0] if ":" in host_and_port else host_and_port
    host = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _options(repeatable: Iterable[MethodDescriptor]) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(service_config(repeatable))),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", LARGEST_ANSWER),
        ("grpc.keepalive_time_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_SECONDS * 1000)),
        # A connection that a load balancer dropped in a quiet hour is found out before the next call needs it.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", round(SHORTEST_RECONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(LONGEST_RECONNECT_SECONDS * 1000)),
    ]


def service_config(repeatable: Iterable[MethodDescriptor]) -> dict[str, Any]:
    """Returns gRPC's service config: calls go in turn to all addresses that serve, and `repeatable` methods are
    tried again when the service is away."""
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        # Not "": a server whose Redis is away still says so and when to come back, and answers what it has cached.
        # A server that is about to stop reports this too, and is asked no more.
        "healthCheckConfig": {"serviceName": "liveness"},
        "methodConfig": [
            {
                "name": [
                    {"service": method.containing_service.full_name, "method": method.name}
                    for method in repeatable
                ],
                "retryPolicy": {
                    "maxAttempts": MOST_ATTEMPTS,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        # When most calls fail, retries stop: they would keep down a service that is trying to get up.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
