"""The keys that tokens are verified with: a shared secret, the published keys of an issuer (JWKS), or both.

Each key verifies by one algorithm, which the key says and never the token (RFC 8725, 3.1).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from mastery_grpc.domain.errors import KeysUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SHORTEST_RSA_KEY = 2048
LONGEST_SHOWN_ID = 64
FIRST_RETRY = 1.0
"""Seconds until the first retry of a source that never answered; doubled from one to the next."""

log = structlog.get_logger(__name__)

_PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
_ALGORITHMS: dict[tuple[str, str | None], tuple[str, Callable[[dict[str, Any]], Any]]] = {
    ("RSA", None): ("RS256", RSAAlgorithm.from_jwk),
    ("EC", "P-256"): ("ES256", ECAlgorithm.from_jwk),
    ("OKP", "Ed25519"): ("EdDSA", OKPAlgorithm.from_jwk),
}
PUBLIC_KEY_ALGORITHMS = frozenset(algorithm for algorithm, _ in _ALGORITHMS.values())
SECRET_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})


class DamagedKeys(Exception):
    """Keys that cannot be had from where they should be; says why."""


class NoKeyFits(Exception):
    """No key may verify such a token, and asking the issuer again would not help; says why."""


class _Unfit(Exception):
    """A key of a JWKS that must not verify tokens; says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key and the only algorithm that it verifies by; equal to another if it is the same under the same id."""

    algorithm: str
    key: bytes | _PublicKey = field(repr=False)
    key_id: str | None = None


class JwksSource(Protocol):
    """Where an issuer publishes his keys."""

    is_local: bool
    """Whether a failure is the operator's mistake rather than the network's."""

    async def read(self) -> tuple[VerificationKey, ...]:
        """Returns the keys of now. Raises DamagedKeys, which says why they cannot be had."""


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTerms:
    """How often an issuer is asked for his keys, in seconds."""

    interval: float = 600.0
    """After so long he is asked again although nobody names a key that is unknown."""
    shortest_interval: float = 30.0
    """However many unknown keys are named, he is not asked sooner."""


def keys_in(document: bytes) -> tuple[VerificationKey, ...]:
    """Returns the keys of a JWKS that may verify tokens; logs why others may not. Raises DamagedKeys."""
    try:
        listed = msgspec.json.decode(document, type=_KeySet).keys
    except (msgspec.DecodeError, RecursionError):
        raise DamagedKeys("is not a JSON Web Key Set") from None
    keys = []
    for jwk in listed:
        try:
            keys.append(_key_of(jwk))
        except _Unfit as error:
            key_id = str(jwk.get("kid"))[:LONGEST_SHOWN_ID]
            log.warning("key of the issuer is not used", key_id=key_id, cause=str(error))
    return tuple(keys)


def _key_of(jwk: dict[str, Any]) -> VerificationKey:
    key_type, curve, key_id = jwk.get("kty"), jwk.get("crv"), jwk.get("kid")
    if not isinstance(key_type, str) or not isinstance(curve, str | None) or not isinstance(key_id, str | None):
        raise _Unfit("a member is of the wrong type")
    if (known := _ALGORITHMS.get((key_type, curve))) is None:
        raise _Unfit("its kind is neither RSA, nor EC with P-256, nor OKP with Ed25519")
    algorithm, read = known
    if jwk.get("alg", algorithm) != algorithm:
        raise _Unfit(f"its alg is not {algorithm}")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise _Unfit("it is not for signatures")
    if "d" in jwk:
        raise _Unfit("it is a private key, which should never have been published")
    try:
        key = read(jwk)
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, OverflowError):
        raise _Unfit("it cannot be read") from None
    if isinstance(key, RSAPublicKey) and key.key_size < SHORTEST_RSA_KEY:
        raise _Unfit(f"it is shorter than {SHORTEST_RSA_KEY} bits")
    return VerificationKey(algorithm, key, key_id)


class SigningKeys:
    """The keys of now. The secret stays; those of the issuer are asked for again from time to time."""

    def __init__(
        self,
        *,
        timer: Callable[[], float],
        secret: VerificationKey | None = None,
        source: JwksSource | None = None,
        terms: RefreshTerms = RefreshTerms(),
    ) -> None:
        """`timer` returns seconds; only differences of it matter."""
        self._secret = secret
        self._source = source
        self._terms = terms
        self._timer = timer
        self._published: Mapping[str | None, tuple[VerificationKey, ...]] | None = None
        self._next_fetch = 0.0
        self._fetching: asyncio.Task[None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a key of the issuer is gone or changed."""

    async def load(self) -> None:
        """Asks the issuer for the first time. Raises DamagedKeys if a file cannot be used; a URL may be away."""
        if self._source is None:
            return
        if self._source.is_local:
            self._take(await self._source.read())
            if not self._published:
                raise DamagedKeys("holds no key that may verify tokens")
        else:
            await self.refresh()

    async def run(self) -> None:
        """Asks the issuer again and again; sooner as long as he has never answered."""
        retry = min(FIRST_RETRY, self._terms.shortest_interval)
        try:
            while self._source is not None:
                if self._published is None:
                    await asyncio.sleep(retry)
                    retry = min(2 * retry, self._terms.shortest_interval)
                else:
                    await asyncio.sleep(self._terms.interval)
                await self._fetch(self._source)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()

    def check(self) -> None:
        """Raises KeysUnavailable while no token could be verified."""
        if self._secret is None and self._published is None:
            raise KeysUnavailable

    def find(self, algorithm: str, key_id: str | None) -> VerificationKey | None:
        """Returns the key for a token with such a header, None if only the issuer may know it by now.

        Raises NoKeyFits; KeysUnavailable if the issuer has never answered.
        """
        if algorithm in SECRET_ALGORITHMS:
            if self._secret is None or self._secret.algorithm != algorithm:
                raise NoKeyFits("no secret is set for its alg")
            return self._secret
        if algorithm not in PUBLIC_KEY_ALGORITHMS or self._source is None:
            raise NoKeyFits("its alg is not accepted")
        if self._published is None:
            raise KeysUnavailable
        named = self._published.get(key_id, ()) if key_id is not None else self._all_published()
        fitting = [key for key in named if key.algorithm == algorithm]
        if len(fitting) > 1:
            raise NoKeyFits("more than one key fits")
        if not fitting and named:
            raise NoKeyFits("its alg is not that of the key")
        return fitting[0] if fitting else None

    def has(self, key: VerificationKey) -> bool:
        """Returns whether the key is still one of the keys."""
        return key == self._secret or key in (self._published or {}).get(key.key_id, ())

    async def refresh(self) -> None:
        """Asks the issuer, unless that was done a moment ago; those who come meanwhile wait for one answer."""
        if self._source is not None and (self._fetching is not None or self._timer() >= self._next_fetch):
            await self._fetch(self._source)

    async def _fetch(self, source: JwksSource) -> None:
        if self._fetching is None:
            self._next_fetch = self._timer() + self._terms.shortest_interval
            self._fetching = asyncio.create_task(self._fetch_once(source))
        # Whoever gives up waiting must not take the answer from the others.
        await asyncio.shield(self._fetching)

    async def _fetch_once(self, source: JwksSource) -> None:
        try:
            self._take(await source.read())
        except DamagedKeys as error:
            held = len(self._all_published())
            log.warning("keys of the issuer cannot be had", source=str(source), cause=str(error), held=held)
        finally:
            self._fetching = None

    def _take(self, keys: Iterable[VerificationKey]) -> None:
        """Believes what the issuer says, also if he says that there are none any more."""
        published: dict[str | None, tuple[VerificationKey, ...]] = {}
        for key in keys:
            published[key.key_id] = (*published.get(key.key_id, ()), key)
        if published != self._published:
            self._published = published
            log.info("keys of the issuer", key_ids=[str(key_id)[:LONGEST_SHOWN_ID] for key_id in published])
            self.on_change()

    def _all_published(self) -> tuple[VerificationKey, ...]:
        return tuple(key for keys in (self._published or {}).values() for key in keys)
