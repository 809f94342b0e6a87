"""The number of processors, from control groups as containers see them."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest

from adedge import processors
from adedge.processors import available_processors, limit_opencv, physical_cores

CPUS = 8


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine of eight processors, each a core of its own if the kernel of this machine says so."""
    monkeypatch.setattr(processors, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(1000, 1000 + CPUS)))
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CPUS),
        ({"membership": "0::/\n"}, CPUS),
        ({"membership": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, CPUS),
        ({"membership": "0::/\n", "cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"membership": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"membership": "0::/\n", "cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"membership": "0::/\n", "cgroup/cpu.max": "6400000 100000\n"}, CPUS),
        ({"membership": "0::/a/b\n", "cgroup/a/cpu.max": "300000 100000\n", "cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        ({"membership": "0::/unseen/host/path\n", "cgroup/cpu.max": "100000 50000\n"}, 2),
        ({"membership": "0::/\n", "cgroup/cpu.max": "nonsense\n"}, CPUS),
        (
            {
                "membership": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
                "cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000\n",
                "cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "membership": "3:cpu:/docker/unseen\n",
                "cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "membership": "3:cpu,cpuacct:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            CPUS,
        ),
    ],
)
def test_quota(cgroups: Path, files: dict[str, str], expected: int) -> None:
    write(cgroups, files)
    assert available_processors() == expected
    assert physical_cores() == expected


def test_affinity_bounds_a_larger_quota(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cgroups, {"membership": "0::/\n", "cgroup/cpu.max": "400000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1000, 1001})
    assert available_processors() == 2


def test_this_machine() -> None:
    assert 1 <= physical_cores() <= available_processors() <= len(os.sched_getaffinity(0))


def test_opencv_takes_no_more_than_there_are(cgroups: Path) -> None:
    before = cv2.getNumThreads()
    write(cgroups, {"membership": "0::/\n", "cgroup/cpu.max": "100000 100000\n"})
    try:
        limit_opencv()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
