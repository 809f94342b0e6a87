"""Ed25519 signatures of a bundle: of bundle.json and, through its digests, of every file.

bundle.sig is JSON: the algorithm, the raw public key and the signature of bundle.json's bytes, in base64. The key in it
proves nothing: a verifier must use a key that it already trusts.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adedge.bundle import MANIFEST, SIGNATURE, Bundle
from adedge.errors import BundleError, UsageError
from adedge.files import write_whole

ALGORITHM = "Ed25519"


def create_key(private: Path) -> Path:
    """Write a new private key (PEM, readable by its owner only) and its public key ``<name>.pub``; returns the latter.

    Raises `UsageError` if either file exists: keys are never overwritten.
    """
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise UsageError(f"{path} exists and would be overwritten: choose another name")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secret)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def sign(bundle: Bundle, private: Path) -> None:
    """Sign bundle.json after checking every file against it.

    Raises `BundleError` if a file does not match, `UsageError` if ``private`` is not an Ed25519 private key.
    """
    if problems := bundle.verify():
        raise BundleError(f"not signed: {problems[0]}")
    key = _private_key(private)
    manifest = (bundle.path / MANIFEST).read_bytes()
    record = {
        "algorithm": ALGORITHM,
        "public_key": _text(_raw(key.public_key())),
        "signature": _text(key.sign(manifest)),
    }
    write_whole(bundle.path / SIGNATURE, json.dumps(record, indent=2) + "\n")


def require(bundle: Bundle, public: Path) -> None:
    """Require that the owner of the key ``public`` signed the bundle in its present state.

    Raises `BundleError` if the signature is missing, damaged, by another key, or of another bundle.json; `UsageError`
    if ``public`` is not an Ed25519 public key.
    """
    trusted = _public_key(public)
    path = bundle.path / SIGNATURE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(record["signature"], validate=True)
        signer = base64.b64decode(record["public_key"], validate=True)
    except FileNotFoundError:
        raise BundleError(f"{bundle.path} is not signed: sign it with 'adedge sign'") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: sign the bundle again with 'adedge sign'") from error
    if signer != _raw(trusted):
        raise BundleError(
            f"{bundle.path} is signed by another key, not {public}: do not use it unless you trust that key"
        )
    try:
        trusted.verify(signature, (bundle.path / MANIFEST).read_bytes())
    except InvalidSignature:
        raise BundleError(
            f"{bundle.path / MANIFEST} was changed after it was signed: restore the bundle, or sign it again"
        ) from None


def signer_of(bundle: Bundle) -> str | None:
    """The public key (base64) in bundle.sig, or None if it has none. Does not verify the signature."""
    try:
        record = json.loads((bundle.path / SIGNATURE).read_text(encoding="utf-8"))
        return str(record["public_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: create a key with 'adedge keygen {path}'") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a private key in PEM form: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key: create one with 'adedge keygen'")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the .pub file that 'adedge keygen' wrote") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a public key in PEM form: give the .pub file of the signer") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an Ed25519 key: give the .pub file that 'adedge keygen' wrote")
    return key


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
