"""TLS on the server's port: who is let in, how certificates are replaced, and what is served without it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP521R1, generate_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mastery_grpc.app import running_server
from mastery_grpc.assembly import certificates_of
from mastery_grpc.rpc.server import REFLECTION_V1
from mastery_grpc.settings import SettingsError
from tests.integration.serving import (
    SERVICE_NAME,
    Client,
    bearer,
    eventually,
    failure_of,
    settings_for,
    token,
)
from tests.integration.test_server_process import started
from tests.issuer import PrivateKey, ed25519_key, p384_key, rsa_key
from tests.real.certificates import HOST, Authority, Certified
from tests.real.processes import free_ports

AUTHORITY, STRANGER = Authority("authority"), Authority("stranger")
SERVER, SUCCESSOR = AUTHORITY.certify(), AUTHORITY.certify()
CLIENT, STRANGE_CLIENT = AUTHORITY.certify("client"), STRANGER.certify("client")
NOBODY = ()


@dataclass
class SecureEngine:
    """A server with TLS, as its clients see it."""

    port: int
    health_port: int
    directory: Path
    authority: bytes = AUTHORITY.certificate
    options: Any = field(default_factory=lambda: [("grpc.use_local_subchannel_pool", 1)])

    @asynccontextmanager
    async def client(
        self, identity: Certified | None = None, *, authority: bytes | None = None, metadata: Any = None
    ) -> AsyncIterator[Client]:
        """Yields a client on a connection of its own, with a token unless told otherwise."""
        credentials = grpc.ssl_channel_credentials(
            authority or self.authority,
            None if identity is None else identity.key,
            None if identity is None else identity.certificate,
        )
        address = f"{HOST}:{self.port}"
        async with grpc.aio.secure_channel(address, credentials, options=self.options) as channel:
            yield Client(channel, bearer(token()) if metadata is None else metadata)

    @asynccontextmanager
    async def plain(self, port: int) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=self.options) as channel:
            yield channel

    async def serial_number(self) -> int:
        """Returns which certificate a new connection is shown."""
        pem = await asyncio.to_thread(ssl.get_server_certificate, (HOST, self.port))
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    def replace(self, certified: Certified) -> None:
        certified.write(self.directory, "server")


@asynccontextmanager
async def secure_engine(redis_url: str, directory: Path, *, mutual: bool = False) -> AsyncIterator[SecureEngine]:
    certificate, key = SERVER.write(directory, "server")
    authorities = directory / "clients.crt"
    authorities.write_bytes(AUTHORITY.certificate)
    [health_port] = free_ports(1)
    settings = settings_for(
        redis_url,
        tls_cert=str(certificate),
        tls_key=str(key),
        tls_client_ca=str(authorities) if mutual else "",
        grpc_health_port=health_port,
    )
    async with running_server(settings) as port:
        engine = SecureEngine(port, health_port, directory)

        async def is_ready() -> bool:
            async with engine.plain(health_port) as channel:
                return await status(channel) == health_pb2.HealthCheckResponse.SERVING

        await eventually(is_ready)
        yield engine


@pytest.fixture
async def engine(redis_url: str, tmp_path: Path) -> AsyncIterator[SecureEngine]:
    async with secure_engine(redis_url, tmp_path) as engine:
        yield engine


@pytest.fixture
async def mutual(redis_url: str, tmp_path: Path) -> AsyncIterator[SecureEngine]:
    async with secure_engine(redis_url, tmp_path, mutual=True) as engine:
        yield engine


async def status(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status)


# --- who is let in ----------------------------------------------------------------------------------------


async def test_a_client_with_tls_is_served(engine: SecureEngine) -> None:
    async with engine.client() as client:
        assert (await client.calculate()).mastery.version == 1
        assert await status(client.channel, SERVICE_NAME) == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_without_tls_is_not_served(engine: SecureEngine) -> None:
    async with engine.plain(engine.port) as channel:
        failure = await failure_of(Client(channel, bearer(token())).get())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert (await failure_of(status(channel))).code is grpc.StatusCode.UNAVAILABLE


async def test_a_client_who_trusts_another_authority_is_not_fooled(engine: SecureEngine) -> None:
    async with engine.client(authority=STRANGER.certificate) as client:
        assert (await failure_of(client.get())).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
async def test_old_versions_of_tls_are_refused(engine: SecureEngine, version: str) -> None:
    def shake_hands() -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        with socket.create_connection((HOST, engine.port), 5) as raw, context.wrap_socket(raw) as secure:
            return secure.version()

    if version in ("TLSv1_2", "TLSv1_3"):
        assert (await asyncio.to_thread(shake_hands) or "").replace(".", "_") == version
    else:
        # As the server says it, or as he hangs up; not as a client who knows no such version.
        with pytest.raises((ssl.SSLError, ConnectionError), match=r"EOF|ALERT_PROTOCOL_VERSION|reset"):
            await asyncio.to_thread(shake_hands)


@pytest.mark.parametrize("identity", [CLIENT, STRANGE_CLIENT, None])
async def test_a_token_is_needed_whatever_certificate_a_client_has(
    engine: SecureEngine, identity: Certified | None
) -> None:
    async with engine.client(identity, metadata=NOBODY) as client:
        assert (await failure_of(client.get())).reason == "TOKEN_MISSING"


async def test_with_client_authorities_a_certified_client_is_served(mutual: SecureEngine) -> None:
    async with mutual.client(CLIENT) as client:
        assert (await client.calculate()).mastery.version == 1
    async with mutual.client(CLIENT, metadata=NOBODY) as client:
        assert (await failure_of(client.get())).reason == "TOKEN_MISSING"


@pytest.mark.parametrize("identity", [None, STRANGE_CLIENT])
async def test_with_client_authorities_nobody_else_is_served(
    mutual: SecureEngine, identity: Certified | None
) -> None:
    async with mutual.client(identity) as client:
        failure = await failure_of(client.get())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "")
        assert (await failure_of(status(client.channel))).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("key", [rsa_key(), p384_key()])
async def test_certificates_of_other_kinds_are_served_too(engine: SecureEngine, key: PrivateKey) -> None:
    engine.replace(AUTHORITY.certify(key=key))
    async with engine.client() as client:
        await client.calculate()


@pytest.mark.parametrize("key", [rsa_key(1024), ed25519_key(), generate_private_key(SECP521R1())])
def test_a_certificate_that_clients_would_not_take_stops_the_start(tmp_path: Path, key: PrivateKey) -> None:
    certificate, key_file = AUTHORITY.certify(key=key).write(tmp_path, "server")
    with pytest.raises(SettingsError, match=r"^MASTERY_TLS_CERT: .*its key must be"):
        certificates_of(settings_for("redis://x", tls_cert=str(certificate), tls_key=str(key_file)))


# --- certificates that are replaced -----------------------------------------------------------------------


async def test_a_replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on(engine: SecureEngine) -> None:
    async with engine.client() as before:
        await before.calculate()
        assert await engine.serial_number() == SERVER.serial_number
        engine.replace(SUCCESSOR)
        assert await engine.serial_number() == SUCCESSOR.serial_number
        await before.get()
        async with engine.client() as after:
            await after.get()


async def test_a_certificate_behind_a_link_is_replaced_as_kubernetes_does_it(
    redis_url: str, tmp_path: Path
) -> None:
    for name, certified in (("first", SERVER), ("second", SUCCESSOR)):
        (tmp_path / name).mkdir()
        certified.write(tmp_path / name, "tls")
    link = tmp_path / "current"
    link.symlink_to("first")
    [health_port] = free_ports(1)
    settings = settings_for(
        redis_url,
        tls_cert=str(link / "tls.crt"),
        tls_key=str(link / "tls.key"),
        grpc_health_port=health_port,
    )
    async with running_server(settings) as port:
        engine = SecureEngine(port, health_port, tmp_path)
        assert await engine.serial_number() == SERVER.serial_number
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").rename(link)
        assert await engine.serial_number() == SUCCESSOR.serial_number


async def test_an_authority_of_clients_is_replaced(mutual: SecureEngine) -> None:
    (mutual.directory / "clients.crt").write_bytes(STRANGER.certificate)
    async with mutual.client(STRANGE_CLIENT) as client:
        await client.calculate()
    async with mutual.client(CLIENT) as client:
        assert (await failure_of(client.get())).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("half", ["certificate", "part of it", "nothing", "another key", "no file"])
async def test_a_half_written_certificate_leaves_the_old_one(
    engine: SecureEngine, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = engine.directory / "server.crt", engine.directory / "server.key"
    match half:
        case "certificate":
            certificate.write_bytes(SUCCESSOR.certificate)
        case "part of it":
            certificate.write_bytes(SUCCESSOR.certificate[:200])
        case "nothing":
            certificate.write_bytes(b"")
        case "another key":
            key.write_bytes(SUCCESSOR.key)
        case "no file":
            key.unlink()
    for _ in range(3):
        assert await engine.serial_number() == SERVER.serial_number
    assert capsys.readouterr().out.count("changed TLS files cannot be used") == 1
    engine.replace(SUCCESSOR)
    assert await engine.serial_number() == SUCCESSOR.serial_number


# --- health without TLS -----------------------------------------------------------------------------------


async def test_health_is_served_without_tls_on_its_own_port(engine: SecureEngine) -> None:
    async with engine.plain(engine.health_port) as channel:
        for service in ("", SERVICE_NAME, "liveness"):
            assert await status(channel, service) == health_pb2.HealthCheckResponse.SERVING


async def test_health_without_tls_needs_no_certificate_where_clients_need_one(mutual: SecureEngine) -> None:
    async with mutual.plain(mutual.health_port) as channel:
        assert await status(channel) == health_pb2.HealthCheckResponse.SERVING


async def test_nothing_else_is_served_on_the_port_of_health(engine: SecureEngine) -> None:
    async with engine.plain(engine.health_port) as channel:
        failure = await failure_of(Client(channel, bearer(token())).get())
        assert failure.code is grpc.StatusCode.UNIMPLEMENTED
        for method in (f"{REFLECTION_V1}/ServerReflectionInfo", "grpc.reflection.v1alpha.ServerReflection/x"):
            call: Any = channel.unary_unary(f"/{method}")
            assert (await failure_of(call(b"", timeout=5))).code is grpc.StatusCode.UNIMPLEMENTED


async def test_without_tls_the_port_of_health_is_not_opened(redis_url: str) -> None:
    [health_port] = free_ports(1)
    async with running_server(settings_for(redis_url, grpc_health_port=health_port)):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, health_port), 5)


async def test_several_processes_share_both_ports_and_tell_their_number(redis_url: str, tmp_path: Path) -> None:
    certificate, key = SERVER.write(tmp_path, "server")
    [health_port] = free_ports(1)
    with started(
        redis_url,
        tmp_path,
        MASTERY_GRPC_WORKERS="2",
        MASTERY_TLS_CERT=str(certificate),
        MASTERY_TLS_KEY=str(key),
        MASTERY_GRPC_HEALTH_PORT=str(health_port),
    ) as server:

        async def both_serve() -> bool:
            assert server.process.poll() is None, server.output()
            return [entry.get("health_port") for entry in server.entries() if entry["event"] == "serving"] == [
                health_port,
                health_port,
            ]

        await eventually(both_serve, within=30)
        engine = SecureEngine(server.port, health_port, tmp_path)
        async with engine.client() as client:
            assert (await client.calculate()).mastery.version == 1
        async with engine.plain(health_port) as channel:
            assert await status(channel, "liveness") == health_pb2.HealthCheckResponse.SERVING


# --- wrong files ------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, str], str]] = {
    "a certificate alone": ({"tls_cert": "server.crt"}, "MASTERY_TLS_KEY: is not set"),
    "a key alone": ({"tls_key": "server.key"}, "MASTERY_TLS_CERT: is not set"),
    "authorities alone": ({"tls_client_ca": "ca.crt"}, "MASTERY_TLS_CERT: is not set"),
    "no such certificate": (
        {"tls_cert": "nowhere.crt", "tls_key": "server.key"},
        "MASTERY_TLS_CERT: {}/nowhere.crt: No such file or directory",
    ),
    "no such key": (
        {"tls_cert": "server.crt", "tls_key": "nowhere.key"},
        "MASTERY_TLS_KEY: {}/nowhere.key: No such file or directory",
    ),
    "a directory": ({"tls_cert": ".", "tls_key": "server.key"}, "MASTERY_TLS_CERT: {}: Is a directory"),
    "a certificate that is none": (
        {"tls_cert": "garbage", "tls_key": "server.key"},
        "MASTERY_TLS_CERT: {}/garbage: holds no certificate in PEM",
    ),
    "a key that is none": (
        {"tls_cert": "server.crt", "tls_key": "garbage"},
        "MASTERY_TLS_KEY: {}/garbage: holds no private key in PEM",
    ),
    "files in each other's place": (
        {"tls_cert": "server.key", "tls_key": "server.crt"},
        "MASTERY_TLS_CERT: {}/server.key: holds no certificate in PEM",
    ),
    "a key with a password": (
        {"tls_cert": "server.crt", "tls_key": "encrypted.key"},
        "MASTERY_TLS_KEY: {}/encrypted.key: is encrypted",
    ),
    "a key of another certificate": (
        {"tls_cert": "server.crt", "tls_key": "other.key"},
        "MASTERY_TLS_KEY: {0}/other.key: is not the key of the certificate in {0}/server.crt",
    ),
    "authorities that are none": (
        {"tls_cert": "server.crt", "tls_key": "server.key", "tls_client_ca": "garbage"},
        "MASTERY_TLS_CLIENT_CA: {}/garbage: holds no certificate in PEM",
    ),
}


def written(directory: Path) -> Path:
    SERVER.write(directory, "server")
    SUCCESSOR.write(directory, "other")
    (directory / "encrypted.key").write_bytes(SERVER.encrypted_key)
    (directory / "garbage").write_bytes(b"\x00garbage")
    (directory / "ca.crt").write_bytes(AUTHORITY.certificate)
    return directory


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_told_in_one_line_under_the_name_of_its_setting(tmp_path: Path, kind: str) -> None:
    files, told = WRONG[kind]
    given = {name: str(written(tmp_path) / file) for name, file in files.items()}
    with pytest.raises(SettingsError) as refused:
        certificates_of(settings_for("redis://127.0.0.1", **given))
    assert str(refused.value).startswith(told.format(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_wrong_file_stops_the_start(redis_url: str, tmp_path: Path, workers: str) -> None:
    given = {"MASTERY_TLS_CERT": str(written(tmp_path) / "server.crt"), "MASTERY_GRPC_WORKERS": workers}
    with started(redis_url, tmp_path, **given) as server:
        assert await server.ended(within=20) == 1
        assert "mastery-grpc: MASTERY_TLS_KEY: is not set" in server.output().splitlines()[-1]
        assert "Traceback" not in server.output()
