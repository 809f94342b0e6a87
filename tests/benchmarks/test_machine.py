"""What a report says of the machine, against what the system's own files and libraries say."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.benchmarks.machine import has_int8_instructions, machine_facts


def test_machine_is_described() -> None:
    facts = machine_facts()
    assert {"processor", "cores", "memory", "system", "GPU", "numpy"} <= facts.keys()
    assert all(facts.values())


def test_facts_are_those_of_this_machine() -> None:
    facts = machine_facts()
    assert facts["cores"] == str(len(os.sched_getaffinity(0)))
    assert facts["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["numpy"] == np.__version__
    (total,) = (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    gibibytes, unit = facts["memory"].split()
    assert (float(gibibytes), unit) == (pytest.approx(int(total) / 2**20, abs=0.1), "GiB")
    assert platform.machine() in facts["system"]
    assert cv2.__version__ in facts.get("opencv-python-headless", cv2.__version__)


def test_int8_instructions_are_those_that_the_kernel_lists() -> None:
    words = set(Path("/proc/cpuinfo").read_text().replace(":", " ").split())
    assert has_int8_instructions() == bool(words & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA Tegra,   999.1'", "NVIDIA Tegra, 999.1"),
        ("echo 'no devices were found'; exit 6", "none"),
    ],
    ids=["a GPU", "a driver without one"],
)
def test_the_gpu_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine_facts()["GPU"] == expected


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_facts()["GPU"] == "none"
