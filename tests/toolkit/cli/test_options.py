"""--require-signature: the same refusal from every command that reads a bundle to act on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.errors import BundleError, UsageError
from adedge.signing import create_key, sign

Invoke = Callable[..., Result]

CALLS = {
    "inspect": ("inspect", "BUNDLE"),
    "prove": ("prove", "BUNDLE"),
    "run": ("run", "BUNDLE", "PICTURES"),
    "benchmark": ("benchmark", "BUNDLE", "--frames", "20", "--threads", "1"),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest, red_bundle: Bundle, red_pictures: Path) -> list[str]:
    words = {"BUNDLE": str(red_bundle.path), "PICTURES": str(red_pictures)}
    return [words.get(word, word) for word in CALLS[request.param]]


def test_an_unsigned_bundle_is_refused_before_anything_is_done(
    call: list[str], red_bundle: Bundle, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke(*call, "--require-signature", create_key(tmp_path / "key"))
    assert isinstance(result.exception, BundleError)
    assert str(result.exception) == f"{red_bundle.path} is not signed: sign it with 'adedge sign'"
    assert result.stdout == ""
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest


def test_a_bundle_that_another_signed_is_refused_and_ones_own_is_not(
    call: list[str], red_bundle: Bundle, tmp_path: Path, invoke: Invoke
) -> None:
    own, other = create_key(tmp_path / "own"), create_key(tmp_path / "other")
    sign(red_bundle, tmp_path / "own")
    refused = invoke(*call, "--require-signature", other).exception
    assert isinstance(refused, BundleError)
    assert "is signed by another key" in str(refused)
    accepted = invoke(*call, "--require-signature", own)
    assert accepted.exit_code == 0, accepted.exception
    assert accepted.stdout


def test_a_key_that_is_not_there_is_a_wrong_call(call: list[str], tmp_path: Path, invoke: Invoke) -> None:
    refused = invoke(*call, "--require-signature", tmp_path / "absent.pub").exception
    assert isinstance(refused, UsageError)
    assert "absent.pub does not exist: give the .pub file that 'adedge keygen' wrote" in str(refused)
