"""INT8 written into the graph: explicit QuantizeLinear / DequantizeLinear pairs in front of convolutions.

Symmetric, zero point 0 throughout (TensorRT's parser refuses others): activations with one scale a tensor, weights with
one for each output channel. Nothing stands between a convolution and its activation function, so that the two fuse. The
input that a residual Add takes beside a convolution is quantised too, so that the Add fuses into the convolution.
Biases stay in floating point (the parser refuses INT32 ones); transposed convolutions and fully connected layers stay
in floating point altogether: TensorRT has no INT8 kernels for per-output-channel scales of the former, and the latter
cost little in these networks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.calibration.onnx_model import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    consumers,
    helper,
    initializers,
    numpy_helper,
    parse,
    producers,
    serialise,
)
from adedge.calibration.ranges import Ranges
from adedge.errors import DataError, EngineError

INT8_MAX = 127
# Scales may be cast to FP16, which has few bits left below this; 127 steps of it are 1.2e-4.
_SMALLEST_SCALE = 2.0**-20


def quantisable_nodes(graph: bytes | ModelProto) -> tuple[str, ...]:
    """Names of the nodes that INT8 can apply to, in the graph's order: convolutions, and Adds of a residual."""
    return tuple(node.name for node, _ in _quantised_inputs(_model(graph).graph))


def quantised_tensors(graph: bytes | ModelProto) -> tuple[str, ...]:
    """The activations that get a scale when everything is quantised."""
    return tuple(dict.fromkeys(node.input[index] for node, index in _quantised_inputs(_model(graph).graph)))


def convolutions(graph: bytes | ModelProto) -> tuple[str, ...]:
    """Names of the convolutions with constant weights."""
    model_graph = _model(graph).graph
    constants = initializers(model_graph)
    return tuple(node.name for node in model_graph.node if _is_convolution(node, constants))


def first_and_last(graph: bytes | ModelProto) -> frozenset[str]:
    """Convolutions that read the picture, or that no other convolution comes after: they stay in float first.

    Rounding what they see or give is rounding the picture itself.
    """
    model_graph = _model(graph).graph
    names = set(convolutions(graph))
    constants = initializers(model_graph)
    found: set[str] = set()
    fresh = {value.name for value in model_graph.input}
    for node in model_graph.node:
        if fresh & set(node.input):
            if node.name in names:
                found.add(node.name)
            elif all(name in fresh or name in constants for name in node.input):
                fresh |= set(node.output)
    needed = {value.name for value in model_graph.output}
    for node in reversed(model_graph.node):
        if needed & set(node.output):
            if node.name in names:
                found.add(node.name)
            else:
                needed |= set(node.input)
    return frozenset(found)


def int8_from_fp32(graph: bytes, ranges: Ranges, float_nodes: Collection[str] | None = None) -> bytes:
    """Quantise an FP32 graph; ``float_nodes`` (default: those of ``ranges``) stay in floating point.

    Scales are FP32, and what is not quantised computes in FP32 (or in what a weakly typed TensorRT chooses). Raises
    `DataError` where a range is missing, `EngineError` where a name is unknown.
    """
    model = parse(graph)
    candidates = _quantised_inputs(model.graph)
    kept = ranges.float_nodes if float_nodes is None else float_nodes
    unknown = set(kept) - {node.name for node, _ in candidates}
    if unknown:
        raise EngineError(f"the graph has no node '{min(unknown)}' that could stay in floating point")
    chosen = {node.name: index for node, index in candidates if node.name not in kept}
    pairs = _Pairs()
    constants = initializers(model.graph)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name in chosen:
            nodes += pairs.activation(node, chosen[node.name], ranges)
            if node.op_type == "Conv":
                nodes += pairs.weight(node, constants[node.input[1]])
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(pairs.constants)
    return serialise(model)


class _Pairs:
    """Makes each tensor's pair once, and keeps the scales and zero points that go with them."""

    def __init__(self) -> None:
        self.constants: list[TensorProto] = []
        self._made: set[str] = set()

    def activation(self, node: NodeProto, index: int, ranges: Ranges) -> list[NodeProto]:
        """Let an input of ``node`` come from a pair with one scale."""
        name = node.input[index]
        largest = ranges.tensors.get(name)
        if largest is None:
            raise DataError(f"ranges.json has no range for '{name}': run 'adedge calibrate' again")
        node.input[index] = f"{name}_dequantised"
        return self._pair(name, np.array(largest, np.float64))

    def weight(self, node: NodeProto, weight: TensorProto) -> list[NodeProto]:
        """Let the weights (M, C, ...) of a convolution come from a pair with a scale for each output channel."""
        values = np.abs(numpy_helper.to_array(weight).astype(np.float64))
        node.input[1] = f"{weight.name}_dequantised"
        return self._pair(weight.name, values.reshape(len(values), -1).max(axis=1), axis=0)

    def _pair(self, name: str, largest: NDArray[np.float64], axis: int | None = None) -> list[NodeProto]:
        if name in self._made:
            return []
        self._made.add(name)
        # A tensor that is always 0 may have any scale.
        scale = np.where(largest > 0, np.maximum(largest / INT8_MAX, _SMALLEST_SCALE), 1.0).astype(np.float32)
        parameters = [f"{name}_scale", f"{name}_zero_point"]
        self.constants.append(numpy_helper.from_array(scale, parameters[0]))
        self.constants.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), parameters[1]))
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        return [
            helper.make_node(operator, [source, *parameters], [target], name=f"{target}_{operator}", **attributes)
            for operator, source, target in (
                ("QuantizeLinear", name, f"{name}_quantised"),
                ("DequantizeLinear", f"{name}_quantised", f"{name}_dequantised"),
            )
        ]


def _quantised_inputs(graph: GraphProto) -> list[tuple[NodeProto, int]]:
    """Each node that can be quantised, with the index of the activation that then is."""
    made_by, read_by, constants = producers(graph), consumers(graph), initializers(graph)
    found = []
    for node in graph.node:
        if _is_convolution(node, constants):
            found.append((node, 0))
        elif node.op_type == "Add":
            residual = _residual_input(node, made_by, read_by, constants)
            if residual is not None:
                found.append((node, residual))
    return found


def _residual_input(
    node: NodeProto,
    made_by: dict[str, NodeProto],
    read_by: dict[str, list[NodeProto]],
    constants: dict[str, TensorProto],
) -> int | None:
    """Which input of an Add is the residual: the one beside a convolution that only the Add reads."""
    for index, name in enumerate(node.input):
        maker = made_by.get(name)
        other = node.input[1 - index]
        if maker is None or not _is_convolution(maker, constants) or len(read_by[name]) > 1:
            continue
        if other in made_by and other != name:
            return 1 - index
    return None


def _is_convolution(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    return node.op_type == "Conv" and node.input[1] in constants


def _model(graph: bytes | ModelProto) -> ModelProto:
    return parse(graph) if isinstance(graph, bytes) else graph
