"""Who is calling: bearer tokens, verified once and remembered until they expire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import jwt
import msgspec
import structlog
from cachetools import LRUCache
from jwt.utils import base64url_decode

from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.rpc.signing_keys import (
    LONGEST_SHOWN_ID,
    PUBLIC_KEY_ALGORITHMS,
    SECRET_ALGORITHMS,
    NoKeyFits,
    VerificationKey,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mastery_grpc.rpc.signing_keys import SigningKeys

REMEMBERED_TOKENS = 10_000
LEEWAY_SECONDS = 5
LONGEST_TOKEN = 8192
TOKEN_TYPES = frozenset({"jwt", "at+jwt"})
"""A token that says to be of another type was made for something else, by an issuer who means no caller by it."""
_BEARER = "bearer "

log = structlog.get_logger(__name__)


class Unauthenticated(Exception):
    """A call without a valid token. `reason` is the name of an ErrorReason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Refused(Exception):
    """A token that is not valid; says why, for the log alone."""


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    typ: str = "JWT"
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Claims(msgspec.Struct):
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    role: Role
    exp: float
    nbf: float | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    # It becomes a part of keys, so it is held to the same rule as in a request.
    school_id: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")] | None = None


@dataclass(frozen=True, slots=True)
class _Verified:
    caller: Caller
    end: float
    """Epoch seconds at which the token is no longer taken."""
    key: VerificationKey


class TokenVerifier:
    """Turns the `authorization` metadata of a call into its caller."""

    def __init__(
        self, keys: SigningKeys, *, issuer: str | None, audience: str | None, now: Callable[[], float]
    ) -> None:
        """Issuer and audience are checked if given. `now` returns epoch seconds."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._jws = jwt.PyJWS(algorithms=[*SECRET_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS])
        self._headers = msgspec.json.Decoder(_Header)
        self._claims = msgspec.json.Decoder(_Claims)
        # Verifying costs 40 to 140 µs, looking up less than one; the end is looked at in every call all the same.
        self._verified: LRUCache[str, _Verified] = LRUCache(REMEMBERED_TOKENS)
        keys.on_change = self._forget_tokens_of_lost_keys

    async def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Returns the caller; waits for nothing if his token is remembered.

        Raises Unauthenticated; KeysUnavailable if no token can be verified just now.
        """
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str) and value[:7].lower() == _BEARER:
                token = value[7:]
                known = self._verified.get(token) or await self._verify(token)
                if self._now() >= known.end:
                    raise Unauthenticated("TOKEN_EXPIRED", "the token has expired")
                return known.caller
        raise Unauthenticated("TOKEN_MISSING", "a bearer token is required in the metadata 'authorization'")

    async def _verify(self, token: str) -> _Verified:
        try:
            key = await self._key_for(token)
            claims = self._claims_in(token, key)
        except (_Refused, NoKeyFits) as error:
            # Told to the log only: a forger must not learn how far he has come.
            log.info("token refused", cause=str(error))
            raise Unauthenticated("TOKEN_INVALID", "the token is not valid") from None
        verified = _Verified(
            Caller(claims.sub, claims.role, claims.school_id or ""), claims.exp + LEEWAY_SECONDS, key
        )
        if self._now() < verified.end:
            self._verified[token] = verified
        return verified

    async def _key_for(self, token: str) -> VerificationKey:
        if len(token) > LONGEST_TOKEN:
            raise _Refused(f"it is longer than {LONGEST_TOKEN} characters")
        header = self._header_of(token)
        if (key := self._keys.find(header.alg, header.kid)) is None:
            await self._keys.refresh()
            key = self._keys.find(header.alg, header.kid)
        if key is None:
            raise _Refused(f"nobody knows the key {(header.kid or '')[:LONGEST_SHOWN_ID]!r}")
        return key

    def _header_of(self, token: str) -> _Header:
        try:
            header = self._headers.decode(base64url_decode(token.partition(".")[0]))
        except (ValueError, RecursionError):
            raise _Refused("its header cannot be read") from None
        if header.crit is not msgspec.UNSET:
            raise _Refused("it asks for extensions, and we know none")
        if header.typ.lower().removeprefix("application/") not in TOKEN_TYPES:
            raise _Refused("its typ is that of another kind of token")
        return header

    def _claims_in(self, token: str, key: VerificationKey) -> _Claims:
        try:
            claims = self._claims.decode(self._jws.decode(token, key.key, algorithms=[key.algorithm]))
        except jwt.PyJWTError as error:
            raise _Refused(f"{type(error).__name__}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise _Refused(f"its claims are wrong: {error}") from None
        if claims.nbf is not None and claims.nbf > self._now() + LEEWAY_SECONDS:
            raise _Refused("it is not valid yet")
        if self._issuer is not None and claims.iss != self._issuer:
            raise _Refused("its iss is another")
        audiences = claims.aud if isinstance(claims.aud, list) else [claims.aud]
        if self._audience is not None and self._audience not in audiences:
            raise _Refused("its aud is another")
        return claims

    def _forget_tokens_of_lost_keys(self) -> None:
        lost = [token for token, verified in self._verified.items() if not self._keys.has(verified.key)]
        for token in lost:
            del self._verified[token]


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
