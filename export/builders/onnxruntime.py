"""ONNX Runtime: the plan is the verified graph itself, which ONNX Runtime optimises for the processor at load time."""

from __future__ import annotations

from adedge.export.builders import GRAPHS, BuildOptions, BuildResult, Source
from adedge.progress import Progress
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend, library_version
from adedge.runtime.engines import Tensor


def build(source: Source, options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Check that ONNX Runtime loads the graph, and return it unchanged as the plan.

    Raises `EngineError` if ONNX Runtime rejects the graph, `MissingDependency` if it is not installed.
    """
    graph = GRAPHS["onnxruntime"][source.precision][0]
    with OnnxRuntimeBackend(source.graphs[graph], batch=source.batch[2]) as backend:
        outputs = zip(backend.output_names, backend.outputs, strict=True)
        return BuildResult(
            plan=source.graphs[graph],
            graph=graph,
            input=Tensor(name=backend.input_name, shape=backend.input.shape[1:]),
            outputs=tuple(Tensor(name=name, shape=array.shape[1:]) for name, array in outputs),
            library_version=library_version(),
            path="the exported graph, computed in FP32 by a CPU"
            if source.precision == "fp16"
            else "the exported graph",
            flags={"threads": backend.threads},
        )
