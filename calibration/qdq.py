"""Explicit INT8 graphs: QuantizeLinear / DequantizeLinear pairs in front of convolutions.

Quantisation is symmetric with zero point 0 (TensorRT's parser rejects others), per tensor for activations and per
output channel for weights. No pair separates a convolution from its activation function, so that the two fuse. The
residual input of an Add next to a convolution is quantised too, so that the Add fuses into the convolution. Biases stay
in floating point (the parser rejects INT32 ones), and so do transposed convolutions, for which TensorRT has no INT8
kernels with per-output-channel scales, and fully connected layers, which cost little in these networks.
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
# Scales may be cast to FP16, which has few significant bits below this; a range of 127 such steps is only 1.2e-4.
_SMALLEST_SCALE = 2.0**-20


def quantisable_nodes(graph: bytes | ModelProto) -> tuple[str, ...]:
    """Names of the nodes that can be quantised, in graph order: convolutions and residual Adds."""
    return tuple(node.name for node, _ in _quantised_inputs(_model(graph).graph))


def quantised_tensors(graph: bytes | ModelProto) -> tuple[str, ...]:
    """Names of the activations that need a range if every quantisable node is quantised."""
    return tuple(dict.fromkeys(node.input[index] for node, index in _quantised_inputs(_model(graph).graph)))


def convolutions(graph: bytes | ModelProto) -> tuple[str, ...]:
    """Names of the convolutions with constant weights."""
    model_graph = _model(graph).graph
    constants = initializers(model_graph)
    return tuple(node.name for node in model_graph.node if _is_convolution(node, constants))


def first_and_last(graph: bytes | ModelProto) -> frozenset[str]:
    """Names of the first convolutions on the paths from the inputs and the last on the paths to the outputs.

    They stay in floating point: rounding their input or output amounts to rounding the picture itself.
    """
    model_graph = _model(graph).graph
    names = set(convolutions(graph))
    constants = initializers(model_graph)
    edges: set[str] = set()
    before_first = {value.name for value in model_graph.input}  # tensors computed without a convolution
    for node in model_graph.node:
        if before_first & set(node.input):
            if node.name in names:
                edges.add(node.name)
            elif all(name in before_first or name in constants for name in node.input):
                before_first |= set(node.output)
    after_last = {value.name for value in model_graph.output}  # tensors that reach an output without a convolution
    for node in reversed(model_graph.node):
        if after_last & set(node.output):
            if node.name in names:
                edges.add(node.name)
            else:
                after_last |= set(node.input)
    return frozenset(edges)


def int8_from_fp32(graph: bytes, ranges: Ranges, float_nodes: Collection[str] | None = None) -> bytes:
    """Quantise an FP32 graph, keeping ``float_nodes`` (default: those of ``ranges``) in floating point.

    Scales are FP32, and unquantised nodes compute in FP32 (or in what a weakly typed TensorRT chooses). Raises
    `DataError` if a range is missing, `EngineError` if ``float_nodes`` names a node that cannot be quantised.
    """
    model = parse(graph)
    candidates = _quantised_inputs(model.graph)
    if float_nodes is None:
        float_nodes = ranges.float_nodes
    unknown = set(float_nodes) - {node.name for node, _ in candidates}
    if unknown:
        raise EngineError(
            f"the graph has no node '{min(unknown)}' to keep in floating point: run 'adedge calibrate' again"
        )
    quantised = {node.name: index for node, index in candidates if node.name not in float_nodes}
    pairs = _Pairs()
    constants = initializers(model.graph)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name in quantised:
            nodes += pairs.activation(node, quantised[node.name], ranges)
            if node.op_type == "Conv":
                nodes += pairs.weight(node, constants[node.input[1]])
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(pairs.constants)
    return serialise(model)


class _Pairs:
    """Creates one Q/DQ pair per tensor and collects the scales and zero points as ``constants``."""

    def __init__(self) -> None:
        self.constants: list[TensorProto] = []
        self._tensors: set[str] = set()

    def activation(self, node: NodeProto, index: int, ranges: Ranges) -> list[NodeProto]:
        """Feed an input of ``node`` through a pair with one scale; returns the pair's nodes if they are new."""
        name = node.input[index]
        largest = ranges.tensors.get(name)
        if largest is None:
            raise DataError(f"ranges.json has no range for '{name}': run 'adedge calibrate' again")
        node.input[index] = f"{name}_dequantised"
        return self._pair(name, np.array(largest, np.float64))

    def weight(self, node: NodeProto, weight: TensorProto) -> list[NodeProto]:
        """Feed a convolution's weights (M, C, ...) through a pair with one scale per output channel."""
        values = np.abs(numpy_helper.to_array(weight).astype(np.float64))
        node.input[1] = f"{weight.name}_dequantised"
        return self._pair(weight.name, values.reshape(len(values), -1).max(axis=1), axis=0)

    def _pair(self, name: str, largest: NDArray[np.float64], axis: int | None = None) -> list[NodeProto]:
        if name in self._tensors:
            return []
        self._tensors.add(name)
        # An all-zero tensor may have any scale.
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
    """The quantisable nodes, each with the index of the input that gets a pair."""
    writers, readers, constants = producers(graph), consumers(graph), initializers(graph)
    inputs = []
    for node in graph.node:
        if _is_convolution(node, constants):
            inputs.append((node, 0))
        elif node.op_type == "Add":
            residual = _residual_input(node, writers, readers, constants)
            if residual is not None:
                inputs.append((node, residual))
    return inputs


def _residual_input(
    node: NodeProto,
    writers: dict[str, NodeProto],
    readers: dict[str, list[NodeProto]],
    constants: dict[str, TensorProto],
) -> int | None:
    """The index of an Add's residual input: the other one comes from a convolution that only this Add reads."""
    for index, name in enumerate(node.input):
        writer = writers.get(name)
        other = node.input[1 - index]
        if writer is None or not _is_convolution(writer, constants) or len(readers[name]) > 1:
            continue
        if other in writers and other != name:
            return 1 - index
    return None


def _is_convolution(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    return node.op_type == "Conv" and node.input[1] in constants


def _model(graph: bytes | ModelProto) -> ModelProto:
    return parse(graph) if isinstance(graph, bytes) else graph
