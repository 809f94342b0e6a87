"""Import any ONNX anomaly detector that outputs a map, a score, or both as a bundle that every command accepts.

The graph is converted to the form of adedge's own exports (see `adedge.export.fp32`): one input "frame" (N, C, H, W),
an output "map" (N, 1, H, W) of the input's size, and "score" (N,) if the detector outputs one. Such a bundle has no
PyTorch model: ONNX Runtime's FP32 results of this graph are the reference for every other graph and engine.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from adedge import __version__
from adedge.bundle import Bundle, check_creatable, create, sha256_of
from adedge.calibration.onnx_model import (
    OPSET,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    convert_opset,
    helper,
    load,
    numpy_helper,
    opset_of,
    serialise,
    with_prefix,
)
from adedge.calibration.thresholds import clipping
from adedge.data.datasets import Dataset
from adedge.data.pictures import network_input
from adedge.errors import EngineError, GateError, UsageError
from adedge.export.fp32 import INPUT, strip_metadata
from adedge.export.graph_runs import import_onnxruntime, run_graph, simplify
from adedge.golden import GoldenFrames, choose_frames, golden_file
from adedge.manifest import IMPORTED, Manifest, Provenance
from adedge.scoring import maps_and_scores
from adedge.specs import Filter, InputSpec, ReadyMap, ScoreSpec

Color = Literal["rgb", "bgr", "gray"]

MAX_BATCH = 256  # frames that a graph with a fixed batch is tried with
TEST_BATCH = 3  # frames per run, to test whether a graph supports a dynamic batch
# How far results may change, relative to the largest value, when a graph is simplified or runs several frames at once.
TOLERANCE = 1e-3
TIMEOUT_S = 60.0  # that one run of an imported graph may take
_PREFIX = "model/"  # of the imported graph's own names

# Operators that no ONNX parser of TensorRT 8.5 to 10 supports, from docs/operators.md of onnx-tensorrt; not exhaustive.
UNSUPPORTED_BY_TENSORRT = frozenset(
    {
        "BitShift",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "Det",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RandomNormal",
        "RandomNormalLike",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringNormalizer",
        "TfIdfVectorizer",
    }
)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the user must say about a graph because the graph does not.

    ``map`` and ``score`` are names of outputs; leave out a kind that the graph lacks, or both if it has one output.
    ``size`` is (height, width), for graphs that take pictures of any size. The other fields are those of `InputSpec`
    and `ScoreSpec`; ``reduce`` turns the map into a score if the graph outputs none.
    """

    map: str | None = None
    score: str | None = None
    size: tuple[int, int] | None = None
    color: Color | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    filters: tuple[Filter, ...] = ()
    reduce: Literal["max", "mean"] = "max"


@dataclass(frozen=True, kw_only=True)
class Detector:
    """An imported graph in adedge's form, its specs, golden frames with results, and notes for the user.

    ``maps`` (N, H, W) and ``scores`` (N,) are the graph's results for the golden frames.
    """

    graph: bytes
    input: InputSpec
    score: ScoreSpec
    golden: GoldenFrames
    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    notes: tuple[str, ...]


