"""ONNX graphs as bytes and as protobuf: the one module that imports onnx, and the few questions asked of a graph."""

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

# Opset 17 is the newest that the parsers of TensorRT 8.5 and 8.6 know; FP16 scales of Q/DQ came with opset 19.
OPSET = 17
FP16_SCALES_OPSET = 19


def parse(graph: bytes) -> ModelProto:
    """An ONNX file's bytes as a model. Raises `BundleError` where they are none."""
    try:
        return onnx.load_model_from_string(graph)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        raise BundleError("the graph is not a readable ONNX file: export it again") from exc


def load(path: Path) -> ModelProto:
    """An ONNX file with the weights that lie in files beside it. Raises `EngineError` where one cannot be read."""
    try:
        return onnx.load(path)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise EngineError(f"{path} cannot be read as ONNX ({reason}): export it again, weights included") from exc


def renamed(model: ModelProto, prefix: str) -> ModelProto:
    """A copy in which every name of a tensor or node, in inner graphs too, begins with ``prefix``."""
    return onnx.compose.add_prefix(model, prefix)


def frames_at_once(graph: bytes, wanted: int) -> int:
    """``wanted``, or the number of frames that a graph without a dynamic batch takes."""
    batch = parse(graph).graph.input[0].type.tensor_type.shape.dim[0]
    return int(batch.dim_value) if batch.HasField("dim_value") else wanted


def serialise(model: ModelProto) -> bytes:
    """Types and shapes of all tensors inferred anew, checked, as bytes that only depend on the model's contents.

    Raises `EngineError` where the model breaks a rule of ONNX.
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
    """The version of ONNX's own operators that a model uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """The same model in a newer opset; names of nodes and tensors stay. Raises `EngineError` where it has no form."""
    if opset_of(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as exc:  # onnx raises its C++ exceptions as RuntimeError, and others as they come
        raise EngineError(f"the graph has no form in opset {opset}: {str(exc).splitlines()[0]}") from exc


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that writes each tensor; inputs and initializers have none."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, in the graph's order."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name:
                found.setdefault(name, []).append(node)
    return found


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor whose rank is known; a dimension without a number (the batch) counts as 1."""
    graph = model.graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return found


def multiply_accumulates(model: ModelProto, nodes: Iterable[NodeProto]) -> int:
    """Multiply-accumulate operations of convolutions on one frame: output values x weights of one output channel."""
    known = shapes(model)
    return sum(math.prod(known[node.output[0]]) * math.prod(known[node.input[1]][1:]) for node in nodes)
