"""The command line: one sentence and the right exit code for every wrong call; data on stdout, talk on stderr."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adedge.bundle import Bundle, Manifest, Provenance, Threshold, create
from adedge.specs import Dssim, InputSpec, ScoreSpec, Uniform


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


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


def test_help_lists_every_command_and_each_has_help_of_its_own() -> None:
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
def test_wrong_call_exits_with_2_and_no_traceback(call: tuple[str, ...], bundle: Path) -> None:
    arguments = [bundle if word == "x" else word for word in call]
    result = adedge(*arguments)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_failed_job_exits_with_1_in_one_line(tmp_path: Path) -> None:
    result = adedge("inspect", tmp_path / "absent.adedge")
    assert result.returncode == 1
    assert result.stderr.startswith("adedge: ")
    assert result.stderr.count("\n") == 1
    assert "adedge train" in result.stderr


def test_what_no_command_foresees_of_files_is_one_line_too(tmp_path: Path) -> None:
    result = adedge("keygen", tmp_path / ("k" * 300))
    assert result.returncode == 1
    assert result.stderr.startswith("adedge: ")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = adedge("inspect", tmp_path / "absent.adedge", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_inspect_shows_what_a_person_wants_to_know(bundle: Path) -> None:
    result = adedge("inspect", bundle)
    assert result.returncode == 0
    for fact in ("oesdn", "48 × 64 × 1 gray", "dssim 7 × 7", "uniform 32", "pytorch/fp32", "0.125", "1.00%", "120"):
        assert fact in result.stdout


def test_inspect_json_is_the_manifest(bundle: Path) -> None:
    record = json.loads(adedge("inspect", bundle, "--json").stdout)
    assert record["problems"] == []
    assert record["engines"] == {}
    assert record["signed_by"] is None
    assert record["files"].keys() == {"weights.safetensors"}
    assert record["thresholds"]["pytorch/fp32"]["value"] == 0.125


def test_inspect_finds_one_changed_byte(bundle: Path) -> None:
    (bundle / "weights.safetensors").write_bytes(b"Weights")
    result = adedge("inspect", bundle, "--json")
    assert result.returncode == 1
    assert "not the file that was written" in result.stderr
    assert len(json.loads(result.stdout)["problems"]) == 1


def test_sign_and_require_signature(bundle: Path, tmp_path: Path) -> None:
    assert adedge("keygen", tmp_path / "key").returncode == 0
    refused = adedge("inspect", bundle, "--require-signature", tmp_path / "key.pub")
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    assert adedge("sign", bundle, "--key", tmp_path / "key").returncode == 0
    assert adedge("inspect", bundle, "--require-signature", tmp_path / "key.pub").returncode == 0
    assert Bundle.open(bundle).verify() == []


def test_a_reader_that_leaves_is_no_error(bundle: Path) -> None:
    command = f"{sys.executable} -m adedge inspect {bundle} --json | head -c 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
