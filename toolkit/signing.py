"""Signatures: who vouches for a bundle, for which product, in which version, and until when.

bundle.sig is a DSSE envelope (Dead Simple Signing Envelope, protocol version 1) with Ed25519 signatures of an in-toto
Statement v1, the form that OpenSSF Model Signing builds on too. The statement's subject is the sha256 of bundle.json,
which holds the digest of every other file; its predicate is a `Claim`. Nothing in the envelope proves anything by
itself: a verifier uses keys that it already trusts (see `adedge.keyring`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from adedge.bundle import Bundle
from adedge.errors import BundleError, OutputError, UsageError, reason
from adedge.escaping import command_line
from adedge.files import locked, write_new, write_whole
from adedge.json_files import parse_json
from adedge.keyring import Keyring, key_id, read_keyring
from adedge.limits import JSON_BYTES, read_file
from adedge.manifest import MANIFEST, SIGNATURE
from adedge.onnx_data import refuse_external
from adedge.specs import Record

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:adedge:bundle:v1"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains a control character")
    return text


class Claim(Record):
    """What a signature says about a bundle.

    ``product`` names what the detector inspects (printable), ``version`` counts its releases upwards, ``signed`` is the
    time of the signature (ISO 8601 with a time zone), and ``expires`` the last day, in UTC, on which the bundle is
    accepted, None for ever.
    """

    product: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
    version: int = Field(ge=0, lt=2**63, strict=True)
    signed: AwareDatetime
    expires: date | None = None


_REMEDY = {
    "product": "a product is named by 1 to 200 printable characters: give it another name with --product",
    "version": "a version is a whole number from 0 to 2^63 - 1: give another --version",
    "expires": "a signature expires on a day: give it as YYYY-MM-DD",
}


def create_key(private: Path) -> Path:
    """Write a new private key (PEM, readable by its owner only) and its public key ``<name>.pub``; returns the latter.

    Raises `UsageError` if either file exists: keys are never overwritten. Writes both files or none.
    """
    public = private.with_name(private.name + ".pub")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shared = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        write_new(public, shared)
        try:
            write_new(private, secret, mode=0o600)
        except BaseException:
            public.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise UsageError(f"{error.filename} exists and would be overwritten: choose another name") from None
    return public


def sign(
    bundle: Bundle,
    private: Path,
    *,
    product: str | None = None,
    version: int | None = None,
    expires: date | None = None,
) -> tuple[Bundle, Claim]:
    """Sign a bundle after checking every file in it; returns the signed bundle and what was claimed.

    ``product`` defaults to the bundle's name without its suffix, ``version`` to the time in UTC as YYYYMMDDhhmmss,
    which grows by itself. Raises `BundleError` if a file does not match, `UsageError` if ``private`` is not an Ed25519
    private key, ``expires`` has passed, or ``product`` or ``version`` is not possible.
    """
    now = datetime.now(timezone.utc).replace(microsecond=0)
    if expires is not None and expires < now.date():
        raise UsageError(f"{expires} has passed: choose a later day for the signature to expire")
    try:
        claim = Claim(
            product=bundle.path.resolve().stem if product is None else product,
            version=int(now.strftime("%Y%m%d%H%M%S")) if version is None else version,
            signed=now,
            expires=expires,
        )
    except ValidationError as error:
        raise UsageError(_REMEDY[str(error.errors()[0]["loc"][0])]) from error
    key = _private_key(private)

    def envelope(manifest: bytes) -> bytes:
        statement = {
            "_type": STATEMENT,
            "subject": [{"name": MANIFEST, "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}],
            "predicateType": PREDICATE,
            "predicate": claim.model_dump(mode="json"),
        }
        payload = json.dumps(statement, sort_keys=True).encode()
        signature = {"keyid": key_id(key.public_key()), "sig": _text(key.sign(encoding_to_sign(PAYLOAD, payload)))}
        record = {"payloadType": PAYLOAD, "payload": _text(payload), "signatures": [signature]}
        return (json.dumps(record, indent=2) + "\n").encode()

    try:
        with bundle.edit(sign=envelope) as draft:
            for name in bundle.manifest.files:
                if name.endswith(".onnx"):
                    refuse_external(bundle.read(name), str(bundle.path / name), BundleError)
    except BundleError as error:
        raise BundleError(f"not signed: {error}") from error
    return draft.bundle, claim


def require(bundle: Bundle, keys: Path, *, now: datetime | None = None) -> Claim:
    """Require a signature by one of ``keys``, a public key (PEM) or a keyring, of the bundle as it was opened.

    Returns what the signature claims. Raises `BundleError` if the signature is missing, damaged, by an unknown or
    revoked key, of another bundle.json, or expired at the time ``now`` (default: the present), `UsageError` if ``keys``
    is not usable.
    """
    return _verify(bundle, read_keyring(keys), keys, now or datetime.now(timezone.utc))


def accept(
    bundle: Bundle, keys: Path, expect: str | None = None, *, remember: bool = True, state: Path | None = None
) -> Claim:
    """`require`, and with ``expect`` refuse other products, and versions older than any accepted on this machine.

    The newest version of each product is kept in ``state`` (default: `state_file`), which changes only with
    ``remember``. Raises `BundleError` too for another product or an older version, `OutputError` if the version
    cannot be remembered.
    """
    claim = require(bundle, keys)
    if expect is None:
        return claim
    if claim.product != expect:
        raise BundleError(f"{bundle.path} was signed for '{claim.product}', and '{expect}' is expected: use its bundle")
    path = state or state_file()

    def accepted() -> dict[str, int]:
        versions = _read_versions(path)
        if claim.version < (newest := versions.get(expect, 0)):
            raise BundleError(
                f"{bundle.path} is version {claim.version} of '{expect}', and this machine has accepted version "
                f"{newest}: use that or a newer one, sign this one again with a higher --version, or remove '{expect}' "
                f"from {path}"
            )
        return versions

    if accepted().get(expect) == claim.version or not remember:
        return claim
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name("versions.lock")):
            versions = accepted()  # another inspection may have accepted a bundle just now
            write_whole(path, json.dumps({**versions, expect: claim.version}, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({reason(error)}), so an older bundle could not be refused later: "
            "set ADEDGE_STATE to a directory that this user may write"
        ) from error
    return claim


def state_file() -> Path:
    """Where the newest accepted version of each product is remembered.

    In $ADEDGE_STATE, the first directory of $STATE_DIRECTORY (which systemd sets for a service with StateDirectory=),
    $XDG_STATE_HOME/adedge, or ~/.local/state/adedge. Raises `UsageError` if none of these exists.
    """
    services = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    for folder, inner in (
        (os.environ.get("ADEDGE_STATE"), ""),
        (services, ""),
        (os.environ.get("XDG_STATE_HOME"), "adedge"),
    ):
        if folder:
            return Path(folder) / inner / "versions.json"
    try:
        return Path.home() / ".local" / "state" / "adedge" / "versions.json"
    except RuntimeError:
        raise UsageError("this user has no home directory: set ADEDGE_STATE to a directory that it may write") from None


def claim_of(bundle: Bundle) -> tuple[Claim, str] | None:
    """What bundle.sig claims and the id of the key that it names, None if not signed or damaged. Verifies nothing."""
    try:
        payload, signatures = _open_envelope(bundle)
        return Claim.model_validate(_statement(payload)["predicate"]), str(signatures[0]["keyid"])
    except (BundleError, ValueError, KeyError, TypeError, IndexError):
        return None


def encoding_to_sign(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, over which signatures are made."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _verify(bundle: Bundle, keyring: Keyring, keys: Path, now: datetime) -> Claim:
    path = bundle.path / SIGNATURE
    damaged = BundleError(f"{path} is damaged: sign the bundle again with 'adedge sign'")
    payload, signatures = _open_envelope(bundle)
    signed = encoding_to_sign(PAYLOAD, payload)
    named, valid = set(), False
    try:
        for signature in signatures:
            identity = signature.get("keyid", "")
            named.add(identity)
            if (key := keyring.keys.get(identity)) is not None:
                key.verify(base64.b64decode(signature["sig"], validate=True), signed)
                valid = True
    except (InvalidSignature, AttributeError, KeyError, TypeError, ValueError):
        raise damaged from None
    if not valid:
        if revoked := named & keyring.revoked.keys():
            reason = keyring.revoked[revoked.pop()]
            raise BundleError(
                f"{bundle.path} is signed by a key that was revoked ({reason}): sign it again with another key"
            )
        raise BundleError(
            f"{bundle.path} is signed by another key, not one of {keys}: do not use it unless you trust that key"
        )
    try:
        statement = _statement(payload)
        claim = Claim.model_validate(statement["predicate"])
        (subject,) = statement["subject"]
        digest = subject["digest"]["sha256"]
    except (BundleError, ValueError, KeyError, TypeError, ValidationError):
        raise damaged from None
    if digest != hashlib.sha256(bundle.manifest_bytes).hexdigest():
        raise BundleError(
            f"{bundle.path / MANIFEST} was changed after it was signed: restore the bundle, or sign it again"
        )
    if claim.expires is not None and now.date() > claim.expires:
        raise BundleError(f"the signature of {bundle.path} expired on {claim.expires}: sign the bundle again")
    if claim.expires is not None and now + timedelta(days=1) < claim.signed:
        raise BundleError(
            f"this machine's clock says {now.date()} and {bundle.path} was signed on {claim.signed.date()}, so its "
            "expiry cannot be checked: set the clock"
        )
    return claim


def _open_envelope(bundle: Bundle) -> tuple[bytes, list[dict[str, Any]]]:
    """The payload and the signatures of bundle.sig. Raises `BundleError`."""
    if bundle.signature is None:
        raise BundleError(f"{bundle.path} is not signed: sign it with 'adedge sign'")
    try:
        record = parse_json(bundle.signature, "", BundleError)
        payload = base64.b64decode(record["payload"], validate=True)
        if record["payloadType"] != PAYLOAD or not isinstance(record["signatures"], list):
            raise ValueError("not an envelope of adedge")
        return payload, record["signatures"]
    except (BundleError, ValueError, KeyError, TypeError):
        raise BundleError(f"{bundle.path / SIGNATURE} is damaged: sign the bundle again with 'adedge sign'") from None


def _statement(payload: bytes) -> dict[str, Any]:
    """The statement in a payload. Raises `BundleError` or `ValueError` unless it is one about a bundle."""
    statement = parse_json(payload, "the statement", BundleError)
    if (statement.get("_type"), statement.get("predicateType")) != (STATEMENT, PREDICATE):
        raise ValueError("not a statement about a bundle")
    return statement


def _read_versions(path: Path) -> dict[str, int]:
    remedy = "restore it, or remove it to accept any version once"
    try:
        values = parse_json(read_file(path, JSON_BYTES, BundleError), str(path), BundleError, remedy)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({reason(error)}): {remedy}") from error
    if not all(type(version) is int for version in values.values()):
        raise BundleError(f"{path} is damaged: {remedy}")
    return values


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_file(path, JSON_BYTES, UsageError), password=None)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: create a key with '{command_line('keygen', path)}'") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}): give the file of the private key") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a private key in PEM form: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key: create one with 'adedge keygen'")
    return key


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
