"""Tokens and the keys that they are verified with: a clock turned by hand, an issuer who counts his visitors."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mastery_grpc.application.callers import Caller, Role
from mastery_grpc.domain.errors import KeysUnavailable
from mastery_grpc.rpc.authentication import (
    LEEWAY_SECONDS,
    LONGEST_TOKEN,
    REMEMBERED_TOKENS,
    TokenVerifier,
    Unauthenticated,
)
from mastery_grpc.rpc.signing_keys import DamagedKeys, RefreshTerms, SigningKeys, VerificationKey, keys_in
from tests.issuer import (
    claims,
    ec_key,
    ed25519_key,
    jwk_of,
    jwks,
    p384_key,
    pem_of,
    private_jwk_of,
    rsa_key,
    signed,
    signed_with_hmac,
)

SECRET = "a-secret-that-only-these-tests-sign-with"
START = 1_800_000_000.0
INTERVAL = 30.0
"""Seconds between two visits to the issuer, at the least."""
END = int(START) + 3600

RSA, EC, ED = rsa_key(), ec_key(), ed25519_key()
PUBLISHED = jwks(jwk_of(RSA, "rsa"), jwk_of(EC, "ec"), jwk_of(ED, "ed"))


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class CountingIssuer:
    """Publishes keys, counts who asks, and answers when he is let."""

    is_local = False

    def __init__(self, published: bytes | None = PUBLISHED) -> None:
        self.published = published
        self.visits = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def read(self) -> tuple[VerificationKey, ...]:
        self.visits += 1
        await self.answers.wait()
        if self.published is None:
            raise DamagedKeys("away")
        return keys_in(self.published)


class Desk:
    """A verifier with its keys, its issuer and its clock."""

    def __init__(
        self, *, secret: str | None = SECRET, issuer: str | None = None, audience: str | None = None
    ) -> None:
        self.clock = Clock()
        self.issuer = CountingIssuer()
        self.keys = SigningKeys(
            timer=self.clock,
            secret=None if secret is None else VerificationKey("HS256", secret.encode()),
            source=self.issuer,
            terms=RefreshTerms(interval=600.0, shortest_interval=INTERVAL),
        )
        self.verifier = TokenVerifier(self.keys, issuer=issuer, audience=audience, now=self.clock)

    async def caller(self, token: str) -> Caller:
        return await self.verifier.caller([("authorization", f"Bearer {token}")])

    async def reason(self, token: str) -> str:
        """Returns why a token is refused, as its bearer is told."""
        with pytest.raises(Unauthenticated) as refused:
            await self.caller(token)
        return refused.value.reason

    async def next_refresh(self) -> None:
        self.clock.now += INTERVAL
        await self.keys.refresh()


@pytest.fixture
async def desk() -> Desk:
    desk = Desk()
    await desk.keys.load()
    return desk


def by_secret(**given: Any) -> str:
    return signed(SECRET, "HS256", **{"exp": END} | given)


def by_rsa(key_id: str | None = "rsa", **given: Any) -> str:
    return signed(RSA, "RS256", key_id, **{"exp": END} | given)


def finished_at_once(coroutine: Any) -> Any:
    """Runs a coroutine that must not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    pytest.fail("it waited")


# --- remembered tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [by_secret(), by_rsa()])
async def test_a_known_key_and_a_remembered_token_wait_for_nothing(desk: Desk, token: str) -> None:
    for _ in range(2):
        caller = finished_at_once(desk.caller(token))
        assert caller == Caller("someone", Role.SERVICE)


async def test_a_remembered_token_is_not_verified_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    token = by_rsa()
    first = await desk.caller(token)
    monkeypatch.setattr(desk.keys, "find", None)  # whoever verified would need it
    assert await desk.caller(token) is first


async def test_a_remembered_token_expires(desk: Desk) -> None:
    token = by_rsa()
    await desk.caller(token)
    desk.clock.now = END + LEEWAY_SECONDS - 0.1
    await desk.caller(token)
    desk.clock.now = END + LEEWAY_SECONDS
    assert await desk.reason(token) == "TOKEN_EXPIRED"
    assert await desk.reason(by_rsa(exp=END)) == "TOKEN_EXPIRED"


async def test_a_refused_token_is_not_remembered_as_a_good_one(desk: Desk) -> None:
    for token in (by_rsa(role="root"), by_rsa(exp=int(START) - 60)):
        assert await desk.reason(token) == await desk.reason(token)


