"""A keyring trusts what was added, refuses what was revoked, and is never half believed."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adedge.errors import UsageError
from adedge.keyring import key_id, read_entries, read_keyring, revoke, trust
from adedge.signing import create_key


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return create_key(tmp_path / "release")


@pytest.fixture
def keyring(tmp_path: Path, public: Path) -> Path:
    trust(tmp_path / "keyring.json", public)
    return tmp_path / "keyring.json"


def test_the_id_is_the_digest_of_the_der_form(public: Path) -> None:
    (key,) = read_keyring(public).keys.values()
    lines = public.read_text().splitlines()
    der = base64.b64decode("".join(line for line in lines if not line.startswith("-")))
    assert key_id(key) == hashlib.sha256(der).hexdigest()


def test_a_public_key_alone_is_a_keyring_of_one(public: Path, keyring: Path) -> None:
    assert read_keyring(public).keys.keys() == read_keyring(keyring).keys.keys()


def test_adding_a_key_twice_changes_its_name_alone(public: Path, keyring: Path) -> None:
    assert [entry.name for entry in read_entries(keyring).keys.values()] == ["release"]
    trust(keyring, public, "line 3")
    assert [entry.name for entry in read_entries(keyring).keys.values()] == ["line 3"]


@pytest.mark.parametrize("by", ["name", "id", "file"])
def test_a_key_is_revoked_by_name_id_or_file_and_cannot_come_back(public: Path, keyring: Path, by: str) -> None:
    (identity,) = read_keyring(keyring).keys
    revoke(keyring, {"name": "release", "id": identity[:8], "file": str(public)}[by], "lost")
    assert read_keyring(keyring).keys == {}
    assert read_keyring(keyring).revoked == {identity: "lost"}
    with pytest.raises(UsageError, match=r"was revoked in .* \(lost\)"):
        trust(keyring, public)


def test_a_key_that_was_never_trusted_can_be_revoked_by_its_file(tmp_path: Path, keyring: Path) -> None:
    stolen = create_key(tmp_path / "stolen")
    revoke(keyring, str(stolen), "stolen")
    with pytest.raises(UsageError, match="was revoked"):
        trust(keyring, stolen)


@pytest.mark.parametrize("name", ["nobody", ""])
def test_what_fits_no_key_or_several_is_refused_with_a_list(tmp_path: Path, keyring: Path, name: str) -> None:
    trust(keyring, create_key(tmp_path / "second"))
    with pytest.raises(UsageError, match=r"fits \d keys of .*release \(.*second \("):
        revoke(keyring, name, "?")


def change_id(record: dict[str, Any]) -> None:
    record["keys"] = {"0" * 64: next(iter(record["keys"].values()))}


def change_key(record: dict[str, Any]) -> None:
    next(iter(record["keys"].values()))["public_key"] = base64.b64encode(bytes(32)).decode()


def shorten_key(record: dict[str, Any]) -> None:
    next(iter(record["keys"].values()))["public_key"] = "AAAA"


@pytest.mark.parametrize("change", [change_id, change_key, shorten_key])
def test_a_key_that_does_not_match_its_id_is_refused(keyring: Path, change: Any) -> None:
    record = json.loads(keyring.read_text())
    change(record)
    keyring.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"keyring.json is damaged at key"):
        read_keyring(keyring)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}', "[" * 100_000, '{"keys": []}'])
def test_what_is_no_keyring_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match="neither a public key in PEM form nor a keyring"):
        read_keyring(tmp_path / "keys")
    with pytest.raises(UsageError, match="does not exist"):
        read_keyring(tmp_path / "absent")


def test_other_kinds_of_public_keys_are_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    (tmp_path / "rsa.pub").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        read_keyring(tmp_path / "rsa.pub")
    (tmp_path / "half.pub").write_text("-----BEGIN PUBLIC KEY-----\nMCow")
    with pytest.raises(UsageError, match="not a public key in PEM form"):
        trust(tmp_path / "keyring.json", tmp_path / "half.pub")
    assert not (tmp_path / "keyring.json").exists()


def test_an_empty_name_revokes_nothing(tmp_path: Path) -> None:
    trust(tmp_path / "keyring.json", create_key(tmp_path / "release"), "release 2026")
    with pytest.raises(UsageError, match="fits 0 keys"):
        revoke(tmp_path / "keyring.json", "", "a slip")


def test_a_name_is_a_name_although_the_private_key_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    identity = trust(Path("keyring.json"), create_key(Path("release-2026")))
    assert revoke(Path("keyring.json"), "release-2026", "replaced") == identity


@pytest.mark.parametrize("place", ["keys", "revoked"])
def test_an_id_that_no_key_can_have_is_refused(tmp_path: Path, place: str) -> None:
    """Written by hand in capitals, a revocation would otherwise have no effect, without a word."""
    path = tmp_path / "keyring.json"
    identity = trust(path, create_key(tmp_path / "release"))
    record = json.loads(path.read_text())
    record["revoked"] = {identity: "stolen"}
    record[place] = {identity.upper(): record[place][identity]}
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="neither a public key in PEM form nor a keyring"):
        read_keyring(path)
