"""PyTorch -> ONNX: one FP32 graph of a bundle's detector, which every other graph is made from.

The input "frame" is float32 (N, C, H, W), already preprocessed as the bundle's `InputSpec` says, N dynamic. The outputs
are the two images "image_a" and "image_b" (N, C, H, W) of a DSSIM comparison, or the anomaly "map" and, where the
network gives it, the "score" (N,).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from adedge.bundle import IMPORTED, Bundle
from adedge.calibration.onnx_model import OPSET, ModelProto, convert_opset, opset_of, parse, serialise
from adedge.errors import EngineError, MissingDependency
from adedge.specs import Dssim, InputSpec, ScoreSpec

if TYPE_CHECKING:
    from torch import nn

INPUT = "frame"


def export_fp32(bundle: Bundle, *, opset: int = OPSET, with_scoring: bool = False) -> bytes:
    """The FP32 graph of a bundle's detector; ``with_scoring`` appends the map and the score (see `scoring_graph`).

    The same bundle and the same PyTorch give the same bytes. Raises `BundleError` where the weights were changed,
    `EngineError` where the network cannot be expressed in ``opset``, `MissingDependency`.
    """
    manifest = bundle.manifest
    if manifest.method == IMPORTED:
        graph = _imported(bundle, opset)
    else:
        from adedge.methods import load_detector

        graph = graph_from_module(load_detector(bundle), manifest.input, output_names(manifest.score), opset=opset)
    if with_scoring:
        from adedge.export.onnx_scoring import append_scoring

        return append_scoring(graph, manifest.score, manifest.input)
    return graph


def _imported(bundle: Bundle, opset: int) -> bytes:
    """The graph that a detector came as, in a newer opset where one is asked for."""
    model = parse(bundle.file(bundle.manifest.weights).read_bytes())
    return serialise(convert_opset(model, opset))


def output_names(score: ScoreSpec) -> tuple[str, ...]:
    """What the graph's outputs are called: they are what the `ScoreSpec` compares."""
    if isinstance(score.comparison, Dssim):
        return "image_a", "image_b"
    return ("map", "score") if score.reduce == "output" else ("map",)


def graph_from_module(module: nn.Module, spec: InputSpec, outputs: tuple[str, ...], *, opset: int = OPSET) -> bytes:
    """Export a module, in eval mode: x (N, C, H, W) float32 -> a tensor or a tuple of tensors, named ``outputs``.

    Batch normalisation is folded into the convolution before it. Raises `EngineError`, `MissingDependency`.
    """
    try:
        import onnxscript  # noqa: F401 - what torch.onnx.export translates with
        import torch
    except ModuleNotFoundError as exc:
        raise MissingDependency(exc.name or "onnxscript", "export", "exporting a network to ONNX") from exc
    # Traced with a batch of two: PyTorch takes a dimension of one for a constant.
    example = torch.zeros(2, *spec.shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as exc:  # the exporter's exceptions have no common class
        raise EngineError(f"PyTorch {torch.__version__} cannot export this network: {_first_line(exc)}") from exc
    assert program is not None
    model = program.model_proto
    if opset_of(model) != opset:
        raise EngineError(f"the network has no form in opset {opset}, only in {opset_of(model)}: choose that one")
    if len(model.graph.output) != len(outputs):
        raise EngineError(f"the network gives {len(model.graph.output)} outputs, and {', '.join(outputs)} are expected")
    strip_metadata(model)
    return serialise(model)


def strip_metadata(model: ModelProto) -> None:
    """Remove what the exporter notes about the machine: source paths, stack traces, and the traced program."""
    graph = model.graph
    model.ClearField("metadata_props")
    model.doc_string = graph.doc_string = ""
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own progress off the terminal; what goes wrong is raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|copyreg)(\..*)?$")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
