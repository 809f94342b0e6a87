"""The command line: one sentence and the right exit code for every wrong call; data on stdout, talk on stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Adedge = Callable[..., subprocess.CompletedProcess[str]]


def test_help_lists_every_command_and_each_has_help_of_its_own(adedge: Adedge) -> None:
    result = adedge("--help")
    assert result.returncode == 0
    listed = re.findall(
        r"^│ (demo|train|export|calibrate|build-engine|run|benchmark|inspect|keygen|sign)\b", result.stdout, re.M
    )
    order = ["demo", "train", "export", "calibrate", "build-engine", "run", "benchmark", "inspect"]
    assert [name for name in listed if name in order] == order
    assert {"keygen", "sign"} <= set(listed)
    for command in listed:
        own = adedge(command, "--help")
        assert own.returncode == 0, command
        assert re.search(rf"Usage: .*{command}", own.stdout), command


@pytest.mark.parametrize(
    "call",
    [
        ("no-such-command",),
        ("inspect",),
        ("inspect", "--no-such-option", "x"),
        ("sign", "x", "--key", "/nonexistent/key"),
        ("run", "x", "0", "--threshold", "nan"),
        ("run", "x", "0", "--reconnect", "inf"),
        ("calibrate", "x", "data", "--false-alarm-rate", "nan"),
        ("build-engine", "x", "--max-auroc-drop", "nan"),
    ],
    ids=["command", "missing argument", "option", "missing key", "threshold", "reconnect", "rate", "drop"],
)
def test_wrong_call_exits_with_2_and_no_traceback(call: tuple[str, ...], bundle: Path, adedge: Adedge) -> None:
    arguments = [bundle if word == "x" else word for word in call]
    result = adedge(*arguments)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_failed_job_exits_with_1_in_one_line(tmp_path: Path, adedge: Adedge) -> None:
    result = adedge("inspect", tmp_path / "absent.adedge")
    assert result.returncode == 1
    assert result.stderr.startswith("adedge: ")
    assert result.stderr.count("\n") == 1
    assert "adedge train" in result.stderr


def test_what_no_command_foresees_of_files_is_one_line_too(tmp_path: Path, adedge: Adedge) -> None:
    result = adedge("keygen", tmp_path / ("k" * 300))
    assert result.returncode == 1
    assert result.stderr.startswith("adedge: ")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, adedge: Adedge) -> None:
    result = adedge("inspect", tmp_path / "absent.adedge", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_a_reader_that_leaves_is_no_error(bundle: Path) -> None:
    command = f"{sys.executable} -m adedge inspect {bundle} --json | head -c 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_every_console_can_show_help_and_bundles(bundle: Path, tmp_path: Path, encoding: str, locale: str) -> None:
    named = tmp_path / os.fsdecode("Größe 中文 ".encode() + b"\xf6\x1b[2J.adedge")
    shutil.copytree(bundle, named)
    environment = {**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": encoding, "COLUMNS": "300"}
    for arguments in (["--help"], ["train", "--help"], ["inspect", named], ["inspect", named, "--json"]):
        command = [sys.executable, "-m", "adedge", *map(os.fsencode, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
        text = done.stdout.decode(encoding)
        if arguments[-1] == "--json":
            assert json.loads(text)["method"] == "oesdn"


@pytest.mark.parametrize(
    "arguments",
    [("inspect", "\x1b[2J\nadedge: fine"), ("run", "x", "0", "\x1b[2J", "--no-such\x1b[2J"), ("no-\x1b[2J-command",)],
)
def test_what_the_user_passed_cannot_command_the_terminal(
    arguments: tuple[str, ...], bundle: Path, adedge: Adedge
) -> None:
    result = adedge(*[bundle if word == "x" else word for word in arguments])
    assert result.returncode != 0
    assert "\x1b" not in result.stderr
    assert not re.search("^adedge: fine", result.stderr, re.M)


@pytest.mark.fault("Ctrl-C or SIGTERM while a command starts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_commands_are_loaded_ends_without_a_word(number: signal.Signals) -> None:
    script = (
        "import importlib, os, signal, sys\n"
        "from adedge.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "importlib.import_module = lambda name: os.kill(os.getpid(), int(sys.argv[1]))\n"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(int(number))], check=False, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (-number, "", "")