async def test_no_more_tokens_are_remembered_than_there_is_room_for(desk: Desk) -> None:
    for number in range(REMEMBERED_TOKENS + 10):
        await desk.caller(by_secret(sub=str(number)))
    assert len(desk.verifier._verified) == REMEMBERED_TOKENS


async def test_tokens_of_a_withdrawn_key_are_forgotten_and_those_of_others_are_not(desk: Desk) -> None:
    for token in (by_rsa(), signed(EC, "ES256", "ec", exp=END), by_secret()):
        await desk.caller(token)
    desk.issuer.published = jwks(jwk_of(EC, "ec"))
    await desk.next_refresh()
    assert await desk.reason(by_rsa()) == "TOKEN_INVALID"
    assert len(desk.verifier._verified) == 2


async def test_tokens_of_a_key_that_was_replaced_under_its_id_are_forgotten(desk: Desk) -> None:
    await desk.caller(by_rsa())
    desk.issuer.published = jwks(jwk_of(rsa_key(), "rsa"))
    await desk.next_refresh()
    assert await desk.reason(by_rsa()) == "TOKEN_INVALID"


async def test_an_issuer_who_withdraws_all_keys_is_believed(desk: Desk) -> None:
    await desk.caller(by_rsa())
    desk.issuer.published = jwks()
    await desk.next_refresh()
    assert await desk.reason(by_rsa()) == "TOKEN_INVALID"
    await desk.caller(by_secret())


# --- asking the issuer again ------------------------------------------------------------------------------


async def test_a_new_key_is_learnt_from_the_first_token_that_names_it(desk: Desk) -> None:
    new = rsa_key()
    desk.issuer.published = jwks(jwk_of(RSA, "rsa"), jwk_of(new, "new"))
    desk.clock.now += INTERVAL
    await desk.caller(signed(new, "RS256", "new", exp=END))
    assert desk.issuer.visits == 2


async def test_however_many_unknown_keys_are_named_the_issuer_is_asked_once_in_the_interval(desk: Desk) -> None:
    for number in range(300):
        assert await desk.reason(by_rsa(f"made-up-{number}")) == "TOKEN_INVALID"
    assert desk.issuer.visits == 1  # the one at the start
    for visits in (2, 3):
        desk.clock.now += INTERVAL
        reasons = await asyncio.gather(*(desk.reason(by_rsa(f"made-up-{number}")) for number in range(100)))
        assert set(reasons) == {"TOKEN_INVALID"}
        assert desk.issuer.visits == visits


async def test_all_who_wait_for_the_issuer_share_his_answer(desk: Desk) -> None:
    new = ec_key()
    desk.issuer.published = jwks(jwk_of(new, "new"))
    desk.issuer.answers.clear()
    desk.clock.now += INTERVAL
    waiting = [
        asyncio.create_task(desk.caller(signed(new, "ES256", "new", exp=END, sub=str(number))))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    waiting[0].cancel()  # who gives up does not take it from the others
    await asyncio.sleep(0)
    desk.issuer.answers.set()
    callers = await asyncio.gather(*waiting[1:])
    assert [caller.subject for caller in callers] == [str(number) for number in range(1, 50)]
    assert desk.issuer.visits == 2


@pytest.mark.parametrize("published", [None, b"<html>", b"{}", b'{"keys": 7}', b"[" * 100_000])
async def test_an_issuer_who_is_away_or_raves_does_not_take_the_keys_that_we_have(
    desk: Desk, published: bytes | None
) -> None:
    desk.issuer.published = published
    await desk.next_refresh()
    assert desk.issuer.visits == 2
    await desk.caller(by_rsa())


async def test_a_token_whose_key_is_known_does_not_make_us_ask(desk: Desk) -> None:
    desk.clock.now += INTERVAL
    assert await desk.reason(signed(rsa_key(), "RS256", "rsa", exp=END)) == "TOKEN_INVALID"
    assert await desk.reason(signed(EC, "ES256", "rsa", exp=END)) == "TOKEN_INVALID"
    assert await desk.reason("garbage") == "TOKEN_INVALID"
    assert desk.issuer.visits == 1


async def test_an_issuer_who_never_answered_is_no_fault_of_the_token() -> None:
    desk = Desk(secret=None)
    desk.issuer.published = None
    await desk.keys.load()
    with pytest.raises(KeysUnavailable):
        desk.keys.check()
    with pytest.raises(KeysUnavailable):
        await desk.caller(by_rsa())
    assert await desk.reason("garbage") == "TOKEN_INVALID"
    desk.issuer.published = PUBLISHED
    await desk.next_refresh()
    desk.keys.check()
    await desk.caller(by_rsa())


async def test_tokens_by_the_secret_are_taken_while_the_issuer_is_away() -> None:
    desk = Desk()
    desk.issuer.published = None
    await desk.keys.load()
    desk.keys.check()
    await desk.caller(by_secret())


async def test_an_issuer_who_never_answered_is_asked_until_he_does() -> None:
    issuer = CountingIssuer(None)
    keys = SigningKeys(timer=Clock(), source=issuer, terms=RefreshTerms(shortest_interval=0.001))
    running = asyncio.create_task(keys.run())
    async with asyncio.timeout(5):
        while issuer.visits < 3:  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.001)
        issuer.published = PUBLISHED
        while not is_answered(keys):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def is_answered(keys: SigningKeys) -> bool:
    try:
        keys.check()
    except KeysUnavailable:
        return False
    return True


