"""An issuer of tokens: his keys, what he publishes of them, and what he or a forger signs."""

import base64
import hashlib
import hmac
import time
from typing import Any
from warnings import catch_warnings

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey
Jwk = dict[str, Any]


def rsa_key(bits: int = 2048) -> RSAPrivateKey:
    return generate_rsa_key(public_exponent=65537, key_size=bits)


def ec_key() -> EllipticCurvePrivateKey:
    return generate_ec_key(SECP256R1())


def p384_key() -> EllipticCurvePrivateKey:
    return generate_ec_key(SECP384R1())


def ed25519_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def jwk_of(key: PrivateKey, key_id: str | None, **members: Any) -> Jwk:
    """Returns the public half as it is published; a member that is None is left out."""
    jwk = _as_jwk(key.public_key()) | {"kid": key_id, "use": "sig"} | members
    return {name: value for name, value in jwk.items() if value is not None}


def private_jwk_of(key: PrivateKey, key_id: str) -> Jwk:
    """Returns what should never be published."""
    return _as_jwk(key) | {"kid": key_id}


def secret_jwk_of(secret: bytes, key_id: str) -> Jwk:
    """Returns what should never be published either."""
    return {"kty": "oct", "kid": key_id, "k": _encoded(secret)}


def jwks(*keys: Any) -> bytes:
    return msgspec.json.encode({"keys": keys})


def pem_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def der_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def claims(**given: Any) -> dict[str, Any]:
    """Returns good claims with these changed; a claim that is None is left out."""
    good = {"sub": "someone", "role": "service", "exp": int(time.time()) + 3600}
    return {name: value for name, value in (good | given).items() if value is not None}


def signed(key: Any, algorithm: str, key_id: str | None = None, *, headers: Any = None, **given: Any) -> str:
    """Returns a token that whoever holds the key can make."""
    header = ({} if key_id is None else {"kid": key_id}) | (headers or {})
    with catch_warnings(action="ignore", category=InsecureKeyLengthWarning):  # a forger minds no warnings
        return jwt.PyJWS().encode(msgspec.json.encode(claims(**given)), key, algorithm=algorithm, headers=header)


def assembled(header: Any, payload: Any, signature: bytes = b"") -> str:
    """Returns a token of any parts, which no library would make."""
    return ".".join(
        _encoded(part if isinstance(part, bytes) else msgspec.json.encode(part))
        for part in (header, payload, signature)
    )


def signed_with_hmac(secret: bytes, header: dict[str, Any], payload: dict[str, Any]) -> str:
    """Returns a token signed with bytes that no library takes for a secret."""
    signing_input = assembled(header, payload).rpartition(".")[0]
    signature = hmac.new(secret, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{_encoded(signature)}"


def _as_jwk(key: Any) -> Jwk:
    algorithm: Any = OKPAlgorithm
    if isinstance(key, RSAPrivateKey | RSAPublicKey):
        algorithm = RSAAlgorithm
    elif isinstance(key, EllipticCurvePrivateKey | EllipticCurvePublicKey):
        algorithm = ECAlgorithm
    jwk: Jwk = algorithm.to_jwk(key, as_dict=True)
    return {name: value for name, value in jwk.items() if name != "key_ops"}


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()
