"""A required signature refuses everything but the bundle that was signed, by the key that is trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adedge.bundle import Bundle, create
from adedge.errors import BundleError, UsageError
from adedge.manifest import SIGNATURE, Manifest, Provenance
from adedge.signing import create_key, require, sign, signer_of
from adedge.specs import InputSpec, ReadyMap, ScoreSpec


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    source = Provenance(created="", data="", data_digest="", seed=0, budget="", device="cpu", versions={})
    manifest = Manifest(
        method="m",
        variant="v",
        network={},
        input=InputSpec(height=32, width=32, channels=1, color="gray"),
        score=ScoreSpec(comparison=ReadyMap()),
        provenance=source,
    )
    with create(tmp_path / "b.adedge", manifest) as draft:
        draft.write("weights.safetensors", b"weights")
    return Bundle.open(tmp_path / "b.adedge")


def test_signed_bundle_is_accepted(bundle: Bundle, tmp_path: Path) -> None:
    public = create_key(tmp_path / "key")
    sign(bundle, tmp_path / "key")
    require(bundle, public)
    assert signer_of(bundle) is not None
    assert bundle.verify() == []


def test_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="would be overwritten"):
        create_key(tmp_path / "key")


def test_unsigned_wrong_key_and_changed_bundles_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    public = create_key(tmp_path / "key")
    other = create_key(tmp_path / "other")
    with pytest.raises(BundleError, match="is not signed"):
        require(bundle, public)
    sign(bundle, tmp_path / "key")
    with pytest.raises(BundleError, match="signed by another key"):
        require(bundle, other)
    manifest = bundle.path / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"variant": "v"', '"variant": "w"'))
    with pytest.raises(BundleError, match="changed after it was signed"):
        require(Bundle.open(bundle.path), public)


def test_editing_drops_the_signature(bundle: Bundle, tmp_path: Path) -> None:
    public = create_key(tmp_path / "key")
    sign(bundle, tmp_path / "key")
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    with pytest.raises(BundleError, match="is not signed"):
        require(Bundle.open(bundle.path), public)


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"signature": "!", "public_key": "!"}'])
def test_damaged_signature_is_one_sentence(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    public = create_key(tmp_path / "key")
    (bundle.path / SIGNATURE).write_text(damage)
    with pytest.raises(BundleError, match="is damaged"):
        require(bundle, public)


def test_damaged_bundle_is_not_signed(bundle: Bundle, tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    (bundle.path / "weights.safetensors").write_bytes(b"Weights")
    with pytest.raises(BundleError, match="not signed"):
        sign(bundle, tmp_path / "key")
    assert not (bundle.path / SIGNATURE).exists()


def test_other_kinds_of_keys_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "rsa").write_bytes(pem)
    (tmp_path / "text").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        sign(bundle, tmp_path / "rsa")
    with pytest.raises(UsageError, match="not a private key in PEM form"):
        sign(bundle, tmp_path / "text")
    with pytest.raises(UsageError, match="adedge keygen"):
        sign(bundle, tmp_path / "absent")
