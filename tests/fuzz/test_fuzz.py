"""Mutated files and requests are read or refused in a sentence; `.ci/fuzz` reads more of them, and others each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import fuzzing
import pytest

COUNTS = {
    "manifest": 40,
    "engine": 40,
    "golden": 20,
    "external": 500,
    "import": 300,
    "csv": 100,
    "picture": 300,
    "page": 200,
}


def test_every_target_is_read() -> None:
    assert COUNTS.keys() == fuzzing.TARGETS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_mutated_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    done, failures = fuzzing.fuzz(name, "tests", tmp_path / "failures", count=COUNTS[name])
    assert failures == []
    assert done == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("planted-exception", "KeyError at fuzzing.py"),
        ("planted-hang", "took longer than 0.5 s"),
        ("planted-memory", "MemoryError at fuzzing.py"),
        ("planted-crash", "ended the process by SIGSEGV"),
    ],
)
def test_each_kind_of_fault_is_noticed_and_its_input_kept(name: str, outcome: str, tmp_path: Path) -> None:
    done, (failure,) = fuzzing.fuzz(name, "tests", tmp_path / "failures", count=3, limit_s=0.5)
    assert done == 3
    assert failure.outcome.startswith(outcome)
    assert list((tmp_path / "failures").iterdir()) == [failure.file]
    number = int(failure.file.name.rpartition(".")[2])
    target = fuzzing.PLANTED[name](tmp_path)
    assert failure.file.read_bytes() == fuzzing.input_of(target, name, "tests", number)


def test_a_stored_input_can_be_replayed(tmp_path: Path) -> None:
    file = tmp_path / "planted-exception.tests.0"
    file.write_bytes(b"another")
    command = [sys.executable, fuzzing.__file__, "--replay", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'missing'" in done.stderr


def test_mutations_depend_on_the_seed_alone_and_change_something() -> None:
    document = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
    for mutate, data in (
        (fuzzing.mutate_bytes, bytes(range(100))),
        (fuzzing.mutate_text, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
        (fuzzing.mutate_json, document),
    ):
        results = [mutate(data, Random(seed)) for seed in range(50)]
        assert results == [mutate(data, Random(seed)) for seed in range(50)]
        assert len(set(results) - {data}) > 40
