"""Certificate authorities of the tests' own, and what they certify."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.issuer import PrivateKey

HOST = "127.0.0.1"
_VALID = timedelta(hours=1)


@dataclass(frozen=True)
class Certified:
    """A certificate and its key, both in PEM."""

    certificate: bytes
    key: bytes
    encrypted_key: bytes
    serial_number: int

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Returns the files of the certificate and of the key."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return certificate, key


class Authority:
    """Certifies servers and clients."""

    def __init__(self, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = generate_private_key(SECP256R1())
        certificate = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = certificate.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def certify(self, name: str = HOST, key: PrivateKey | None = None) -> Certified:
        key = key or generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST)), x509.DNSName("localhost")])
        builder = _builder(subject, self._name, key).add_extension(names, critical=False)
        certificate = builder.sign(self._key, SHA256())
        return Certified(
            certificate=certificate.public_bytes(Encoding.PEM),
            key=_pem(key, NoEncryption()),
            encrypted_key=_pem(key, BestAvailableEncryption(b"password")),
            serial_number=certificate.serial_number,
        )


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )


def _pem(key: PrivateKey, encryption: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
