"""What must not get out: secrets in logs, the environment, calls without TLS, a start without secrets."""

import asyncio
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from mastery_grpc.application.callers import Role
from tests.hardening.frames import connection, opening
from tests.hardening.place import REDIS_PASSWORD, Fault, Place, redis_with_password
from tests.integration.serving import SECRET, Engine, bearer, quiz_event, token
from tests.integration.test_server_process import COMMAND, environment, started
from tests.real.certificates import Authority
from tests.real.processes import ending_with_us, free_ports, scratch_directory

PATIENCE = 20.0


# --- what a process shows ---------------------------------------------------------------------------------


async def no_secret_is_logged(place: Place) -> str:
    """the log after all these attacks: the secret, the token, the password of Redis, whole requests"""
    log = place.server.output()
    secrets = {"secret": SECRET, "token": place.token, "password": REDIS_PASSWORD, "signature": place.token[-20:]}
    if found := [name for name, secret in secrets.items() if secret in log]:
        raise Fault(f"in the log: {found}")
    if "Traceback" in log:
        raise Fault(f"an exception is in the log: {log[log.index('Traceback') - 500 :][:1500]}")
    return f"{len(log):,} characters"


async def the_metrics_port_shows_metrics_alone(place: Place) -> str:
    """/metrics, and /, /env, /debug, /config and others beside: no environment, no secret, no student"""
    shown = ""
    for path in ("/metrics", "/", "/env", "/debug/pprof", "/config", "/../../etc/passwd", "/metrics?name[]=x"):
        request = urllib.request.Request(f"http://127.0.0.1:{place.metrics_port}{path}")
        try:
            shown += await asyncio.to_thread(_read, request)
        except urllib.error.HTTPError as error:
            shown += error.read().decode()
    for name in (SECRET, REDIS_PASSWORD, place.token, "bystander", "PATH=", "root:", "MASTERY_"):
        if name in shown:
            raise Fault(f"{name[:12]!r} is shown")
    if "process_" not in shown and "python_" not in shown and "# HELP" not in shown:
        raise Fault("no metrics are shown")
    return f"{len(shown):,} characters"


def _read(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read()).decode()


async def the_environment_is_for_its_owner(place: Place) -> str:
    """the secret in the command of the process, and who may read its environment"""
    process = Path(f"/proc/{place.server.process.pid}")
    if SECRET.encode() in (process / "cmdline").read_bytes():
        raise Fault("the secret is in the command")
    mode = (process / "environ").stat().st_mode & 0o077
    if mode:
        raise Fault(f"others may read the environment: {mode:o}")
    return "not in the command; environment 0400"


# --- the start --------------------------------------------------------------------------------------------


async def no_start_without_a_secret() -> str:
    """a start with neither a secret nor keys, and with a secret too short"""
    told = []
    for given in ({"MASTERY_JWT_SECRET": ""}, {"MASTERY_JWT_SECRET": "too-short"}):
        ended = await asyncio.to_thread(_stopped, given)
        lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        if ended.returncode == 0 or len(lines) != 1 or "MASTERY_JWT" not in lines[0]:
            raise Fault(f"ended with {ended.returncode}: {ended.stderr[-500:]!r}")
        if "too-short" in ended.stderr:
            raise Fault("the secret is told")
        told.append(lines[0])
    return f"one line each: {told[0]!r}"


def _stopped(given: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    process = subprocess.Popen(
        COMMAND,
        env=environment("redis://127.0.0.1:1/0", 0) | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process, ending_with_us(process):
        stdout, stderr = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(COMMAND, process.returncode, stdout, stderr)


# --- TLS --------------------------------------------------------------------------------------------------


async def no_plaintext_where_tls_is_required() -> str:
    """calls without TLS, with an old TLS and with TLS, where MASTERY_TLS_CERT and _KEY are set"""
    with redis_with_password() as (_, url), scratch_directory("mastery-tls-") as directory:
        authority = Authority("hardening")
        certificate, key = authority.certify().write(directory, "server")
        [health_port] = free_ports(1)
        given = {
            "MASTERY_TLS_CERT": str(certificate),
            "MASTERY_TLS_KEY": str(key),
            "MASTERY_GRPC_HEALTH_PORT": str(health_port),
        }
        with started(url, directory, **given) as server:
            credentials = grpc.ssl_channel_credentials(authority.certificate)
            async with grpc.aio.secure_channel(f"localhost:{server.port}", credentials) as channel:
                await asyncio.wait_for(channel.channel_ready(), PATIENCE)
                client = Engine(server.port, channel).client_with(bearer(token(Role.SERVICE)))
                [result] = await client.ingest(quiz_event())
                if not result.accepted:
                    raise Fault("a call with TLS is refused")
            await _nothing_in_plaintext(server.port)
            await _no_old_tls(server.port)
            await _health_alone(health_port)
    return "closed; TLS 1.2 and newer only; health alone on its own port"


async def _nothing_in_plaintext(port: int) -> None:
    async with connection(port) as plain:
        await plain.send(opening())
        said = await plain.answer(1.0)
        if said and said[0] != 0x15:  # an alert of TLS is all that may be heard
            raise Fault(f"answered in plaintext: {said[:40]!r}")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Engine(port, channel).client_with(bearer(token(Role.SERVICE)))
        try:
            await client.send("GetMastery", b"", deadline=2)
        except grpc.aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise Fault(f"answered in plaintext: {error.code().name}") from None
        else:
            raise Fault("answered in plaintext")


async def _no_old_tls(port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (ssl.SSLError, ConnectionError):
        return
    writer.close()
    raise Fault("TLS 1.1 is spoken")


async def _health_alone(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await Engine(port, channel).health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=5)
        client = Engine(port, channel).client_with(bearer(token(Role.SERVICE)))
        try:
            await client.get()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return
            raise Fault(f"on the port for health: {error.code().name}") from None
        raise Fault("the port for health serves students")


CHECKS = (the_metrics_port_shows_metrics_alone, the_environment_is_for_its_owner, no_secret_is_logged)
ALONE = (no_start_without_a_secret, no_plaintext_where_tls_is_required)