# --- which keys may verify --------------------------------------------------------------------------------

UNFIT: dict[str, Callable[[], Any]] = {
    "an RSA key that is too short": lambda: jwk_of(rsa_key(1024), "k"),
    "a key for encryption": lambda: jwk_of(RSA, "k", use="enc"),
    "a key for other operations": lambda: jwk_of(RSA, "k", key_ops=["encrypt"]),
    "operations that are no list": lambda: jwk_of(RSA, "k", key_ops="verify"),
    "an RSA key for another algorithm": lambda: jwk_of(RSA, "k", alg="RS512"),
    "an RSA key for PSS": lambda: jwk_of(RSA, "k", alg="PS256"),
    "an RSA key for HMAC": lambda: jwk_of(RSA, "k", alg="HS256"),
    "an EC key for RSA": lambda: jwk_of(EC, "k", alg="RS256"),
    "a key for no algorithm": lambda: jwk_of(RSA, "k", alg="none"),
    "an algorithm that is no word": lambda: jwk_of(RSA, "k", alg=["RS256"]),
    "a curve that is not offered": lambda: jwk_of(p384_key(), "k"),
    "a curve that is not the key's": lambda: jwk_of(EC, "k") | {"crv": "Ed25519"},
    "a point that is not on the curve": lambda: jwk_of(EC, "k") | {"y": jwk_of(EC, "k")["x"]},
    "a secret": lambda: {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "k", "alg": "HS256"},
    "a private key": lambda: private_jwk_of(EC, "k"),
    "a key of an unknown kind": lambda: {"kty": "XYZ", "kid": "k"},
    "a key without a kind": lambda: {"kid": "k"},
    "a key without numbers": lambda: {"kty": "RSA", "kid": "k"},
    "numbers that are none": lambda: jwk_of(RSA, "k") | {"n": 7},
    "an exponent of one": lambda: jwk_of(RSA, "k") | {"e": "AQ"},
    "an id that is no word": lambda: jwk_of(RSA, None, kid=7),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_key_that_must_not_verify_is_left_out_and_the_others_stay(kind: str) -> None:
    keys = keys_in(jwks(UNFIT[kind](), jwk_of(ED, "ed")))
    assert [(key.key_id, key.algorithm) for key in keys] == [("ed", "EdDSA")]


def test_each_key_is_bound_to_the_algorithm_of_its_kind() -> None:
    told = {(key.key_id, key.algorithm) for key in keys_in(PUBLISHED)}
    assert told == {("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")}


def test_a_key_is_not_shown_where_it_is_printed() -> None:
    assert SECRET not in repr(VerificationKey("HS256", SECRET.encode()))


# --- tokens without a key id ------------------------------------------------------------------------------


async def test_a_token_without_a_key_id_is_taken_if_one_key_fits(desk: Desk) -> None:
    await desk.caller(by_rsa(None))
    desk.issuer.published = jwks(jwk_of(RSA, "rsa"), jwk_of(rsa_key(), "other"))
    await desk.next_refresh()
    assert await desk.reason(by_rsa(None, sub="another")) == "TOKEN_INVALID"


async def test_two_keys_of_one_id_and_one_algorithm_verify_nothing(desk: Desk) -> None:
    desk.issuer.published = jwks(jwk_of(RSA, "rsa"), jwk_of(rsa_key(), "rsa"), jwk_of(EC, "rsa"))
    await desk.next_refresh()
    assert await desk.reason(by_rsa()) == "TOKEN_INVALID"
    await desk.caller(signed(EC, "ES256", "rsa", exp=END))


# --- claims -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "taken"), [(0, True), (LEEWAY_SECONDS, True), (LEEWAY_SECONDS + 1, False)])
async def test_a_token_is_taken_from_its_first_second_with_some_leeway(
    desk: Desk, seconds: int, taken: bool
) -> None:
    token = by_rsa(nbf=int(START) + seconds)
    if taken:
        await desk.caller(token)
    else:
        assert await desk.reason(token) == "TOKEN_INVALID"
        desk.clock.now += 1
        await desk.caller(token)


async def test_issuer_and_audience_are_those_that_are_set() -> None:
    desk = Desk(issuer="https://sso.example", audience="mastery")
    await desk.keys.load()
    right: dict[str, Any] = {"iss": "https://sso.example", "aud": "mastery"}
    await desk.caller(by_rsa(**right))
    await desk.caller(by_rsa(**right | {"aud": ["grades", "mastery"]}))
    wrong: list[dict[str, Any]] = [
        {"iss": "https://sso.example.evil"},
        {"iss": None},
        {"aud": "grades"},
        {"aud": []},
        {"aud": None},
        {"aud": "mastery2"},
        {"aud": {"mastery": 1}},
        {"aud": ["mastery", 7]},
    ]
    for change in wrong:
        assert await desk.reason(by_rsa(**right | change)) == "TOKEN_INVALID"


@pytest.mark.parametrize("school_id", ["*", "a:b", "a}b", "north\n", "x" * 65, "ü"])
async def test_a_school_that_no_request_could_name_is_refused(desk: Desk, school_id: str) -> None:
    assert await desk.reason(by_secret(school_id=school_id)) == "TOKEN_INVALID"


async def test_a_token_may_be_so_long_and_no_longer(desk: Desk) -> None:
    def padded(length: int) -> str:
        return by_secret(padding="x" * length)

    room = (LONGEST_TOKEN - len(padded(0))) * 3 // 4
    await desk.caller(padded(room - 3))
    assert await desk.reason(padded(room + 3)) == "TOKEN_INVALID"


@pytest.mark.parametrize("critical", [["b64"], [], ["exp"], None, "b64"])
async def test_a_token_with_critical_headers_is_refused_whatever_they_are(desk: Desk, critical: Any) -> None:
    header = {"alg": "HS256", "typ": "JWT", "crit": critical, "b64": True}
    assert await desk.reason(signed_with_hmac(SECRET.encode(), header, claims(exp=END))) == "TOKEN_INVALID"


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt", "logout+jwt", "dpop+jwt"])
async def test_a_token_made_for_something_else_is_no_pass(desk: Desk, kind: str) -> None:
    token = signed(RSA, "RS256", "rsa", exp=END, headers={"typ": kind})
    if kind.endswith(("logout+jwt", "dpop+jwt")):
        assert await desk.reason(token) == "TOKEN_INVALID"
    else:
        await desk.caller(token)


async def test_a_public_key_in_the_place_of_the_secret_verifies_nothing() -> None:
    desk = Desk(secret=pem_of(RSA).decode())
    await desk.keys.load()
    forged = signed_with_hmac(pem_of(RSA), {"alg": "HS256", "typ": "JWT"}, claims(exp=END))
    assert await desk.reason(forged) == "TOKEN_INVALID"


# --- whatever comes ---------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["HS256", "service"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), JSON)
CLAIMS = st.dictionaries(
    st.sampled_from(["sub", "role", "exp", "nbf", "iss", "aud", "school_id", "iat", "jti"]), JSON
)
MEMBERS = st.dictionaries(
    st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "d"]), JSON
)


@given(headers=HEADERS, given_claims=CLAIMS, given_alg=st.booleans())
async def test_a_token_of_any_content_is_taken_or_refused(
    headers: dict[str, Any], given_claims: dict[str, Any], given_alg: bool
) -> None:
    desk = Desk()
    header = headers | ({"alg": "HS256"} if given_alg else {})
    token = signed_with_hmac(SECRET.encode(), header, claims(exp=END) | given_claims)
    with contextlib.suppress(Unauthenticated, KeysUnavailable):
        await desk.caller(token)


@given(members=MEMBERS, base=st.sampled_from([jwk_of(RSA, "k"), jwk_of(EC, "k"), jwk_of(ED, "k")]))
def test_a_key_of_any_content_is_taken_or_left_out(members: dict[str, Any], base: dict[str, Any]) -> None:
    assert len(keys_in(jwks(base | members))) <= 1
