"""TensorRT-RTX: plans built ahead of time, on any x86-64 processor, for the GPUs they will run on.

The same parser as TensorRT's, always strongly typed. The plan is finished on the GPU when it is first opened there.
"""

from __future__ import annotations

from typing import Any

from adedge.errors import EngineError, UsageError
from adedge.export.builders import BuildOptions, Built, Source
from adedge.export.builders.tensorrt import STRONG, build_plan, no_way, set_tf32
from adedge.progress import Progress
from adedge.runtime.backends.tensorrt import load_tensorrt, title


def build(source: Source, options: BuildOptions, progress: Progress | None = None) -> Built:
    """Build for ``options.compute_capabilities``, by default all that this TensorRT-RTX knows.

    The same graph and options give the same bytes. Raises `MissingDependency`, `UsageError` for a compute capability
    that this TensorRT-RTX cannot build for, or `EngineError` with each way's reason.
    """
    trt = load_tensorrt("tensorrt-rtx")
    capabilities = choose_capabilities(trt, options.compute_capabilities)
    attempts: list[str] = []
    for way in STRONG[source.precision]:
        if way.graph not in source.graphs:
            attempts.append(f"{way.name}: the bundle has no {way.graph}.onnx")
            continue
        try:
            plan = build_plan(
                trt,
                way,
                source,
                lambda builder, config: _configure(trt, config, capabilities, options),
                progress,
            )
        except EngineError as error:
            attempts.append(f"{way.name}: {error}")
            continue
        return Built(
            plan=plan.data,
            graph=way.graph,
            input=plan.input,
            outputs=plan.outputs,
            library_version=str(trt.__version__),
            path=way.name,
            attempts=tuple(attempts),
            warnings=plan.warnings,
            compute_capabilities=capabilities,
            flags={"tf32": options.tf32},
        )
    raise no_way(title(trt), source.precision, attempts)


def choose_capabilities(trt: Any, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted compute capabilities in order, or all there are. Raises `UsageError` naming those there are.

    The library names them SM75 to SM121: the last digit is the minor number.
    """
    digits = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    known = sorted((f"{d[:-1]}.{d[-1]}" for d in digits), key=lambda text: [int(part) for part in text.split(".")])
    for capability in wanted:
        if capability not in known:
            raise UsageError(
                f"--compute-capability {capability}: {title(trt)} builds for {', '.join(known)}; "
                "a Jetson's engine is built on the Jetson with --target tensorrt"
            )
    return tuple(capability for capability in known if capability in wanted or not wanted)


def _configure(trt: Any, config: Any, capabilities: tuple[str, ...], options: BuildOptions) -> None:
    set_tf32(trt, config, options.tf32)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        if not config.set_compute_capability(member, index):
            raise EngineError(f"{title(trt)} refuses compute capability {capability}")
