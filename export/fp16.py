"""FP16 written into the graph: weights and activations in half precision, inputs and outputs in FP32.

TensorRT 11 and TensorRT-RTX take every type from the graph, older versions do where the network is strongly typed. So
FP16 is two kinds of casts, at the input and at the outputs, and half-precision weights between them.
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
# An FP16 copy of an FP32 input is called like it, with this at the end.
HALF = "_fp16"
# Inputs that ONNX wants in FP32 whatever the data's type: region and scales of a Resize.
_ALWAYS_FP32 = {"Resize": {1, 2}, "Upsample": {1}}
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def fp16_from_fp32(graph: bytes) -> bytes:
    """The same graph computing in FP16, with FP32 inputs and outputs; names of nodes and inner tensors stay.

    An output that only passes the input on stays FP32. Raises `EngineError` naming the weight that FP16 cannot hold.
    """
    model = parse(graph)
    halve(model)
    return serialise(model)


def halve(model: ModelProto) -> None:
    """Turn a model into FP16 in place; see `fp16_from_fp32`."""
    graph = model.graph
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == _FLOAT}
    outputs = [value.name for value in graph.output if value.type.tensor_type.elem_type == _FLOAT]
    passed_on = {node.output[0] for node in graph.node if _passes_on(node, inputs, outputs)}
    # Casting at the outputs: the node that made an output makes its FP16 form now, under another name.
    renamed = {name: name + HALF for name in (*inputs, *outputs) if name not in passed_on}
    kept_fp32 = _kept_fp32(graph)
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT and tensor.name not in kept_fp32:
            tensor.CopyFrom(_half_tensor(tensor, tensor.name))
    for node in graph.node:
        if node.output[0] in passed_on:
            continue
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
        _halve_attributes(node, kept_fp32)
    nodes = [
        *(_cast(name, name + HALF, _HALF) for name in sorted(inputs)),
        *graph.node,
        *(_cast(name + HALF, name, _FLOAT) for name in outputs if name not in passed_on),
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def rounded_to_fp16(graph: bytes) -> bytes:
    """An FP32 graph that rounds every weight and every activation to FP16: what a GPU computes, on any processor.

    ONNX Runtime executes an FP16 graph in FP32 on a CPU and rounds only the weights. Sums stay FP32 here as in tensor
    cores, which accumulate FP16 products in FP32. Run it without graph optimisations, which remove the casts.
    """
    model = parse(graph)
    model_graph = model.graph
    kept_fp32 = _kept_fp32(model_graph)
    for tensor in model_graph.initializer:
        if tensor.data_type == _FLOAT and tensor.name not in kept_fp32:
            rounded = numpy_helper.to_array(_half_tensor(tensor, tensor.name)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    floats = {v.name for v in (*model_graph.value_info, *model_graph.output) if v.type.tensor_type.elem_type == _FLOAT}
    inputs = {value.name for value in model_graph.input if value.type.tensor_type.elem_type == _FLOAT}
    outputs = [value.name for value in model_graph.output]
    nodes = [node for name in sorted(inputs) for node in _rounding(name, name + "_rounded")]
    for node in model_graph.node:
        if not _passes_on(node, inputs, outputs):
            for index, name in enumerate(node.input):
                if name in inputs:
                    node.input[index] = name + "_rounded"
        nodes.append(node)
        if node.op_type == "Constant" or _passes_on(node, inputs, outputs):
            continue
        for index, name in enumerate(node.output):
            if name in floats:
                node.output[index] = name + "_exact"
                nodes += _rounding(name + "_exact", name)
    del model_graph.node[:]
    model_graph.node.extend(nodes)
    return serialise(model)


def _passes_on(node: NodeProto, inputs: set[str], outputs: list[str]) -> bool:
    return node.op_type == "Identity" and node.input[0] in inputs and node.output[0] in outputs


def _kept_fp32(graph: GraphProto) -> set[str]:
    """Names of constants that stay FP32."""
    return {
        name
        for node in graph.node
        for index, name in enumerate(node.input)
        if name and index in _ALWAYS_FP32.get(node.op_type, ())
    }


def _halve_attributes(node: NodeProto, kept_fp32: set[str]) -> None:
    """Constants inside of nodes, and the target of casts."""
    for attribute in node.attribute:
        if attribute.name in ("value", "sparse_value") and attribute.t.data_type == _FLOAT:
            if node.output[0] not in kept_fp32:
                attribute.t.CopyFrom(_half_tensor(attribute.t, node.output[0]))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if not largest <= FP16_MAX:
        raise EngineError(f"'{name}' holds {largest:.3g}, beyond FP16's {FP16_MAX:.0f}: this network stays in FP32")
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _rounding(source: str, target: str) -> list[NodeProto]:
    return [_cast(source, f"{target}_half", _HALF), _cast(f"{target}_half", target, _FLOAT)]
