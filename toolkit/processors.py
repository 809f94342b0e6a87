"""How many processors this process may use: those it is allowed on, and no more than its container's quota.

Libraries count the processors of the machine. In a container with a quota of two on a machine of 64, 64 threads use up
the quota in a fraction of each period and then all stand still.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_processors() -> int:
    """The number of processors that this process may use, hyper-threads included; a part of one counts as one."""
    return max(1, min(len(os.sched_getaffinity(0)), _whole(_quota())))


def physical_cores() -> int:
    """The number of physical cores that this process may use.

    Hyper-threads share the vector units of their core, so they do not speed up a convolution.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            return available_processors()
    return max(1, min(len(cores), _whole(_quota())))


def limit_opencv() -> None:
    """Let OpenCV use no more threads than there are processors: it does not know every kind of quota."""
    import cv2

    cv2.setNumThreads(min(cv2.getNumThreads(), available_processors()))


def _whole(quota: float) -> int:
    return math.ceil(min(quota, 1 << 20))


def _quota() -> float:
    """Processors, from the process's control groups, version 1 or 2, and all above them; infinite without a limit."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += map(_quota_v2, _upwards(CGROUPS, path))
        elif "cpu" in controllers.split(","):
            for mounted in (controllers, "cpu"):
                quotas += map(_quota_v1, _upwards(CGROUPS / mounted, path))
    return min(quotas)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a control group and those above it; a container sees its own group as the root."""
    folder = root / path.strip("/")
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
