"""Append the scoring to a graph: frame in, map and score out, for runtimes without adedge.

The nodes compute what `adedge.scoring` does, always in FP32, whatever the network's precision. They use only operators
that TensorRT 8.5 parses: the mirrored border is a Gather with constant indices (ONNX's Pad "reflect" omits the edge
pixel), windows are pooled one axis at a time, and an ellipse is the maximum over its rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.calibration.onnx_model import GraphProto, TensorProto, helper, numpy_helper, opset_of, parse, serialise
from adedge.errors import EngineError
from adedge.scoring import dssim_constants, ellipse, gaussian_weights
from adedge.specs import Dssim, Gaussian, InputSpec, Opening, ScoreSpec, Uniform

MAP, SCORE = "map", "score"
_ROWS, _COLUMNS = 2, 3  # axes of (N, C, H, W)


def append_scoring(graph: bytes, score: ScoreSpec, spec: InputSpec) -> bytes:
    """Replace a detector graph's outputs with "map" float32 (N, H, W) and "score" float32 (N,).

    Raises `EngineError` if the graph does not have the outputs that ``score`` compares.
    """
    model = parse(graph)
    expected = 2 if isinstance(score.comparison, Dssim) or score.reduce == "output" else 1
    if len(model.graph.output) != expected:
        raise EngineError(f"the score compares {expected} output(s), but the graph has {len(model.graph.output)}")
    ranks = [len(output.type.tensor_type.shape.dim) for output in model.graph.output]
    images = [f"network_{output.name}" for output in model.graph.output]
    for output, name in zip(model.graph.output, images, strict=True):
        _rename(model.graph, output.name, name)
    del model.graph.output[:]

    nodes = _Nodes(model.graph, opset_of(model))
    if isinstance(score.comparison, Dssim):
        maps = _dssim(nodes, images[0], images[1], score.comparison, spec)
    else:
        maps = images[0] if ranks[0] == 4 else nodes.add("Unsqueeze", images[0], nodes.integers(1))
    size = (spec.height, spec.width)
    for step in score.filters:
        match step:
            case Uniform():
                maps = _box(nodes, maps, step.size, size)
            case Gaussian():
                maps = _gaussian(nodes, maps, step.sigma, size)
            case Opening():
                maps = _opening(nodes, maps, step.size, size)
    nodes.add("Squeeze", maps, nodes.integers(1), output=MAP)
    if score.reduce == "output":
        nodes.add("Reshape", images[1], nodes.integers(-1), output=SCORE)
    else:
        margin = score.margin
        if margin:
            last = [spec.height - margin, spec.width - margin]
            maps = nodes.slice(maps, [margin, margin], last, [_ROWS, _COLUMNS])
        pooled = nodes.add("GlobalMaxPool" if score.reduce == "max" else "GlobalAveragePool", maps)
        nodes.add("Squeeze", pooled, nodes.integers(1, 2, 3), output=SCORE)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    model.graph.output.extend(
        [
            helper.make_tensor_value_info(MAP, TensorProto.FLOAT, [batch, *size]),
            helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [batch]),
        ]
    )
    return serialise(model)


class _Nodes:
    """Appends nodes and constants under unique names; each method returns the name of the output or constant."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self._count = 0

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = self._name(operator)
        node = helper.make_node(operator, list(inputs), [output or name], name=name, **attributes)
        self.graph.node.append(node)
        return output or name

    def constant(self, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = self._name("constant")
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def slice(self, data: str, starts: list[int], ends: list[int], axes: list[int]) -> str:
        return self.add("Slice", data, self.integers(*starts), self.integers(*ends), self.integers(*axes))

    def mean_over_channels(self, data: str) -> str:
        if self.opset < 18:
            return self.add("ReduceMean", data, axes=[1], keepdims=1)
        return self.add("ReduceMean", data, self.integers(1), keepdims=1)

    def _name(self, operator: str) -> str:
        self._count += 1
        return f"score_{self._count}_{operator}"


def _dssim(nodes: _Nodes, a: str, b: str, spec: Dssim, frame: InputSpec) -> str:
    """(1 - SSIM) / 2 per pixel, mean over channels: (N, C, H, W) twice -> (N, 1, H, W).

    With d = a - b, one minus SSIM's luminance term is l = mean(d)^2 / (mean(a)^2 + mean(b)^2 + C1), and one minus its
    structure term is s = var(d) / (var(a) + var(b) + C2), so (1 - SSIM) / 2 = (l + s - l s) / 2. Where the images
    nearly agree, the usual form subtracts numbers close to 1 and loses digits; this one stays accurate in FP32.
    """
    c1, c2 = (nodes.number(value) for value in dssim_constants(spec.data_range))
    unbiased = nodes.number(spec.window**2 / (spec.window**2 - 1))
    d = nodes.add("Sub", a, b)
    squares = nodes.add("Add", nodes.add("Mul", a, a), nodes.add("Mul", b, b))
    size = (frame.height, frame.width)
    # Stacked on the channel axis, all averages take one pooling.
    stacked = nodes.add("Concat", a, b, d, squares, nodes.add("Mul", d, d), axis=1)
    pooled = _box(nodes, stacked, spec.window, size)
    channels = frame.channels
    mean_a, mean_b, mean_d, mean_squares, mean_dd = (
        nodes.slice(pooled, [k * channels], [(k + 1) * channels], [1]) for k in range(5)
    )
    means = nodes.add("Add", nodes.add("Mul", mean_a, mean_a), nodes.add("Mul", mean_b, mean_b))
    square_d = nodes.add("Mul", mean_d, mean_d)
    variances = nodes.add("Mul", nodes.add("Sub", mean_squares, means), unbiased)
    variance_d = nodes.add("Mul", nodes.add("Sub", mean_dd, square_d), unbiased)
    luminance = nodes.add("Div", square_d, nodes.add("Add", means, c1))
    structure = nodes.add("Div", variance_d, nodes.add("Add", variances, c2))
    either = nodes.add("Sub", nodes.add("Add", luminance, structure), nodes.add("Mul", luminance, structure))
    return nodes.mean_over_channels(nodes.add("Mul", either, nodes.number(0.5)))


def _box(nodes: _Nodes, data: str, size: int, frame: tuple[int, int]) -> str:
    """Mean over size x size windows; even sizes reach one pixel further up and left, as in SciPy."""
    for axis, kernel in ((_ROWS, [size, 1]), (_COLUMNS, [1, size])):
        data = _mirror(nodes, data, axis, frame, size // 2, size - 1 - size // 2)
        data = nodes.add("AveragePool", data, kernel_shape=kernel, strides=[1, 1])
    return data


def _gaussian(nodes: _Nodes, maps: str, sigma: float, frame: tuple[int, int]) -> str:
    weights = gaussian_weights(sigma).astype(np.float32)
    radius = len(weights) // 2
    for axis, shape in ((_ROWS, (1, 1, -1, 1)), (_COLUMNS, (1, 1, 1, -1))):
        maps = _mirror(nodes, maps, axis, frame, radius, radius)
        kernel = weights.reshape(shape)
        maps = nodes.add("Conv", maps, nodes.constant(kernel), kernel_shape=list(kernel.shape[2:]), strides=[1, 1])
    return maps


def _opening(nodes: _Nodes, maps: str, size: int, frame: tuple[int, int]) -> str:
    """Dilation of the erosion, where erosion is the negated dilation of the negated map."""
    footprint = ellipse(size)
    before, after = size // 2, size - 1 - size // 2
    eroded = nodes.add("Neg", _dilate(nodes, nodes.add("Neg", maps), footprint, before, after, frame))
    return _dilate(nodes, eroded, footprint[::-1, ::-1], after, before, frame)


def _dilate(
    nodes: _Nodes, maps: str, footprint: NDArray[np.bool_], before: int, after: int, frame: tuple[int, int]
) -> str:
    """Maximum over the footprint: each of its rows is one run of pixels, hence a 1 x n pooling of the shifted map."""
    height, width = frame
    for axis in (_ROWS, _COLUMNS):
        maps = _mirror(nodes, maps, axis, frame, before, after)
    rows = []
    for y, inside in enumerate(footprint):
        first, last = np.flatnonzero(inside)[[0, -1]].tolist()
        row = nodes.slice(maps, [y, first], [y + height, last + width], [_ROWS, _COLUMNS])
        if last > first:
            row = nodes.add("MaxPool", row, kernel_shape=[1, last - first + 1], strides=[1, 1])
        rows.append(row)
    return nodes.add("Max", *rows)


def _mirror(nodes: _Nodes, data: str, axis: int, frame: tuple[int, int], before: int, after: int) -> str:
    """Extend an axis by its mirror image, edge pixel included, repeating it as often as needed."""
    indices = np.pad(np.arange(frame[axis - 2], dtype=np.int64), (before, after), mode="symmetric")
    return nodes.add("Gather", data, nodes.constant(indices), axis=axis)


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
