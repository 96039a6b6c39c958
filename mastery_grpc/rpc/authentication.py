"""Who is calling: bearer tokens, verified once and remembered until they expire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
from cachetools import LRUCache

from mastery_grpc.application.callers import Caller, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REMEMBERED_TOKENS = 10_000
LEEWAY_SECONDS = 5
_BEARER = "bearer "


class Unauthenticated(Exception):
    """A call without a valid token. `reason` is the name of an ErrorReason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TokenVerifier:
    """Turns the `authorization` metadata of a call into its caller."""

    def __init__(
        self,
        *,
        secret: str,
        algorithm: str,
        issuer: str | None,
        audience: str | None,
        now: Callable[[], float],
    ) -> None:
        """`algorithm` is the only one accepted; issuer and audience are checked if given."""
        self._secret = secret
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience
        self._now = now
        # Verifying costs 70 µs, looking up costs none; expiry is checked at every call all the same.
        self._verified: LRUCache[str, tuple[Caller, float]] = LRUCache(REMEMBERED_TOKENS)

    async def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Returns the caller. Raises Unauthenticated."""
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str) and value[:7].lower() == _BEARER:
                return self._caller_of(value[7:])
        raise Unauthenticated("TOKEN_MISSING", "a bearer token is required in the metadata 'authorization'")

    def _caller_of(self, token: str) -> Caller:
        known = self._verified.get(token)
        caller, expiry = known or self._verify(token)
        if self._now() >= expiry + LEEWAY_SECONDS:
            raise Unauthenticated("TOKEN_EXPIRED", "the token has expired")
        if known is None:
            self._verified[token] = (caller, expiry)
        return caller

    def _verify(self, token: str) -> tuple[Caller, float]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[self._algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "role"], "verify_aud": self._audience is not None},
            )
            return _caller_from(claims), float(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("TOKEN_EXPIRED", "the token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise Unauthenticated("TOKEN_INVALID", "the token is not valid") from None


def _caller_from(claims: dict[str, Any]) -> Caller:
    subject, school_id = claims["sub"], claims.get("school_id") or ""
    if not isinstance(subject, str) or not subject or not isinstance(school_id, str):
        raise ValueError("claims of the wrong type")
    return Caller(subject, Role(claims["role"]), school_id)


def issue_token(
    caller: Caller,
    *,
    secret: str,
    algorithm: str,
    expires_at: float,
    issuer: str | None = None,
    audience: str | None = None,
) -> str:
    """Returns a signed token for a caller, valid until `expires_at` (epoch seconds)."""
    claims: dict[str, Any] = {"sub": caller.subject, "role": caller.role.value, "exp": int(expires_at)}
    optional = {"school_id": caller.school_id, "iss": issuer, "aud": audience}
    claims.update({name: value for name, value in optional.items() if value})
    return jwt.encode(claims, secret, algorithm=algorithm)
