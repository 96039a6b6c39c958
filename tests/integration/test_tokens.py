"""Tokens of an issuer who publishes his keys: which are taken, which are not, and for how long."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mastery_grpc.app import running_server
from mastery_grpc.assembly import signing_keys_of
from mastery_grpc.rpc.jwks_source import LARGEST_DOCUMENT, JwksUrl
from mastery_grpc.rpc.signing_keys import DamagedKeys
from mastery_grpc.settings import SettingsError
from tests.integration.serving import (
    SECRET,
    Engine,
    bearer,
    connected,
    eventually,
    failure_of,
    running_engine,
    settings_for,
)
from tests.integration.test_server_process import environment
from tests.issuer import (
    assembled,
    claims,
    der_of,
    ec_key,
    ed25519_key,
    jwk_of,
    jwks,
    p384_key,
    pem_of,
    private_jwk_of,
    rsa_key,
    secret_jwk_of,
    signed,
    signed_with_hmac,
)
from tests.real.key_server import KeyServer, document, dripping, key_server, redirect
from tests.real.processes import free_ports

ISSUER, AUDIENCE = "https://sso.example", "mastery"
AUDIT_KEY = "a-key-that-only-the-tests-authenticate-entries-with"
MEANT: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE}
RSA, EC, ED = rsa_key(), ec_key(), ed25519_key()
STRANGER_RSA, STRANGER_EC, STRANGER_ED = rsa_key(), ec_key(), ed25519_key()
SHORT_RSA, P384, FOR_ENCRYPTION, WITHDRAWN = rsa_key(1024), p384_key(), rsa_key(), rsa_key()
HMAC_IN_PUBLIC = b"a secret that somebody published among the keys"
PUBLISHED = jwks(
    jwk_of(RSA, "rsa"),
    jwk_of(EC, "ec"),
    jwk_of(ED, "ed"),
    jwk_of(SHORT_RSA, "short"),
    jwk_of(P384, "p384"),
    jwk_of(FOR_ENCRYPTION, "enc", use="enc"),
    secret_jwk_of(HMAC_IN_PUBLIC, "oct"),
)
KEYS: dict[str, tuple[Any, Any, str | None]] = {
    "RS256": (RSA, STRANGER_RSA, "rsa"),
    "ES256": (EC, STRANGER_EC, "ec"),
    "EdDSA": (ED, STRANGER_ED, "ed"),
    "HS256": (SECRET, SECRET[::-1], None),
}
"""By algorithm: the issuer's key, one of somebody else, and its id."""


@pytest.fixture(scope="module")
def published() -> Iterator[KeyServer]:
    with key_server(PUBLISHED) as server:
        yield server


@pytest.fixture
async def engine(redis_url: str, published: KeyServer) -> AsyncIterator[Engine]:
    async with running_engine(
        redis_url, jwt_jwks=published.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE
    ) as engine:
        yield engine


def good(algorithm: str, **given: Any) -> str:
    key, _, key_id = KEYS[algorithm]
    return signed(key, algorithm, key_id, **MEANT | given)


def by_rsa(key: Any = RSA, key_id: str | None = "rsa", algorithm: str = "RS256", **given: Any) -> str:
    return signed(key, algorithm, key_id, **MEANT | given)


async def refusal(engine: Engine, token: str) -> str:
    failure = await failure_of(engine.client_with(bearer(token)).get("nobody"))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    told = {"the token is not valid", "the token has expired", "a bearer token is required"}
    assert any(failure.message.startswith(each) for each in told)
    assert (failure.metadata, failure.violations) == ((), ())
    return failure.reason


async def is_taken(engine: Engine, token: str) -> bool:
    """Returns whether the token opens the door: behind it there is nobody."""
    failure = await failure_of(engine.client_with(bearer(token)).get("nobody"))
    return failure.code is grpc.StatusCode.NOT_FOUND


# --- what every algorithm must refuse ---------------------------------------------------------------------


def cut(token: str) -> str:
    return token[:-8]


