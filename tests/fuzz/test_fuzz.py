"""Mutated files and requests are read or refused in a sentence; `.ci/fuzz` reads more of them, and others each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import fuzzing
import mutations
import pytest
from fuzz_targets import PLANTED, TARGETS

COUNTS = {
    "manifest": 40,
    "engine": 40,
    "golden": 20,
    "signature": 40,
    "external": 500,
    "import": 300,
    "csv": 100,
    "picture": 300,
    "page": 200,
}


def test_every_target_is_read() -> None:
    assert COUNTS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_mutated_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    done, failures = fuzzing.fuzz(name, "tests", tmp_path / "failures", count=COUNTS[name])
    assert failures == []
    assert done == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("planted-exception", "KeyError at fuzz_targets.py"),
        ("planted-hang", "took longer than 0.5 s"),
        ("planted-memory", "MemoryError at fuzz_targets.py"),
        ("planted-crash", "ended the process by SIGSEGV"),
    ],
)
def test_each_kind_of_fault_is_noticed_and_its_input_kept(name: str, outcome: str, tmp_path: Path) -> None:
    done, (failure,) = fuzzing.fuzz(name, "tests", tmp_path / "failures", count=3, limit_s=0.5)
    assert done == 3
    assert failure.outcome.startswith(outcome)
    assert list((tmp_path / "failures").iterdir()) == [failure.file]
    number = int(failure.file.name.rpartition(".")[2])
    target = PLANTED[name](tmp_path)
    assert failure.file.read_bytes() == fuzzing.input_of(target, name, "tests", number)


def test_a_stored_input_can_be_replayed(tmp_path: Path) -> None:
    file = tmp_path / "planted-exception.tests.0"
    file.write_bytes(b"another")
    command = [sys.executable, fuzzing.__file__, "--replay", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError: 'missing'" in done.stderr


# "page" is a server, which belongs into a process of its own; a signature depends on its key and time.
@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"page", "signature"}))
def test_a_seed_gives_the_same_inputs_again(name: str, tmp_path: Path) -> None:
    inputs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        target = TARGETS[name](folder)
        inputs.append([fuzzing.input_of(target, name, "tests", number) for number in range(5)])
    assert inputs[0] == inputs[1]


def test_mutations_depend_on_the_seed_alone_and_change_something() -> None:
    document = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
    for mutate, data in (
        (mutations.mutate_bytes, bytes(range(100))),
        (mutations.mutate_text, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
        (mutations.mutate_json, document),
    ):
        results = [mutate(data, Random(seed)) for seed in range(50)]
        assert results == [mutate(data, Random(seed)) for seed in range(50)]
        assert len(set(results) - {data}) > 40
