"""TLS for the server's port: certificates from files, read again when the files change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

SHORTEST_RSA_KEY = 2048
CURVES = ("secp256r1", "secp384r1")

log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate chain and its key; with the authorities of clients these need
    certificates too."""

    certificate: Path
    key: Path
    client_authorities: Path | None = None


class UnusableTlsFile(Exception):
    """A file that TLS cannot be served with; `file` is one of those given, the message says why."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file


class ServerCertificates:
    """What the server shows its clients, and what it asks of them."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises UnusableTlsFile."""
        self._files = files
        self._stamp = self._stamp_of_files()
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that follow the files: those of one port."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self.newer,  # type: ignore[arg-type]  # the stubs leave out that None means no change
            require_client_authentication=self._files.client_authorities is not None,
        )

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what is in the files if they have changed and can be used, None to go on with what was.

        Called by gRPC before each handshake, on a thread of its own: it costs a look at the files, 10 µs.
        """
        if (stamp := self._stamp_of_files()) == self._stamp:
            return None
        # Remembered before reading: what is written meanwhile changes it again. And a pair of which only half
        # has been written yet is complained of once, not at each connection.
        self._stamp = stamp
        try:
            return self._read()
        except UnusableTlsFile as error:
            log.warning("changed TLS files cannot be used; going on with those before", cause=str(error))
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        chain, key = _content(files.certificate), _content(files.key)
        certificates = _certificates(files.certificate, chain)
        if _public_half(files.key, key) != _subject_key(files.certificate, certificates[0]):
            raise UnusableTlsFile(files.key, f"is not the key of the certificate in {files.certificate}")
        authorities = None
        if files.client_authorities is not None:
            authorities = _content(files.client_authorities)
            _certificates(files.client_authorities, authorities)
        log.info(
            "TLS certificate",
            serial_number=f"{certificates[0].serial_number:x}",
            expires=certificates[0].not_valid_after_utc.isoformat(),
        )
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)

    def _stamp_of_files(self) -> _Stamp:
        files = self._files
        given = (files.certificate, files.key, files.client_authorities)
        return tuple(_stamp(file) for file in given if file is not None)


def _stamp(file: Path) -> tuple[int, int, int, int]:
    """Returns what changes with the file's content, also where a link is pointed elsewhere."""
    try:
        state = file.stat()
    except OSError:  # told when it is read
        return 0, 0, 0, 0
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnusableTlsFile(file, error.strerror or str(error)) from None


def _certificates(file: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise UnusableTlsFile(file, "holds no certificate in PEM") from None


def _public_half(file: Path, content: bytes) -> bytes:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise UnusableTlsFile(file, "is encrypted; a key without a password is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableTlsFile(file, "holds no private key in PEM") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _subject_key(file: Path, certificate: x509.Certificate) -> bytes:
    """Returns the key that is certified, of a kind that every gRPC client shakes hands with."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    match key:
        case RSAPublicKey() if key.key_size >= SHORTEST_RSA_KEY:
            pass
        case EllipticCurvePublicKey() if key.curve.name in CURVES:
            pass
        case _:
            raise UnusableTlsFile(
                file, f"its key must be EC with P-256 or P-384, or RSA of {SHORTEST_RSA_KEY} bits and more"
            )
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