def with_claims_of(token: str, other: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{other.split('.')[1]}.{signature}"


def now() -> int:
    return int(time.time())


REFUSED_IN_ANY: dict[str, Callable[[str], str]] = {
    "signed with the key of somebody else": lambda a: signed(KEYS[a][1], a, KEYS[a][2], **MEANT),
    "with the signature cut": lambda a: cut(good(a)),
    "with the signature left out": lambda a: good(a).rpartition(".")[0] + ".",
    "with the signature of other claims": lambda a: with_claims_of(good(a), good(a, role="admin")),
    "without its second dot": lambda a: good(a).rpartition(".")[0],
    "without its two dots": lambda a: good(a).replace(".", ""),
    "with a third dot": lambda a: good(a) + ".more",
    "with a blank in it": lambda a: good(a).replace(".", ". ", 1),
    "not valid yet": lambda a: good(a, nbf=now() + 60),
    "valid from a word": lambda a: good(a, nbf="soon"),
    "without an end": lambda a: good(a, exp=None),
    "with an end that is a word": lambda a: good(a, exp=str(now() + 3600)),
    "with an end that is true": lambda a: good(a, exp=True),
    "without a subject": lambda a: good(a, sub=None),
    "with an empty subject": lambda a: good(a, sub=""),
    "with an array for a subject": lambda a: good(a, sub=["someone"]),
    "with a number for a subject": lambda a: good(a, sub=7),
    "with a subject that is too long": lambda a: good(a, sub="x" * 256),
    "without a role": lambda a: good(a, role=None),
    "with an unknown role": lambda a: good(a, role="root"),
    "with an array of roles": lambda a: good(a, role=["service"]),
    "with a school that is a list": lambda a: good(a, school_id=["north"]),
    "with a school that is a pattern": lambda a: good(a, school_id="*"),
    "of another issuer": lambda a: good(a, iss="https://sso.example.evil"),
    "of no issuer": lambda a: good(a, iss=None),
    "of several issuers": lambda a: good(a, iss=[ISSUER]),
    "for another audience": lambda a: good(a, aud="grades"),
    "for other audiences": lambda a: good(a, aud=["grades", "mastery2"]),
    "for no audience": lambda a: good(a, aud=None),
    "with a critical header": lambda a: good(a, headers={"crit": ["exp"], "exp": 1}),
    "with an empty list of critical headers": lambda a: good(a, headers={"crit": []}),
    "made for something else": lambda a: good(a, headers={"typ": "logout+jwt"}),
    "with a type that is a number": lambda a: assembled({"alg": a, "typ": 7}, claims(**MEANT), b"x"),
    "longer than 8 KiB": lambda a: good(a, padding="x" * 8192),
}


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_good_token_is_taken(engine: Engine, algorithm: str) -> None:
    assert await is_taken(engine, good(algorithm))
    assert await is_taken(engine, good(algorithm, aud=["grades", AUDIENCE], nbf=now(), school_id="north"))


@pytest.mark.parametrize("algorithm", KEYS)
async def test_an_expired_token_is_told_apart(engine: Engine, algorithm: str) -> None:
    assert await refusal(engine, good(algorithm, exp=now() - 60)) == "TOKEN_EXPIRED"


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("kind", REFUSED_IN_ANY)
async def test_a_token_is_refused(engine: Engine, algorithm: str, kind: str) -> None:
    token = REFUSED_IN_ANY[kind](algorithm)
    for _ in range(2):  # nor is it remembered
        assert await refusal(engine, token) == "TOKEN_INVALID"


# --- keys and algorithms that do not belong together ------------------------------------------------------


def hmac_by(secret: bytes, key_id: str | None = "rsa", algorithm: str = "HS256") -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": key_id}
    return signed_with_hmac(secret, {name: value for name, value in header.items() if value}, claims(**MEANT))


CONFUSED: dict[str, Callable[[], str]] = {
    "unsigned": lambda: assembled({"alg": "none"}, claims(**MEANT)),
    "unsigned, and says so in capitals": lambda: assembled({"alg": "NONE", "kid": "rsa"}, claims(**MEANT)),
    "unsigned, under the id of a key": lambda: assembled({"alg": "none", "kid": "rsa"}, claims(**MEANT)),
    "unsigned, with an empty algorithm": lambda: assembled({"alg": "", "kid": "rsa"}, claims(**MEANT)),
    "without an algorithm": lambda: assembled({"kid": "rsa"}, claims(**MEANT), b"x"),
    "with a list of algorithms": lambda: assembled({"alg": ["RS256"]}, claims(**MEANT), b"x"),
    "HS256 by the public RSA key in PEM": lambda: hmac_by(pem_of(RSA)),
    "HS256 by the same without its last newline": lambda: hmac_by(pem_of(RSA).strip()),
    "HS256 by the public RSA key in DER": lambda: hmac_by(der_of(RSA)),
    "HS256 by the public RSA key, without an id": lambda: hmac_by(pem_of(RSA), None),
    "HS256 by the public EC key in PEM": lambda: hmac_by(pem_of(EC), "ec"),
    "HS256 by the modulus of the RSA key": lambda: hmac_by(jwk_of(RSA, "rsa")["n"].encode()),
    "HS256 by the bytes of the Ed25519 key": lambda: hmac_by(ED.public_key().public_bytes_raw(), "ed"),
    "HS256 by nothing": lambda: hmac_by(b""),
    "HS256 by a secret among the published keys": lambda: hmac_by(HMAC_IN_PUBLIC, "oct"),
    "HS384 by the secret": lambda: signed(SECRET, "HS384", **MEANT),
    "HS512 by the secret": lambda: signed(SECRET, "HS512", **MEANT),
    "RS256 under the id of the EC key": lambda: by_rsa(key_id="ec"),
    "ES256 under the id of the RSA key": lambda: signed(EC, "ES256", "rsa", **MEANT),
    "EdDSA under the id of the RSA key": lambda: signed(ED, "EdDSA", "rsa", **MEANT),
    "RS512 by the RSA key": lambda: by_rsa(algorithm="RS512"),
    "PS256 by the RSA key": lambda: by_rsa(algorithm="PS256"),
    "ES384 by a published key of P-384": lambda: signed(P384, "ES384", "p384", **MEANT),
    "by a published RSA key of 1024 bits": lambda: by_rsa(SHORT_RSA, "short"),
    "by a published key for encryption": lambda: by_rsa(FOR_ENCRYPTION, "enc"),
    "by a key that was never published": lambda: by_rsa(STRANGER_RSA, "mine"),
    "by a key that the token itself brings": lambda: by_rsa(
        STRANGER_RSA, "mine", headers={"jwk": jwk_of(STRANGER_RSA, "mine")}
    ),
    "by a key that the token brings under a known id": lambda: by_rsa(
        STRANGER_RSA, headers={"jwk": jwk_of(STRANGER_RSA, "rsa")}
    ),
    "by a key at an address in the token": lambda: by_rsa(
        STRANGER_RSA, "mine", headers={"jku": "http://127.0.0.1:1/jwks.json", "x5u": "http://127.0.0.1:1/x"}
    ),
    "with a path for a key id": lambda: by_rsa(key_id="../../../../dev/null"),
    "with an empty key id": lambda: by_rsa(key_id=""),
    "with a key id that is a number": lambda: assembled({"alg": "RS256", "kid": 7}, claims(**MEANT), b"x"),
    "with claims that are a list": lambda: assembled({"alg": "RS256", "kid": "rsa"}, [1, 2], b"x"),
    "with a header that is a list": lambda: assembled([1, 2], claims(**MEANT), b"x"),
    "with a header nested deeply": lambda: assembled(b"[" * 5000, b"{}"),
    "encrypted, by its looks": lambda: "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.a.b.c.d",
    "no token at all": lambda: "garbage",
    "nothing but dots": lambda: "..",
}


@pytest.mark.parametrize("kind", CONFUSED)
async def test_a_token_is_refused_whose_key_and_algorithm_do_not_belong_together(
    engine: Engine, kind: str
) -> None:
    assert await refusal(engine, CONFUSED[kind]()) == "TOKEN_INVALID"


async def test_without_a_secret_no_token_by_a_secret_is_taken(redis_url: str, published: KeyServer) -> None:
    async with running_engine(redis_url, jwt_jwks=published.url, jwt_secret=None, audit_key=AUDIT_KEY) as engine:
        assert await is_taken(engine, by_rsa())
        for secret in (SECRET.encode(), b"", pem_of(RSA), b"None"):
            assert await refusal(engine, hmac_by(secret, None)) == "TOKEN_INVALID"


async def test_a_token_without_a_key_id_is_taken_if_exactly_one_key_fits(
    redis_url: str, published: KeyServer
) -> None:
    async with running_engine(redis_url, jwt_jwks=published.url) as engine:
        assert await is_taken(engine, by_rsa(key_id=None))
    with key_server(jwks(jwk_of(RSA, "rsa"), jwk_of(WITHDRAWN, "old"))) as two:
        async with running_engine(redis_url, jwt_jwks=two.url) as engine:
            assert await refusal(engine, by_rsa(key_id=None)) == "TOKEN_INVALID"
            assert await is_taken(engine, by_rsa())


async def test_the_cause_is_in_the_log_and_the_token_is_not(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    token = good("RS256", role="root")
    await refusal(engine, token)
    told = capsys.readouterr().out
    assert "token refused" in told
    assert "role" in told
    for part in token.split("."):
        assert part not in told


async def test_headers_have_room_for_a_long_token_and_a_bound(engine: Engine) -> None:
    async def call(room: int) -> grpc.StatusCode:
        metadata = (*bearer(good("RS256", padding="x" * 5000)), ("x-added-by-a-proxy", "x" * room))
        return (await failure_of(engine.client_with(metadata).get("nobody"))).code

    for _ in range(20):  # gRPC's own limits are soft: between them it refuses at random
        assert await call(4000) is grpc.StatusCode.NOT_FOUND
        assert await call(16_000) is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- keys that come and go --------------------------------------------------------------------------------


async def test_keys_are_rotated_without_a_restart(redis_url: str) -> None:
    new = ec_key()
    with key_server(jwks(jwk_of(RSA, "rsa"))) as server:
        async with running_engine(redis_url, jwt_jwks=server.url, jwt_jwks_shortest_interval=0.05) as engine:
            old_token, new_token = by_rsa(), signed(new, "ES256", "new")
            assert await is_taken(engine, old_token)
            assert await refusal(engine, new_token) == "TOKEN_INVALID"

            server.publish(jwks(jwk_of(RSA, "rsa"), jwk_of(new, "new")))
            await asyncio.sleep(0.06)
            assert await is_taken(engine, new_token)
            assert await is_taken(engine, old_token)

            server.publish(jwks(jwk_of(new, "new")))
            await asyncio.sleep(0.06)
            assert await refusal(engine, by_rsa(key_id="unknown")) == "TOKEN_INVALID"
            assert await refusal(engine, old_token) == "TOKEN_INVALID"  # although it was remembered
            assert await is_taken(engine, new_token)


async def test_a_withdrawn_key_is_noticed_although_nobody_names_an_unknown_one(redis_url: str) -> None:
    with key_server(PUBLISHED) as server:
        async with running_engine(redis_url, jwt_jwks=server.url, jwt_jwks_refresh_interval=0.1) as engine:
            token = by_rsa()
            assert await is_taken(engine, token)
            server.publish(jwks(jwk_of(EC, "ec")))

            async def is_refused() -> bool:
                return not await is_taken(engine, token)

            await eventually(is_refused)


async def test_a_flood_of_unknown_keys_does_not_become_a_flood_of_questions(redis_url: str) -> None:
    with key_server(PUBLISHED) as server:
        async with running_engine(redis_url, jwt_jwks=server.url) as engine:
            flood = [refusal(engine, by_rsa(STRANGER_RSA, f"made-up-{number}")) for number in range(300)]
            assert set(await asyncio.gather(*flood)) == {"TOKEN_INVALID"}
            assert await is_taken(engine, by_rsa())
    assert server.visits == 1  # the one at the start


async def test_an_issuer_who_goes_away_leaves_us_his_keys(redis_url: str) -> None:
    with key_server(PUBLISHED) as server:
        async with running_engine(
            redis_url, jwt_jwks=server.url, jwt_jwks_refresh_interval=0.05, jwt_jwks_shortest_interval=0.05
        ) as engine:
            server.answer = document(b"out of order", status=503)
            visits = server.visits

            async def asked_again() -> bool:
                return server.visits >= visits + 2

            await eventually(asked_again)
            assert await is_taken(engine, by_rsa())
            assert await refusal(engine, by_rsa(key_id="unknown")) == "TOKEN_INVALID"


async def test_an_issuer_who_is_away_at_the_start_is_waited_for(redis_url: str) -> None:
    [port] = free_ports(1)
    settings = settings_for(
        redis_url,
        jwt_secret=None,
        audit_key=AUDIT_KEY,
        jwt_jwks=f"http://127.0.0.1:{port}/jwks.json",
        jwt_jwks_shortest_interval=0.05,
    )
    async with running_server(settings) as own_port, connected(own_port) as engine:
        failure = await failure_of(engine.client_with(bearer(by_rsa())).get("nobody"))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
        assert failure.retry_delay
        assert not await engine.is_serving()  # nor is it given any calls
        assert await refusal(engine, "garbage") == "TOKEN_INVALID"
        with key_server(PUBLISHED, port):
            await engine.until_ready()
            assert await is_taken(engine, by_rsa())


async def test_keys_in_a_file_are_taken_and_read_again(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(PUBLISHED)
    new = ed25519_key()
    async with running_engine(redis_url, jwt_jwks=str(file), jwt_jwks_shortest_interval=0.05) as engine:
        assert await is_taken(engine, by_rsa())
        file.write_bytes(PUBLISHED[:-7])
        await asyncio.sleep(0.06)
        assert await refusal(engine, signed(new, "EdDSA", "new")) == "TOKEN_INVALID"
        assert await is_taken(engine, by_rsa())
        file.write_bytes(jwks(jwk_of(new, "new")))
        await asyncio.sleep(0.06)
        assert await is_taken(engine, signed(new, "EdDSA", "new"))


# --- sources that must not be trusted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://sso.example/jwks.json",
        "http://127.0.0.1.sso.example/jwks.json",
        "http://localhost@sso.example/jwks.json",
        "https://name:password@sso.example/jwks.json",
        "file:///etc/passwd",
        "ftp://sso.example/jwks.json",
        "https://",
        "https://[::1",
        "https://sso.example:port/",
    ],
)
async def test_a_url_that_nobody_should_trust_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^MASTERY_JWT_JWKS: ") as refused:
        await signing_keys_of(settings_for("redis://127.0.0.1", jwt_jwks=url))
    assert "password@" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "is not a JSON Web Key Set"),
        (b"{", "is not a JSON Web Key Set"),
        (b'{"keys": "none"}', "is not a JSON Web Key Set"),
        (pem_of(RSA), "is not a JSON Web Key Set"),
        (jwks(), "holds no key that may verify tokens"),
        (jwks(jwk_of(SHORT_RSA, "short"), private_jwk_of(EC, "ec")), "holds no key that may verify tokens"),
        (b" " * (LARGEST_DOCUMENT + 1), "is larger than 1048576 bytes"),
    ],
)
async def test_a_file_that_is_no_key_set_stops_the_start(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        await signing_keys_of(settings_for("redis://127.0.0.1", jwt_jwks=str(file)))
    assert str(refused.value) == f"MASTERY_JWT_JWKS: {file}: {reason}"


@pytest.mark.parametrize(
    "answer",
    [
        document(PUBLISHED, status=500),
        document(b" " * (LARGEST_DOCUMENT + 1)),
        redirect("file:///etc/hostname"),
        redirect("http://sso.example/jwks.json"),
        redirect("ftp://127.0.0.1/jwks.json"),
    ],
)
async def test_a_bad_answer_is_no_key_set(published: KeyServer, answer: Any) -> None:
    with key_server(b"") as server:
        server.answer = answer
        with pytest.raises(DamagedKeys):
            await JwksUrl(server.url, timeout=5).read()


async def test_a_redirect_to_where_we_would_ask_ourselves_is_followed(published: KeyServer) -> None:
    with key_server(b"") as server:
        server.answer = redirect(published.url)
        assert len(await JwksUrl(server.url, timeout=5).read()) == 3


async def test_an_answer_that_drips_is_given_up(published: KeyServer) -> None:
    gone = threading.Event()
    with key_server(b"") as server:
        server.answer = dripping(gone)
        try:
            with pytest.raises(DamagedKeys, match="too long"):
                await JwksUrl(server.url, timeout=0.2).read()
        finally:
            gone.set()


# --- the commands -----------------------------------------------------------------------------------------


def run(*arguments: str, **given: str) -> "subprocess.CompletedProcess[str]":
    settings = environment("redis://127.0.0.1:1", 0, **given)
    command = [sys.executable, "-m", "mastery_grpc", *arguments]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)


def test_no_token_is_issued_without_the_secret(tmp_path: Path) -> None:
    ended = run("token", "someone", MASTERY_JWT_SECRET="", MASTERY_JWT_JWKS=str(tmp_path / "jwks.json"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("mastery-grpc: MASTERY_JWT_SECRET: is not set")
    assert run("token", "someone").returncode == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_missing_file_of_keys_stops_the_start_with_one_line(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "jwks.json"
    ended = run("serve", MASTERY_JWT_JWKS=str(file), MASTERY_GRPC_WORKERS=workers)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"mastery-grpc: MASTERY_JWT_JWKS: {file}: No such file or directory"
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"jwt_secret": None}, "MASTERY_JWT_SECRET: is not set, nor is MASTERY_JWT_JWKS"),
        ({"jwt_secret": "short", "jwt_jwks": "jwks.json"}, "MASTERY_JWT_SECRET: must be at least 32 bytes long"),
        ({"jwt_secret": pem_of(RSA).decode()}, "MASTERY_JWT_SECRET: must not be a key or a certificate"),
    ],
)
async def test_a_secret_that_can_be_none_stops_the_start(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        await signing_keys_of(settings_for("redis://127.0.0.1", **given))
    assert str(refused.value).startswith(told)
