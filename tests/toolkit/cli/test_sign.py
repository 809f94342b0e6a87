"""`adedge keygen` and `adedge sign`: keys that are never overwritten, and bundles that are whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
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


def test_a_device_accepts_the_product_it_expects_and_nothing_older(
    bundle: Path, tmp_path: Path, adedge: Adedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADEDGE_STATE", str(tmp_path / "state"))
    adedge("keygen", tmp_path / "key")
    adedge("keyring", "add", tmp_path / "keyring.json", tmp_path / "key.pub", "--name", "release")
    trusted = ("--require-signature", tmp_path / "keyring.json", "--expect", "brick")

    def signed(*options: str) -> subprocess.CompletedProcess[str]:
        said = adedge("sign", bundle, "--key", tmp_path / "key", *options)
        assert said.returncode == 0, said.stderr
        return adedge("inspect", bundle, *trusted)

    def start() -> None:  # without an engine, a run ends, but not before it has looked at the signature
        assert "has no onnxruntime/fp32 engine" in adedge("run", bundle, tmp_path, *trusted).stderr

    assert signed("--product", "brick", "--version", "2", "--expires", "2999-12-31").returncode == 0
    assert signed("--product", "brick", "--version", "1").returncode == 0, "nothing has run yet"
    assert signed("--product", "brick", "--version", "2").returncode == 0
    start()
    older = signed("--product", "brick", "--version", "1")
    assert (older.returncode, "has accepted version 2" in older.stderr) == (1, True)
    other = signed("--product", "bottle", "--version", "3")
    assert (other.returncode, "signed for 'bottle', and 'brick' is expected" in other.stderr) == (1, True)
    assert adedge("sign", bundle, "--key", tmp_path / "key", "--expires", "2020-01-01").returncode == 2
    adedge("keyring", "revoke", tmp_path / "keyring.json", "release", "--reason", "laptop stolen")
    assert "revoked: laptop stolen" in adedge("keyring", "show", tmp_path / "keyring.json").stdout
    revoked = signed("--product", "brick", "--version", "4")
    assert (revoked.returncode, "laptop stolen" in revoked.stderr) == (1, True)
