"""What keeps the server: keys, certificates, limits, breakers, terms of connections."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from mastery_grpc.application.circuit_breaker import BreakerTerms, CircuitBreaker
from mastery_grpc.application.rate_limits import RateLimiter
from mastery_grpc.rpc.jwks_source import JwksFile, JwksUrl
from mastery_grpc.rpc.server import ServerTerms
from mastery_grpc.rpc.signing_keys import DamagedKeys, JwksSource, RefreshTerms, SigningKeys, VerificationKey
from mastery_grpc.rpc.tls import ServerCertificates, TlsFiles, UnusableTlsFile
from mastery_grpc.settings import PREFIX, Settings, SettingsError
from mastery_grpc.storage.memory.quotas import MemoryQuotas

if TYPE_CHECKING:
    from mastery_grpc.application.rate_limits import Quotas
    from mastery_grpc.domain.errors import Unavailable

TLS_FILES = ("tls_cert", "tls_key", "tls_client_ca")


def rate_limiter_of(settings: Settings, quotas: Quotas) -> RateLimiter:
    """Returns what keeps callers to their limits, which all processes on these quotas share."""
    limits = settings.call_limits()
    alone = MemoryQuotas(period=limits.period, timer=time.monotonic)
    return RateLimiter(quotas, fallback=alone, limits=limits, timer=time.monotonic)


def breaker_of(settings: Settings, unavailable: type[Unavailable]) -> CircuitBreaker:
    """Returns a closed breaker for a dependency that is told to be away by `unavailable`."""
    terms = BreakerTerms(failures=settings.breaker_failures, open_seconds=settings.breaker_open_seconds)
    return CircuitBreaker(unavailable, terms=terms, timer=time.monotonic)


async def signing_keys_of(settings: Settings) -> SigningKeys:
    """Returns the keys that tokens are verified with, asked for once; a URL may be away, a file may not.

    Raises SettingsError for a secret, file or URL that cannot be used.
    """
    secret, source = settings.secret(), _jwks_source(settings)
    keys = SigningKeys(
        timer=time.monotonic,
        secret=None if secret is None else VerificationKey(settings.jwt_algorithm, secret.encode()),
        source=source,
        terms=RefreshTerms(
            interval=settings.jwt_jwks_refresh_interval, shortest_interval=settings.jwt_jwks_shortest_interval
        ),
    )
    try:
        await keys.load()
    except DamagedKeys as error:
        raise SettingsError(f"{PREFIX}JWT_JWKS: {source}: {error}") from None
    return keys


def _jwks_source(settings: Settings) -> JwksSource | None:
    if "://" not in settings.jwt_jwks:
        return JwksFile(settings.jwt_jwks) if settings.jwt_jwks else None
    try:
        return JwksUrl(settings.jwt_jwks, timeout=settings.jwt_jwks_timeout)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}JWT_JWKS: {error}") from None


def certificates_of(settings: Settings) -> ServerCertificates | None:
    """Returns what the server shows its clients, None without TLS. Raises SettingsError for files of no use."""
    given = {name: Path(getattr(settings, name)) for name in TLS_FILES if getattr(settings, name)}
    if not given:
        return None
    for name in ("tls_cert", "tls_key"):
        if name not in given:
            others = ", ".join(PREFIX + other.upper() for other in given)
            raise SettingsError(f"{PREFIX}{name.upper()}: is not set, and {others} is of no use without it")
    try:
        return ServerCertificates(TlsFiles(given["tls_cert"], given["tls_key"], given.get("tls_client_ca")))
    except UnusableTlsFile as error:
        [name, *_] = [name for name, file in given.items() if file == error.file]
        raise SettingsError(f"{PREFIX}{name.upper()}: {error}") from None


def server_terms(settings: Settings) -> ServerTerms:
    """Returns on which terms clients are served."""
    return ServerTerms(
        shares_port=settings.grpc_workers > 1,
        max_receive_message_size=settings.grpc_max_receive_message_size,
        max_send_message_size=settings.grpc_max_send_message_size,
        max_concurrent_streams=settings.grpc_max_concurrent_streams,
        keepalive_time=settings.grpc_keepalive_time,
        keepalive_timeout=settings.grpc_keepalive_timeout,
        max_connection_age=settings.grpc_max_connection_age,
        max_connection_age_grace=settings.grpc_max_connection_age_grace,
    )
