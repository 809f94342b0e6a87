"""What a latency depends on and a report must say: processor, memory, clocks, GPU, power mode, library versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from adedge.specs import Model

LIBRARIES = ("adedge", "numpy", "opencv-python-headless", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch", "onnx")

# The instructions that decide how fast INT8 and 16-bit networks run: x86 (Linux's names), then ARM.
TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "fphp",
)
INT8_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


class Jetson(Model):
    """A Jetson module: its name, L4T release, and power mode. None where the system does not say."""

    model: str
    l4t: str | None = None
    power_mode: str | None = None
    jetson_clocks: str | None = None


class Machine(Model):
    """The machine a benchmark ran on.

    ``cores`` are those this process may use; ``memory_bytes`` is the RAM; ``cpu_flags`` are the ones of
    `TELLING_FLAGS` that the processor has; ``governor`` is Linux's frequency policy of the first core.
    """

    cpu: str
    architecture: str
    cores: int
    memory_bytes: int | None
    cpu_flags: tuple[str, ...]
    governor: str | None
    system: str
    kernel: str
    python: str
    gpus: tuple[str, ...]
    jetson: Jetson | None
    libraries: dict[str, str]

    @property
    def has_int8_instructions(self) -> bool:
        """Whether the processor multiplies INT8 numbers faster than FP32 (VNNI, AMX, ARM's dot product)."""
        return bool(INT8_FLAGS.intersection(self.cpu_flags))


def machine_facts(root: Path = Path("/")) -> Machine:
    """Read the facts from ``root``'s /proc, /sys and /etc; what is not there is None or empty."""
    processor = _read(root / "proc/cpuinfo") or ""
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return Machine(
        cpu=_field(processor, "model name") or _field(processor, "Model") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        cpu_flags=_flags(processor),
        governor=_read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        system=_system(root),
        kernel=platform.release(),
        python=platform.python_version(),
        gpus=_gpus(),
        jetson=_jetson(root),
        libraries=_libraries(),
    )


def _flags(processor: str) -> tuple[str, ...]:
    present = set((_field(processor, "flags") or _field(processor, "Features") or "").split())
    return tuple(flag for flag in TELLING_FLAGS if flag in present)


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _system(root: Path) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release") or "", re.MULTILINE)
    return found[1] if found else platform.system()


def _jetson(root: Path) -> Jetson | None:
    model, release = _read(root / "proc/device-tree/model"), _read(root / "etc/nv_tegra_release")
    if release is None and not (model or "").startswith("NVIDIA Jetson"):
        return None
    found = re.search(r"# R(\d+).*?REVISION: ([\d.]+)", release or "")
    return Jetson(
        model=model or "NVIDIA Jetson",
        l4t=f"{found[1]}.{found[2]}" if found else None,
        power_mode=_output("nvpmodel", "-q"),
        jetson_clocks=_output("jetson_clocks", "--show"),
    )


def _gpus() -> tuple[str, ...]:
    text = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(re.sub(r",\s*", ", driver ", line.strip(), count=1) for line in (text or "").splitlines())


def _output(command: str, *arguments: str) -> str | None:
    """What a command prints; None where it is absent, fails or hangs."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        result = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _libraries() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
