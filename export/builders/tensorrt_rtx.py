"""TensorRT-RTX: plans built ahead of time, on any x86-64 machine, for the GPUs that will run them.

The parser is TensorRT's and networks are always strongly typed. The GPU finishes compiling a plan when it first opens
it.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from adedge.errors import EngineError, UsageError
from adedge.export.builders import BuildOptions, BuildResult, Source
from adedge.export.builders.tensorrt import STRONG, build_failure, build_plan, set_tf32
from adedge.progress import Progress
from adedge.runtime.backends.tensorrt import load_tensorrt, title


def build(source: Source, options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Build for ``options.compute_capabilities``, by default all that this TensorRT-RTX supports.

    If it names GPUs that cannot run the network, the plan is for the others, and the result's attempts say so. The
    build is deterministic: the same graph and options give the same bytes. Raises `UsageError` if this TensorRT-RTX
    does not support a compute capability, `EngineError` with the reason for each attempt if all fail,
    `MissingDependency`.
    """
    trt = load_tensorrt("tensorrt-rtx")
    capabilities = choose_capabilities(trt, options.compute_capabilities)
    attempts: list[str] = []
    while capabilities:
        refused: set[str] = set()
        for way in STRONG[source.precision]:
            if way.graph not in source.graphs:
                attempts.append(f"{way.name}: the bundle has no {way.graph}.onnx")
                continue
            try:
                plan = build_plan(
                    trt,
                    way,
                    source,
                    partial(_configure, trt, capabilities=capabilities, options=options),
                    progress,
                )
            except EngineError as error:
                named = refused_capabilities(str(error), capabilities)
                refused |= named
                attempts.append(f"{way.name}: {error}{_remedy(trt, named)}")
                continue
            return BuildResult(
                plan=plan.data,
                graph=way.graph,
                input=plan.input,
                outputs=plan.outputs,
                library_version=str(trt.__version__),
                path=way.name,
                attempts=tuple(dict.fromkeys(attempts)),
                warnings=plan.warnings,
                compute_capabilities=capabilities,
                flags={"tf32": options.tf32},
            )
        capabilities = tuple(one for one in capabilities if refused and one not in refused)
    raise build_failure(title(trt), source.precision, list(dict.fromkeys(attempts)))


def refused_capabilities(message: str, capabilities: tuple[str, ...]) -> set[str]:
    """Those of the compute capabilities that an error of the builder names: "Turing (SM75)" is 7.5."""
    named = {f"{digits[:-1]}.{digits[-1]}" for digits in re.findall(r"\bSM_?(\d{2,3})\b", message, re.IGNORECASE)}
    return named.intersection(capabilities)


def _remedy(trt: Any, refused: set[str]) -> str:
    """What to do about refused compute capabilities, to follow an error; empty if none are."""
    if not refused:
        return ""
    others = ",".join(one for one in choose_capabilities(trt, ()) if one not in refused)
    return f"; leave compute capability {', '.join(sorted(refused))} out with --compute-capability {others}"


def choose_capabilities(trt: Any, requested: tuple[str, ...]) -> tuple[str, ...]:
    """The requested compute capabilities in ascending order, by default all that the library supports.

    The library names them SM75 to SM121; the last digit is the minor version. Raises `UsageError`, which lists the
    supported ones, if one is not supported.
    """
    digits = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    supported = sorted((f"{d[:-1]}.{d[-1]}" for d in digits), key=lambda text: [int(part) for part in text.split(".")])
    for capability in requested:
        if capability not in supported:
            raise UsageError(
                f"--compute-capability {capability}: {title(trt)} builds for {', '.join(supported)}; "
                "a Jetson's engine is built on the Jetson with --target tensorrt"
            )
    return tuple(capability for capability in supported if capability in requested or not requested)


def _configure(trt: Any, builder: Any, config: Any, *, capabilities: tuple[str, ...], options: BuildOptions) -> None:
    set_tf32(trt, config, options.tf32)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        if not config.set_compute_capability(member, index):
            raise EngineError(f"{title(trt)} refuses compute capability {capability}")
