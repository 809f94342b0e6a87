"""`adedge demo`: it types commands that exist, goes on where it stopped, and ends where a command fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import Result

from adedge.cli import app
from adedge.specs import PRECISIONS

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]

ORDER = ["train", "export", "calibrate", *["build-engine"] * 6, "prove", "run", "benchmark", "inspect"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An output folder whose pictures were cut already."""
    (tmp_path / "out" / "data" / "test").mkdir(parents=True)
    return tmp_path / "out"


class Typed:
    """Stands for the shell: notes what is typed, and lets one command fail."""

    def __init__(self, failing: str | None = None) -> None:
        self.calls: list[list[str]] = []
        self.failing = failing

    def __call__(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == [sys.executable, "-m", "adedge"]
        self.calls.append(words[3:])
        return subprocess.CompletedProcess(words, 7 if words[3] == self.failing else 0)

    def commands(self) -> list[str]:
        return [call[0] for call in self.calls]


def parsed(words: list[str]) -> dict[str, Any]:
    """The options that a command line gives its command; raises as the command line does where they are wrong."""
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name, list(words), parent=context)
        _, command, words = command.resolve_command(context, words)
    options: dict[str, Any] = command.make_context(command.name, list(words), parent=context).params
    return options


def test_every_command_that_it_types_is_one(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = Typed()
    monkeypatch.setattr(subprocess, "run", typed)
    result = invoke("demo", "-o", folder, "--seed", 3, "--frames", 12)
    assert result.exit_code == 0, result.exception
    assert typed.commands() == ORDER
    options = [parsed(call) for call in typed.calls]
    assert options[0]["seed"] == 3
    built = {
        (one["target"], one["precision"])
        for call, one in zip(typed.calls, options, strict=True)
        if call[0] == "build-engine"
    }
    assert built == {(target, precision) for target in ("onnxruntime", "tensorrt-rtx") for precision in PRECISIONS}
    assert "synthetic:brick?seed=3&frames=12" in typed.calls[ORDER.index("run")]
    for call in typed.calls:
        assert f"$ adedge {call[0]}" in result.stderr  # each is shown before it runs
    assert f"{folder / 'report/report.html'}" in result.stderr


def test_a_trained_bundle_is_not_trained_again(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "brick.adedge").mkdir()
    (folder / "brick.adedge" / "bundle.json").write_text("{}")
    typed = Typed()
    monkeypatch.setattr(subprocess, "run", typed)
    assert invoke("demo", "-o", folder).exit_code == 0
    assert typed.commands() == ORDER[1:]


def test_a_command_that_fails_ends_the_demo(folder: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = Typed(failing="calibrate")
    monkeypatch.setattr(subprocess, "run", typed)
    result = invoke("demo", "-o", folder)
    assert result.exit_code == 7
    assert typed.commands() == ["train", "export", "calibrate"]
    assert "done in" not in result.stderr


def test_the_sentence_of_the_failed_command_is_the_last_one(folder: Path, adedge: Adedge) -> None:
    """For real: the bundle of an earlier demo was damaged."""
    (folder / "brick.adedge").mkdir()
    (folder / "brick.adedge" / "bundle.json").write_text("{")
    result = adedge("demo", "-o", folder)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"adedge: {folder / 'brick.adedge' / 'bundle.json'} is not valid")
    assert "Traceback" not in result.stderr
