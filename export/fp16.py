"""Explicit FP16 graphs: weights and activations in half precision, inputs and outputs in FP32.

Strongly typed networks, the only kind in TensorRT 11 and TensorRT-RTX, take every type from the graph. An FP16 graph
therefore casts its inputs to FP16 and its outputs back to FP32, with half-precision weights in between.
"""

from __future__ import annotations

import numpy as np

from adedge.calibration.onnx_model import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    parse,
    serialise,
)
from adedge.errors import EngineError

FP16_MAX = float(np.finfo(np.float16).max)
HALF = "_fp16"  # suffix of the FP16 counterpart of an FP32 input or output
# Inputs that ONNX requires in FP32 whatever the data's type: region and scales of a Resize.
_ALWAYS_FP32 = {"Resize": {1, 2}, "Upsample": {1}}
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def fp16_from_fp32(graph: bytes) -> bytes:
    """The same graph computing in FP16, with FP32 inputs and outputs; names of nodes and inner tensors are unchanged.

    An output that only forwards an input stays FP32. Raises `EngineError` if a finite weight exceeds FP16's range.
    """
    model = parse(graph)
    halve(model)
    return serialise(model)


def halve(model: ModelProto) -> None:
    """Convert a model to FP16 in place; see `fp16_from_fp32`."""
    graph = model.graph
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == _FLOAT}
    outputs = [value.name for value in graph.output if value.type.tensor_type.elem_type == _FLOAT]
    forwarded = {node.output[0] for node in graph.node if _forwards_input(node, inputs, outputs)}
    # Nodes read and write the FP16 counterparts; casts connect these to the FP32 inputs and outputs.
    half_names = {name: name + HALF for name in (*inputs, *outputs) if name not in forwarded}
    fp32_constants = _fp32_constants(graph)
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT and tensor.name not in fp32_constants:
            tensor.CopyFrom(_half_tensor(tensor, tensor.name))
    for node in graph.node:
        if node.output[0] in forwarded:
            continue
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = half_names.get(name, name)
        _halve_attributes(node, fp32_constants)
    nodes = [
        *(_cast(name, name + HALF, _HALF) for name in sorted(inputs)),
        *graph.node,
        *(_cast(name + HALF, name, _FLOAT) for name in outputs if name not in forwarded),
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def rounded_to_fp16(graph: bytes) -> bytes:
    """An FP32 graph that rounds every weight and activation to FP16: emulates a GPU's FP16 on any processor.

    On a CPU, ONNX Runtime executes an FP16 graph in FP32 and rounds only the weights. Sums stay FP32 here, as in tensor
    cores, which accumulate FP16 products in FP32. Run the graph without optimisations, which would remove the casts.
    """
    model = parse(graph)
    model_graph = model.graph
    fp32_constants = _fp32_constants(model_graph)
    for tensor in model_graph.initializer:
        if tensor.data_type == _FLOAT and tensor.name not in fp32_constants:
            rounded = numpy_helper.to_array(_half_tensor(tensor, tensor.name)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    floats = {v.name for v in (*model_graph.value_info, *model_graph.output) if v.type.tensor_type.elem_type == _FLOAT}
    inputs = {value.name for value in model_graph.input if value.type.tensor_type.elem_type == _FLOAT}
    outputs = [value.name for value in model_graph.output]
    nodes = [node for name in sorted(inputs) for node in _rounding(name, name + "_rounded")]
    for node in model_graph.node:
        if not _forwards_input(node, inputs, outputs):
            for index, name in enumerate(node.input):
                if name in inputs:
                    node.input[index] = name + "_rounded"
        nodes.append(node)
        if node.op_type == "Constant" or _forwards_input(node, inputs, outputs):
            continue
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = name + "_exact"
                nodes += _rounding(name + "_exact", name)
    del model_graph.node[:]
    model_graph.node.extend(nodes)
    return serialise(model)


def _forwards_input(node: NodeProto, inputs: set[str], outputs: list[str]) -> bool:
    return node.op_type == "Identity" and node.input[0] in inputs and node.output[0] in outputs


def _fp32_constants(graph: GraphProto) -> set[str]:
    """Names of the constants that ONNX requires in FP32."""
    return {
        name
        for node in graph.node
        for index, name in enumerate(node.input)
        if name and index in _ALWAYS_FP32.get(node.op_type, ())
    }


def _halve_attributes(node: NodeProto, fp32_constants: set[str]) -> None:
    """Convert a Constant's value, or a Cast's target type, to FP16 in place."""
    for attribute in node.attribute:
        if attribute.name in ("value", "sparse_value") and attribute.t.data_type == _FLOAT:
            if node.output[0] not in fp32_constants:
                attribute.t.CopyFrom(_half_tensor(attribute.t, node.output[0]))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    # FP16 has NaN and infinity too: masks hold them, and so do constants that no result depends on.
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    if largest > FP16_MAX:
        raise EngineError(f"'{name}' holds {largest:.3g}, beyond FP16's {FP16_MAX:.0f}: leave fp16 out of --precision")
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _rounding(source: str, target: str) -> list[NodeProto]:
    return [_cast(source, f"{target}_half", _HALF), _cast(f"{target}_half", target, _FLOAT)]