def import_model(
    path: Path,
    description: Description,
    golden: Dataset,
    *,
    output: Path,
    trained_on: Dataset | None = None,
    overwrite: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> tuple[Bundle, tuple[str, ...]]:
    """Write the bundle ``output`` from the ONNX file ``path``; returns it with notes for the user.

    ``golden`` provides the frames of the self-test (see `adedge.golden`). ``trained_on`` are the model's training
    pictures, on which no threshold may be fitted; None means that `adedge calibrate` will get none of them.
    ``timeout_s`` bounds each run of the graph on one frame.

    Raises `UsageError` if ``description`` is incomplete or contradicts the graph, `EngineError` if the graph cannot be
    used, `GateError` if its results are not finite or change during conversion, `DataError`, `BundleError`,
    `MissingDependency`.
    """
    check_creatable(output, overwrite=overwrite)
    detector = detector_from_onnx(path, description, golden, timeout_s=timeout_s)
    outputs = {"map": description.map, "score": description.score}
    manifest = Manifest(
        method=IMPORTED,
        variant="map" if detector.score.reduce != "output" else "score",
        network={"file": path.name},
        input=detector.input,
        score=detector.score,
        provenance=Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            data=path.name,
            data_digest=sha256_of(path),
            seed=0,
            budget="as it came",
            device="cpu",
            versions=_versions(),
            options={name: value for name, value in outputs.items() if value is not None},
        ),
    )
    pictures = [] if trained_on is None else [sample.digest for sample in (*trained_on.train, *trained_on.calibration)]
    with create(output, manifest, overwrite=overwrite) as draft:
        draft.write(manifest.weights, detector.graph)
        draft.write_json("training.json", {"pictures": pictures, "history": []})
        draft.write("golden.npz", golden_file(detector.golden, detector.maps, detector.scores))
    return draft.bundle, detector.notes


def detector_from_onnx(
    path: Path, description: Description, golden: Dataset, *, timeout_s: float = TIMEOUT_S
) -> Detector:
    """Convert a graph to adedge's form and check that its results for the golden frames do not change.

    Raises `UsageError`, `EngineError` and `GateError` as `import_model` does.
    """
    model = load(path)
    spec = _input_spec(path, model, description)
    outputs = _outputs(path, model, description)
    score = _score_spec(path, outputs, description)
    notes = _incompatibilities_with_tensorrt(model)
    frames = choose_frames(golden, spec)
    x = network_input(frames.frames, spec)
    try:
        # One frame at a time, which every graph supports unless its batch is fixed.
        single = _select_outputs(model, outputs, spec, batch=1).SerializeToString()
        runs = run_graph(path, single, x, batch=1, timeout_s=timeout_s, unoptimised=True)
        raw = {kind: np.stack(values) for kind, values in zip(outputs, zip(*runs, strict=True), strict=True)}
        expected = {kind: _convert_output(path, kind, outputs[kind], values, spec) for kind, values in raw.items()}
    except EngineError as error:
        batch = _declared_batch(model, outputs.values())
        if batch is None or not _runs(path, _select_outputs(model, outputs, spec, batch=batch), x, batch, timeout_s):
            raise
        raise EngineError(
            f"{path} takes exactly {batch} frames at once: export it for one frame, or for any number, in PyTorch with "
            "dynamic_shapes or dynamic_axes of torch.onnx.export"
        ) from error
    shapes = {kind: values.shape[1:] for kind, values in raw.items()}
    graph = _detector_graph(model, outputs, shapes, spec, batch=1)
    change = _relative_change(expected, _results(path, graph, x, batch=1, timeout_s=timeout_s))
    if change > TOLERANCE:
        raise GateError(
            f"simplifying {path} changes its results by {change:.1%}, more than {TOLERANCE:.1%}: nothing was written"
        )
    try:
        dynamic = _detector_graph(model, outputs, shapes, spec, batch="batch")
        results = _results(path, dynamic, x, batch=min(TEST_BATCH, len(x)), timeout_s=TEST_BATCH * timeout_s)
        change = _relative_change(expected, results)
        problem = f"its results then differ by {change:.1%}" if change > TOLERANCE else None
    except EngineError as error:
        problem = str(error)
    if problem is None:
        graph = dynamic
    else:
        notes.append(f"this graph takes only one frame at a time: {problem}")
    results = _results(path, graph, x, batch=1, timeout_s=timeout_s)
    maps, scores = maps_and_scores(score, [results[kind] for kind in ("map", "score") if kind in results])
    if (warning := clipping(scores)) is not None:
        notes.append(f"golden frames: {warning}")
    return Detector(graph=graph, input=spec, score=score, golden=frames, maps=maps, scores=scores, notes=tuple(notes))


