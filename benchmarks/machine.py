"""Describe the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "torch", "onnx", "tensorrt", "tensorrt-rtx", "pycuda")
SIMD_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")


def machine_facts() -> dict[str, str]:
    """This machine's processor, memory, system, GPU, power mode and library versions, as text by name."""
    facts = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": ", ".join(_flags()) or "unknown",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{_system()}, Linux {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        "GPU": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "none",
    }
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        facts["clock governor"] = governor
    if jetson := _text("/proc/device-tree/model").rstrip("\0"):
        facts["board"] = jetson
        facts["L4T"] = _text("/etc/nv_tegra_release").splitlines()[0] if _text("/etc/nv_tegra_release") else "unknown"
        facts["power mode"] = _output("nvpmodel", "-q") or "unknown"
        facts |= _gpu_clocks()
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def has_int8_instructions() -> bool:
    """Whether the processor has INT8 dot-product or matrix instructions: VNNI, AMX, Arm's SDOT or I8MM."""
    return any(flag in _flags() for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))


def _gpu_clocks() -> dict[str, str]:
    """A Jetson's current GPU clock and its range, from devfreq; jetson_clocks locks it by making both limits equal."""
    for device in sorted(Path("/sys/class/devfreq").glob("*")):
        if "gpu" in device.name or "ga10b" in device.name or "gpc" in device.name:
            clock, low, high = (_text(str(device / name)) for name in ("cur_freq", "min_freq", "max_freq"))
            if clock:
                locked = ", locked" if low == high else ""
                return {
                    "GPU clock": f"{int(clock) / 1e6:.0f} MHz of {int(low) / 1e6:.0f} to {int(high) / 1e6:.0f}{locked}"
                }
    return {}


def _cpuinfo(*keys: str) -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return ""


def _processor() -> str:
    return _cpuinfo("model name") or _cpuinfo("CPU part") or platform.processor() or "unknown"


def _flags() -> list[str]:
    flags = _cpuinfo("flags", "Features").split()
    return [flag for flag in SIMD_FLAGS if flag in flags]


def _system() -> str:
    for line in _text("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(result.stdout.split()) if result.returncode == 0 else ""
