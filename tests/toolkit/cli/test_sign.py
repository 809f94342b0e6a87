"""`adedge keygen` and `adedge sign`: keys that are never overwritten, and bundles that are whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from adedge.bundle import Bundle
from adedge.errors import BundleError, UsageError
from adedge.manifest import SIGNATURE

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


def test_sign_and_require_signature(bundle: Path, tmp_path: Path, adedge: Adedge) -> None:
    assert adedge("keygen", tmp_path / "key").returncode == 0
    refused = adedge("inspect", bundle, "--require-signature", tmp_path / "key.pub")
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    assert adedge("sign", bundle, "--key", tmp_path / "key").returncode == 0
    assert adedge("inspect", bundle, "--require-signature", tmp_path / "key.pub").returncode == 0
    assert Bundle.open(bundle).verify() == []


def test_a_key_is_never_overwritten(tmp_path: Path, adedge: Adedge) -> None:
    public = tmp_path / "key.pub"
    public.write_text("a key")
    refused = adedge("keygen", tmp_path / "key")
    assert refused.returncode == 2
    assert refused.stderr == f"adedge: {public} exists and would be overwritten: choose another name\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"key.pub": "a key"}


def test_keygen_says_which_key_is_secret(tmp_path: Path, invoke: Invoke) -> None:
    said = " ".join(invoke("keygen", tmp_path / "key").stderr.split())
    assert said == f"wrote {tmp_path / 'key'} (keep it secret) and {tmp_path / 'key.pub'} (copy it to the devices)"
    assert "PRIVATE" in (tmp_path / "key").read_text()
    assert "PRIVATE" not in (tmp_path / "key.pub").read_text()


def test_a_bundle_with_a_changed_file_is_not_signed(bundle: Path, tmp_path: Path, invoke: Invoke) -> None:
    invoke("keygen", tmp_path / "key")
    (bundle / "weights.safetensors").write_bytes(b"Weights")
    refused = invoke("sign", bundle, "--key", tmp_path / "key").exception
    assert isinstance(refused, BundleError)
    assert "not signed: " in str(refused)
    assert not (bundle / SIGNATURE).exists()


def test_the_public_key_signs_nothing(bundle: Path, tmp_path: Path, invoke: Invoke) -> None:
    invoke("keygen", tmp_path / "key")
    refused = invoke("sign", bundle, "--key", tmp_path / "key.pub").exception
    assert isinstance(refused, UsageError)
    assert "is not a private key in PEM form" in str(refused)
    assert not (bundle / SIGNATURE).exists()


def test_signing_again_replaces_the_signature(bundle: Path, tmp_path: Path, invoke: Invoke) -> None:
    for key in ("first", "second"):
        invoke("keygen", tmp_path / key)
        assert invoke("sign", bundle, "--key", tmp_path / key).exit_code == 0
    assert invoke("inspect", bundle, "--require-signature", tmp_path / "second.pub").exit_code == 0
    refused = invoke("inspect", bundle, "--require-signature", tmp_path / "first.pub").exception
    assert "is signed by another key" in str(refused)