def _input_spec(path: Path, model: ModelProto, description: Description) -> InputSpec:
    """The input's (C, H, W) from the graph, combined with ``description``; raises `UsageError` or `EngineError`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise EngineError(f"{path} has {len(inputs)} inputs ({names}): export it with one, the frame")
    (value,) = inputs
    tensor_type = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim]
    text = _shape_text(value)
    if tensor_type.elem_type != TensorProto.FLOAT:
        raise EngineError(f"{path}: its input {text} is {_type_text(value)}: export it with a float32 input")
    if len(sizes) != 4:
        raise EngineError(f"{path}: its input {text} is not a batch of pictures: export it as (N, C, H, W)")
    if sizes[3] in (1, 3) and sizes[1] not in (1, 3):
        raise EngineError(
            f"{path}: its input {text} has the channels last: export it as (N, C, H, W), from TensorFlow with "
            f"tf2onnx's --inputs-as-nchw {value.name}, from PyTorch with permute(0, 2, 3, 1) at the start of forward()"
        )
    channels = sizes[1] or (1 if description.color == "gray" else 3)
    if channels not in (1, 3):
        raise EngineError(f"{path}: its input {text} has {channels} channels, not 1 or 3: export it as (N, C, H, W)")
    size = (sizes[2], sizes[3])
    requested = description.size
    if requested is None and (size[0] is None or size[1] is None):
        raise UsageError(f"{path}: its input {text} takes pictures of any size: choose one with --input-size HxW")
    if requested is not None and any(own not in (None, side) for own, side in zip(size, requested, strict=True)):
        raise UsageError(
            f"{path}: --input-size {requested[0]}x{requested[1]} does not match its input {text}: leave the option out"
        )
    height, width = requested or (size[0] or 0, size[1] or 0)
    try:
        return InputSpec(
            height=height,
            width=width,
            channels=1 if channels == 1 else 3,
            color=description.color or ("gray" if channels == 1 else "rgb"),
            scale=description.scale,
            mean=description.mean,
            std=description.std,
        )
    except ValidationError as error:
        raise UsageError(f"{path}: {_first_problem(error)}") from error


def _declared_batch(model: ModelProto, outputs: Iterable[str]) -> int | None:
    """The number of frames, more than one, that the input or one of ``outputs`` is declared for; None if it is not."""
    constants, outputs = {tensor.name for tensor in model.graph.initializer}, set(outputs)
    values = [value for value in model.graph.input if value.name not in constants]
    values += [value for value in model.graph.output if value.name in outputs]
    sizes = [dims[0].dim_value for value in values if len(dims := _dims(value)) > 1]
    return next((size for size in sizes if 1 < size <= MAX_BATCH), None)


def _runs(path: Path, model: ModelProto, x: NDArray[np.float32], batch: int, timeout_s: float) -> bool:
    """Whether the model can run ``batch`` frames at once."""
    frames = np.resize(x, (batch, *x.shape[1:]))
    try:
        run_graph(path, model.SerializeToString(), frames, batch=batch, timeout_s=timeout_s, unoptimised=True)
    except EngineError:
        return False
    return True


def _outputs(path: Path, model: ModelProto, description: Description) -> dict[str, str]:
    """Names of the selected outputs by kind: "map", "score", or both in that order.

    Raises `UsageError` if the selection is ambiguous or names no output.
    """
    values = {value.name: value for value in model.graph.output}
    if not values:
        raise EngineError(f"{path} has no outputs: export it with the anomaly map, the picture's score, or both")
    listed = ", ".join(_shape_text(value) for value in values.values())
    options = {"map": description.map, "score": description.score}
    outputs = {kind: name for kind, name in options.items() if name is not None}
    if not outputs and len(values) > 1:
        raise UsageError(
            f"{path} has {len(values)} outputs, {listed}: say which is the anomaly map and which the picture's score "
            "with --map NAME, --score NAME, or both"
        )
    for kind, name in outputs.items():
        if name not in values:
            raise UsageError(f"{path} has no output '{name}' for --{kind}: it has {listed}")
    if not outputs:
        (only,) = values.values()
        tensor_type = only.type.tensor_type
        is_score = tensor_type.HasField("shape") and len(tensor_type.shape.dim) < 3
        outputs = {"score" if is_score else "map": only.name}
    return outputs


def _score_spec(path: Path, outputs: Mapping[str, str], description: Description) -> ScoreSpec:
    if "map" not in outputs and description.filters:
        raise UsageError(f"{path} outputs a score but no map, so there is nothing to filter: leave --filter out")
    reduce: Literal["max", "mean", "output"] = "output" if "score" in outputs else description.reduce
    return ScoreSpec(comparison=ReadyMap(), filters=description.filters, reduce=reduce)


def _select_outputs(model: ModelProto, outputs: Mapping[str, str], spec: InputSpec, *, batch: int | str) -> ModelProto:
    """A copy of the model with a fixed input size, only the selected outputs, and only the nodes that they need."""
    subset = ModelProto()
    subset.CopyFrom(model)
    graph = subset.graph
    constants = {tensor.name for tensor in graph.initializer}
    needed = set(outputs.values())
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _tensors_read(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    name = next(value.name for value in graph.input if value.name not in constants)
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *spec.shape]))
    graph.output.extend(helper.make_tensor_value_info(name, kinds[name], None) for name in outputs.values())
    return subset


def _tensors_read(node: NodeProto) -> set[str]:
    """Names of the tensors that a node reads, including those that its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            for inner in subgraph.node:
                names |= _tensors_read(inner)
    return names


