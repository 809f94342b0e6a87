"""The keys that a machine trusts: a public key alone, or a keyring with several keys and those that were revoked.

A keyring is a JSON file. Rotation: add the new key, sign with it, revoke the old one when no machine needs it. A
revoked key stays in the file, so that it cannot be trusted again by mistake.

    {"keys": {ID: {"name": "release 2026", "public_key": BASE64}}, "revoked": {ID: "laptop stolen"}}

The id of a key is the sha256 (hex) of its DER form.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from adedge.errors import UsageError, reason
from adedge.files import write_whole
from adedge.json_files import parse_json
from adedge.limits import JSON_BYTES, read_file
from adedge.specs import Record

_PEM = b"-----BEGIN"


KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Key(Record):
    """A trusted key: a name for people, and its 32 bytes in base64."""

    name: str
    public_key: str


class KeyringFile(Record):
    """The contents of a keyring: trusted keys and the reasons of revocation, both by key id."""

    keys: dict[KeyId, Key] = Field(default_factory=dict)
    revoked: dict[KeyId, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Keyring:
    """Keys to verify with, and the reasons why others were revoked, both by key id."""

    keys: Mapping[str, Ed25519PublicKey]
    revoked: Mapping[str, str]


def key_id(key: Ed25519PublicKey) -> str:
    """The sha256 (hex) of the key's DER form (SubjectPublicKeyInfo)."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def read_keyring(path: Path) -> Keyring:
    """Read a keyring, or a public key in PEM form as a keyring of one. Raises `UsageError`."""
    data = _read(path)
    if data.lstrip().startswith(_PEM):
        key = _public_key(data, path)
        return Keyring(keys={key_id(key): key}, revoked={})
    file = _parse(data, path)
    keys = {}
    for identity, entry in file.keys.items():
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(entry.public_key, validate=True))
            if key_id(key) != identity:
                raise ValueError("the id is of another key")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path} is damaged at key {identity[:16]} ({error}): restore it from a copy") from error
        if identity not in file.revoked:
            keys[identity] = key
    return Keyring(keys=keys, revoked=file.revoked)


def trust(path: Path, public: Path, name: str | None = None) -> str:
    """Add a public key to a keyring, which is created if need be; returns the key's id.

    Raises `UsageError` if the key was revoked there, or if either file is not what it should be.
    """
    key = _public_key(_read(public), public)
    file = _parse(_read(path), path) if path.exists() else KeyringFile()
    identity = key_id(key)
    if identity in file.revoked:
        raise UsageError(f"{public} was revoked in {path} ({file.revoked[identity]}): create a new key")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    entry = Key(name=name or public.stem, public_key=base64.b64encode(raw).decode("ascii"))
    _write(path, file.model_copy(update={"keys": {**file.keys, identity: entry}}))
    return identity


def revoke(path: Path, key: str, reason: str) -> str:
    """Revoke a key of a keyring by its name, the beginning of its id, or its .pub file; returns the id.

    Raises `UsageError` if no key, or more than one, fits.
    """
    file = _parse(_read(path), path)
    matches = [identity for identity, entry in file.keys.items() if entry.name == key] or [
        identity for identity in file.keys if key and identity.startswith(key)
    ]
    if not matches and Path(key).is_file():
        matches = [key_id(_public_key(_read(Path(key)), Path(key)))]  # also one that was never trusted here
    if len(matches) != 1:
        names = ", ".join(f"{entry.name} ({identity[:16]})" for identity, entry in file.keys.items()) or "none"
        raise UsageError(f"'{key}' fits {len(matches)} keys of {path}: give one of them ({names}), or a .pub file")
    _write(path, file.model_copy(update={"revoked": {**file.revoked, matches[0]: reason}}))
    return matches[0]


def read_entries(path: Path) -> KeyringFile:
    """The contents of a keyring, to show. Raises `UsageError`."""
    return _parse(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, JSON_BYTES, UsageError)
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist: give the .pub file that 'adedge keygen' wrote, or a keyring"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({reason(error)}): give a .pub file or a keyring that this user can read"
        ) from error


def _parse(data: bytes, path: Path) -> KeyringFile:
    try:
        return KeyringFile.model_validate(parse_json(data, str(path), UsageError))
    except (UsageError, ValidationError) as error:
        raise UsageError(
            f"{path} is neither a public key in PEM form nor a keyring: give the .pub file of the signer, or a file "
            "that 'adedge keyring' wrote"
        ) from error


def _write(path: Path, file: KeyringFile) -> None:
    try:
        write_whole(path, file.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({reason(error)}): choose another place") from error


def _public_key(data: bytes, path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a public key in PEM form: give the .pub file of the signer") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an Ed25519 key: give the .pub file that 'adedge keygen' wrote")
    return key
