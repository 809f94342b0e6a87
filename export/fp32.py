"""PyTorch -> ONNX: the FP32 graph of a bundle's detector, from which every other graph is derived.

The input "frame" is float32 (N, C, H, W) with N dynamic, already preprocessed according to the bundle's `InputSpec`.
The outputs are the two images "image_a" and "image_b" (N, C, H, W) of a DSSIM comparison, or the anomaly "map" and, if
the network computes it, the "score" (N,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adedge.bundle import Bundle
from adedge.calibration.onnx_model import OPSET, ModelProto, convert_opset, lower_opset, parse, serialise
from adedge.errors import EngineError
from adedge.manifest import IMPORTED
from adedge.specs import Dssim, InputSpec, ScoreSpec

if TYPE_CHECKING:
    from adedge.methods.onnx_export import Network

INPUT = "frame"


def export_fp32(bundle: Bundle, *, opset: int = OPSET, with_scoring: bool = False) -> bytes:
    """The FP32 graph of a bundle's detector; ``with_scoring`` appends map and score (see `append_scoring`).

    The same bundle and PyTorch version give the same bytes. Raises `BundleError` if the weights were changed,
    `EngineError` if the network cannot be expressed in ``opset``, `MissingDependency`.
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
    """The graph of an imported detector, converted to ``opset`` if that is newer."""
    model = parse(bundle.read(bundle.manifest.weights))
    return serialise(convert_opset(model, opset))


def output_names(score: ScoreSpec) -> tuple[str, ...]:
    """The names of the graph's outputs, in the order in which the `ScoreSpec` takes them."""
    if isinstance(score.comparison, Dssim):
        return "image_a", "image_b"
    return ("map", "score") if score.reduce == "output" else ("map",)


def graph_from_module(module: Network, spec: InputSpec, outputs: tuple[str, ...], *, opset: int = OPSET) -> bytes:
    """Export a module, in eval mode: x (N, C, H, W) float32 -> a tensor or a tuple of tensors, named ``outputs``.

    Batch normalisation is folded into the convolution before it. Raises `EngineError`, `MissingDependency`.
    """
    from adedge.methods.onnx_export import onnx_from_network

    model = parse(onnx_from_network(module, spec.shape, input_name=INPUT, output_names=outputs, opset=opset))
    model = lower_opset(
        convert_opset(model, opset), opset
    )  # PyTorch exports to its own lowest, and cannot always convert further down
    if len(model.graph.output) != len(outputs):
        raise EngineError(
            f"the network has {len(model.graph.output)} outputs, and {', '.join(outputs)} are expected: "
            "its deploy() must return one tensor for each"
        )
    strip_metadata(model)
    return serialise(model)


def strip_metadata(model: ModelProto) -> None:
    """Remove the exporter's metadata: source paths, stack traces, and the traced program."""
    graph = model.graph
    model.ClearField("metadata_props")
    model.doc_string = graph.doc_string = ""
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