def _convert_output(path: Path, kind: str, name: str, values: NDArray[Any], spec: InputSpec) -> NDArray[np.float32]:
    """An output's values for N single frames as maps (N, 1, H, W) or scores (N,), float32.

    Raises `EngineError` if their dtype or shape does not fit, `GateError` if a value is not finite.
    """
    count, *shape = values.shape
    if values.dtype != np.float32:
        raise EngineError(f"{path}: its output '{name}' is {values.dtype}: choose or export a float32 output")
    if not np.isfinite(values).all():
        raise GateError(f"{path}: '{name}' is not finite for a golden frame: check --scale, --mean and --std")
    if kind == "score":
        if values.size != count:
            raise EngineError(
                f"{path}: its output '{name}' has shape {tuple(shape)} for one frame; a score must be one number"
            )
        return values.reshape(count)
    if len(shape) < 2 or values.size != count * shape[-2] * shape[-1]:
        raise EngineError(f"{path}: its output '{name}' has shape {tuple(shape)} for one frame; a map must be (H, W)")
    maps = values.reshape(count, *shape[-2:])
    if maps.shape[1:] != (spec.height, spec.width):
        maps = np.stack([cv2.resize(one, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR) for one in maps])
    return maps[:, None]


def _results(
    path: Path, graph: bytes, x: NDArray[np.float32], *, batch: int, timeout_s: float
) -> dict[str, NDArray[np.float32]]:
    """The "map" (n, 1, H, W) and, if present, "score" (n,) that a graph in adedge's form outputs."""
    runs = run_graph(path, graph, x, batch=batch, timeout_s=timeout_s)
    return {
        kind: np.concatenate(values) for kind, values in zip(("map", "score"), zip(*runs, strict=True), strict=False)
    }


def _relative_change(expected: Mapping[str, NDArray[np.float32]], results: Mapping[str, NDArray[np.float32]]) -> float:
    """The largest difference as a fraction of the largest value; infinite if the shapes differ."""
    changes = []
    for kind, values in expected.items():
        actual = results[kind]
        if actual.shape[1:] != values.shape[1:]:
            return math.inf
        largest = float(np.abs(values).max())
        difference = float(np.abs(actual - values[: len(actual)]).max())
        changes.append(difference / largest if largest else difference)
    return max(changes)


