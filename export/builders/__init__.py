"""One builder per target: from the bundle's explicitly typed graphs to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from adedge.errors import UsageError
from adedge.progress import Progress
from adedge.runtime.engines import Tensor
from adedge.specs import Precision, Target

HardwareCompatibility = Literal["ampere-plus", "same-compute-capability"]

# The graphs that a target can build each precision from, preferred first. With FP16 scales TensorRT runs unquantised
# layers in FP16; a CPU computes FP16 in FP32 and gains nothing from them.
GRAPHS: Mapping[Target, Mapping[Precision, tuple[str, ...]]] = {
    "onnxruntime": {"fp32": ("model.fp32",), "fp16": ("model.fp16",), "int8": ("model.int8",)},
    "tensorrt": {
        "fp32": ("model.fp32",),
        "fp16": ("model.fp16", "model.fp32"),
        "int8": ("model.int8-fp16", "model.int8"),
    },
    "tensorrt-rtx": {"fp32": ("model.fp32",), "fp16": ("model.fp16",), "int8": ("model.int8-fp16", "model.int8")},
}

DEFAULT_WORKSPACE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build; `check` rejects those that the target does not support.

    ``batch`` is the (min, opt, max) number of frames per run (default: see `adedge.export.build.default_batch`).
    ``workspace_bytes`` limits TensorRT's scratch memory during the build (default 1 GiB; TensorRT's own default is all
    device memory). ``dla_core`` runs the engine on that DLA core (default: on the GPU). ``opt_level`` is TensorRT's
    builder optimisation level, 0 to 5. ``timing_cache`` is read if it exists, and updated. ``compute_capabilities``
    ("8.9") are those that TensorRT-RTX builds for, by default all that it supports. ``tf32`` allows FP32 convolutions
    to round their inputs to TF32.
    """

    batch: tuple[int, int, int] | None = None
    workspace_bytes: int | None = None
    dla_core: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility | None = None
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False

    def check(self, target: Target) -> None:
        """Raise `UsageError` if an option is invalid or does not apply to ``target``."""
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        unsupported = sorted(changed - _SUPPORTED[target])
        if unsupported:
            names = ", ".join("--" + _OPTION_NAMES.get(name, name.replace("_", "-")) for name in unsupported)
            raise UsageError(f"{names}: not an option of --target {target}")
        if self.batch is not None and not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            text = ",".join(map(str, self.batch))
            raise UsageError(f"--batch {text}: give MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX")
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise UsageError(f"--opt-level {self.opt_level}: TensorRT's levels are 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise UsageError(f"--workspace {self.workspace_bytes}: give bytes, at least one MiB (1048576)")
        if self.dla_core is not None and self.dla_core < 0:
            raise UsageError(f"--dla-core {self.dla_core}: cores are numbered from 0")


_SUPPORTED: Mapping[Target, set[str]] = {
    "onnxruntime": {"batch"},
    "tensorrt-rtx": {"batch", "compute_capabilities", "tf32"},
    "tensorrt": {field.name for field in fields(BuildOptions)} - {"compute_capabilities"},
}
_OPTION_NAMES = {"workspace_bytes": "workspace", "compute_capabilities": "compute-capability"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A builder's input: graphs by stem, precision, the network input's (C, H, W), and the (min, opt, max) batch."""

    graphs: Mapping[str, bytes]
    precision: Precision
    shape: tuple[int, int, int]
    batch: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A plan and how it was built, as `adedge.runtime.engines.EngineRecord` records it."""

    plan: bytes
    graph: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    library_version: str
    path: str
    attempts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    flags: Mapping[str, bool | int | float | str]


Builder = Callable[[Source, BuildOptions, Progress | None], BuildResult]


def builder_of(target: Target) -> Builder:
    """The builder of a target."""
    if target == "onnxruntime":
        from adedge.export.builders.onnxruntime import build
    elif target == "tensorrt":
        from adedge.export.builders.tensorrt import build
    else:
        from adedge.export.builders.tensorrt_rtx import build
    return build
