"""Reading, writing and querying ONNX graphs, as bytes and as protobuf: the only module that imports onnx."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from adedge.errors import BundleError, EngineError, MissingDependency

try:
    import onnx
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise MissingDependency("onnx", "export", "reading and writing ONNX graphs") from error

__all__ = ["GraphProto", "ModelProto", "NodeProto", "TensorProto", "ValueInfoProto", "helper", "numpy_helper"]

# Opset 17 is the newest that the parsers of TensorRT 8.5 and 8.6 support; Q/DQ accepts FP16 scales since opset 19.
OPSET = 17
FP16_SCALES_OPSET = 19


def parse(graph: bytes) -> ModelProto:
    """Parse the bytes of an ONNX file. Raises `BundleError` if they are not valid ONNX."""
    try:
        return onnx.load_model_from_string(graph)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        raise BundleError("the graph is not a readable ONNX file: export it again") from exc


def load(path: Path) -> ModelProto:
    """Load an ONNX file and its external weights. Raises `EngineError` if a file cannot be read."""
    try:
        return onnx.load(path)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise EngineError(f"{path} cannot be read as ONNX ({reason}): export it again, weights included") from exc


def with_prefix(model: ModelProto, prefix: str) -> ModelProto:
    """A copy with ``prefix`` added to every tensor and node name, including those in subgraphs."""
    return onnx.compose.add_prefix(model, prefix)


def serialise(model: ModelProto) -> bytes:
    """Infer all types and shapes, check the model, and serialise it deterministically. Changes ``model`` in place.

    Raises `EngineError` if the model is not valid ONNX.
    """
    del model.graph.value_info[:]
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise EngineError(f"the graph is not valid ONNX: {str(exc).strip().splitlines()[0]}") from exc
    data: bytes = inferred.SerializeToString(deterministic=True)
    return data


def opset_of(model: ModelProto) -> int:
    """The version of the default ONNX operator set that a model uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """The same model in a newer opset, node and tensor names unchanged. Raises `EngineError` if it cannot be converted.

    A model that already uses ``opset`` or a newer one is returned as it is.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as exc:  # onnx raises C++ exceptions as RuntimeError, among others
        raise EngineError(f"the graph cannot be converted to opset {opset}: {str(exc).splitlines()[0]}") from exc


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Maps each tensor that a node writes to that node; inputs and initializers are absent."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Maps each tensor to the nodes that read it, in graph order."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name:
                readers.setdefault(name, []).append(node)
    return readers


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Maps each initializer's name to it."""
    return {tensor.name: tensor for tensor in graph.initializer}


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor whose rank is known; a symbolic dimension (the batch) counts as 1."""
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            sizes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return sizes


def multiply_accumulates(model: ModelProto, nodes: Iterable[NodeProto]) -> int:
    """Multiply-accumulates of convolutions on one frame: output values x weights of one output channel.

    A transposed convolution multiplies each input value with all weights of its input channel.
    """
    sizes = shapes(model)
    total = 0
    for node in nodes:
        values = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        total += math.prod(sizes[values]) * math.prod(sizes[node.input[1]][1:])
    return total