def _detector_graph(
    model: ModelProto,
    outputs: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    spec: InputSpec,
    *,
    batch: int | str,
) -> bytes:
    """The model in adedge's form; ``shapes`` are those of the selected outputs for one frame."""
    # The prefix avoids collisions: the model may use any name, including "map" and "score".
    subset = with_prefix(_select_outputs(model, outputs, spec, batch=batch), _PREFIX)
    graph = subset.graph
    own_input = graph.input[0].name
    # Nodes must be in topological order, so the renaming comes first; simplifying removes Identity nodes.
    nodes = [helper.make_node("Identity", [INPUT], [own_input]), *graph.node]
    for kind, name in outputs.items():
        if kind == "map":
            nodes += _map_nodes(graph, _PREFIX + name, shapes[kind], spec)
        else:
            nodes += _reshape_nodes(graph, _PREFIX + name, "score", [-1])
    if "map" not in outputs:
        # Without a map, every pixel gets the picture's score.
        nodes += _reshape_nodes(graph, "score", "score_pixel", [-1, 1, 1, 1])
        graph.initializer.append(_integers("flat_map_size", [1, 1, spec.height, spec.width]))
        nodes.append(helper.make_node("Expand", ["score_pixel", "flat_map_size"], ["map"]))
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input[0].name = INPUT
    graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 1, spec.height, spec.width]))
    if "score" in outputs:
        graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]))
    simplified = simplify(convert_opset(subset, OPSET))
    for number, node in enumerate(simplified.graph.node):
        node.name = f"{node.op_type}_{number}"  # INT8 identifies nodes by name, which exporters may leave empty
    strip_metadata(simplified)
    return serialise(simplified)


def _map_nodes(graph: GraphProto, name: str, shape: tuple[int, ...], spec: InputSpec) -> list[NodeProto]:
    """Nodes from an output (N, 1, h, w) or (N, h, w) to "map" (N, 1, H, W), resized bilinearly if the size differs."""
    height, width = shape[-2:]
    if (height, width) == (spec.height, spec.width):
        return _reshape_nodes(graph, name, "map", [-1, 1, height, width])
    scales = np.array([1, 1, spec.height / height, spec.width / width], np.float32)
    # The output size is floor(length * scale): rounding down must not lose the last pixel.
    scales[2:] = np.nextafter(scales[2:], np.float32(np.inf))
    graph.initializer.append(numpy_helper.from_array(scales, "map_scales"))
    resize = helper.make_node(
        "Resize",
        ["small_map", "", "map_scales"],
        ["map"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    return [*_reshape_nodes(graph, name, "small_map", [-1, 1, height, width]), resize]


def _reshape_nodes(graph: GraphProto, source: str, target: str, shape: list[int]) -> list[NodeProto]:
    graph.initializer.append(_integers(f"{target}_shape", shape))
    return [helper.make_node("Reshape", [source, f"{target}_shape"], [target])]


def _integers(name: str, values: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _incompatibilities_with_tensorrt(model: ModelProto) -> list[str]:
    """Notes about operators and opsets that TensorRT's parser is known to reject; only a build is conclusive."""
    notes = []
    unsupported = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
        | {node.op_type for node in model.graph.node if node.op_type in UNSUPPORTED_BY_TENSORRT}
    )
    if unsupported:
        notes.append(f"TensorRT does not support {', '.join(unsupported)}: it cannot build engines from this graph")
    if opset_of(model) > OPSET:
        notes.append(f"opset {opset_of(model)}: TensorRT 8.5 and 8.6 parse at most {OPSET}, later versions more")
    return notes


def _shape_text(value: ValueInfoProto) -> str:
    """Text for an input or output: "anomaly_map (N × 1 × 256 × 256)"."""
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in _dims(value)]
    return f"{value.name} ({' × '.join(dims)})"


def _dims(value: ValueInfoProto) -> list[Any]:
    return list(value.type.tensor_type.shape.dim)


def _type_text(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    known = kind in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(kind)).lower() if known else f"of the unknown type {kind}"


def _first_problem(error: ValidationError) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def _versions() -> dict[str, str]:
    ort = import_onnxruntime()
    return {
        "adedge": __version__,
        "python": platform.python_version(),
        "onnxruntime": str(ort.__version__),
        "numpy": np.__version__,
    }
