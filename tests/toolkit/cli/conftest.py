"""What the tests of commands share: the command, and a bundle that was trained but for its networks."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adedge.bundle import create
from adedge.cli import COMMANDS, app
from adedge.manifest import Manifest, Provenance, Threshold
from adedge.specs import Dssim, InputSpec, ScoreSpec, Uniform


@pytest.fixture(scope="session")
def adedge() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `adedge ARGUMENTS` as a user does, in a terminal wide enough for every line."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adedge", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, env=environment
        )

    return run


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    """Runs `adedge ARGUMENTS` in this process: quicker, and the result's ``exception`` is what the command raised."""
    for command in COMMANDS:
        importlib.import_module(f"adedge.cli.{command}")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    source = Provenance(
        created="2026-01-01",
        data="parts",
        data_digest="ab",
        seed=7,
        budget="quick",
        device="cpu",
        versions={"torch": "2"},
    )
    manifest = Manifest(
        method="oesdn",
        variant="oe-sdn",
        network={},
        input=InputSpec(height=64, width=48, channels=1, color="gray"),
        score=ScoreSpec(comparison=Dssim(), filters=(Uniform(size=32),)),
        thresholds={"pytorch/fp32": Threshold(value=0.125, false_alarm_rate=0.01, pictures=120, data_digest="cd")},
        provenance=source,
    )
    with create(tmp_path / "part.adedge", manifest) as draft:
        draft.write("weights.safetensors", b"weights")
    return tmp_path / "part.adedge"
