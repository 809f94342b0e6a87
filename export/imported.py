"""A bundle from any ONNX anomaly detector that gives a map, a score, or both: from then on everything works.

The graph is brought into the form that this package's own exports have (see `adedge.export.fp32`): one input
"frame" (N, C, H, W), an output "map" (N, 1, H, W) of the input's size, and "score" (N,) where the detector gives its
own. There is no PyTorch model behind such a bundle: ONNX Runtime's FP32 results of this graph are the reference that
every other graph and engine is compared with.
"""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from adedge import __version__
from adedge.bundle import IMPORTED, Bundle, Manifest, Provenance, check_creatable, create, sha256_of
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
    renamed,
    serialise,
)
from adedge.data.datasets import Dataset
from adedge.data.pictures import network_input
from adedge.errors import EngineError, GateError, MissingDependency, UsageError
from adedge.export.fp32 import INPUT, strip_metadata
from adedge.golden import GoldenFrames, choose_frames, golden_file
from adedge.scoring import maps_and_scores
from adedge.specs import Filter, InputSpec, ReadyMap, ScoreSpec

Color = Literal["rgb", "bgr", "gray"]

TRIED_BATCH = 3  # frames at once, to see whether a graph takes more than one
# As fractions of the largest value: what a graph may change by while it is simplified or run on several frames at once.
TOLERANCE = 1e-3
_OWN = "model/"  # what the imported graph's own names begin with

# What no ONNX parser of TensorRT 8.5 to 10 takes, after docs/operators.md of onnx-tensorrt. Not complete: a build says.
UNKNOWN_TO_TENSORRT = frozenset(
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
    """What a graph does not say about itself.

    ``map`` and ``score`` are names of outputs, None where there is only one output or none of that kind. ``size`` is
    (height, width), for graphs that take pictures of any size. The other fields are those of `InputSpec` and
    `ScoreSpec`; ``reduce`` makes a score of the map where the graph gives none.
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
    """An imported graph in this package's form, its specs, and sentences about what was found."""

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
) -> tuple[Bundle, tuple[str, ...]]:
    """Write the bundle ``output`` from the ONNX file ``path``; returns it with sentences about what was found.

    ``golden`` gives the frames of the self-test (see `adedge.golden`). ``trained_on`` are the pictures that the model
    has seen, which no threshold may be fitted on; None means none of those that `adedge calibrate` is going to get.

    Raises `UsageError` where something has to be said that the graph leaves open, `EngineError` where the graph cannot
    be used, `GateError` where its results are not finite, `DataError`, `BundleError`, `MissingDependency`.
    """
    check_creatable(output, overwrite=overwrite)
    detector = detector_from_onnx(path, description, golden)
    chosen = {"map": description.map, "score": description.score}
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
            options={name: value for name, value in chosen.items() if value is not None},
        ),
    )
    pictures = [] if trained_on is None else [sample.digest for sample in (*trained_on.train, *trained_on.calibration)]
    with create(output, manifest, overwrite=overwrite) as draft:
        draft.write(manifest.weights, detector.graph)
        draft.write_json("training.json", {"pictures": pictures, "history": []})
        draft.write("golden.npz", golden_file(detector.golden, detector.maps, detector.scores))
    return Bundle.open(output), detector.notes


def detector_from_onnx(path: Path, description: Description, golden: Dataset) -> Detector:
    """Bring a graph into this package's form, and hold it to what the model gives for the golden frames as it came."""
    model = load(path)
    spec = _input_spec(path, model, description)
    outputs = _outputs(path, model, description)
    score = _score_spec(path, outputs, description)
    notes = _incompatibilities_with_tensorrt(model)
    frames = choose_frames(golden, spec)
    x = network_input(frames.frames, spec)
    # One frame at a time, which every graph can do.
    parts = _run(path, _selected(model, outputs, spec, batch=1).SerializeToString(), x, at_once=1)
    raw = {kind: np.stack(values) for kind, values in zip(outputs, zip(*parts, strict=True), strict=True)}
    expected = {kind: _in_form(path, kind, outputs[kind], values, spec) for kind, values in raw.items()}
    shapes = {kind: values.shape[1:] for kind, values in raw.items()}
    graph = _detector_graph(model, outputs, shapes, spec, batch=1)
    change = _change(expected, _results(path, graph, x, at_once=1))
    if change > TOLERANCE:
        raise GateError(
            f"{path} gives results that are {change:.1%} different once it is simplified: nothing was written"
        )
    try:
        several = _detector_graph(model, outputs, shapes, spec, batch="batch")
        change = _change(expected, _results(path, several, x, at_once=min(TRIED_BATCH, len(x))))
        problem = f"its results are {change:.1%} different then" if change > TOLERANCE else None
    except EngineError as error:
        problem = str(error)
    if problem is None:
        graph = several
    else:
        notes.append(f"this graph takes one frame at a time, not several: {problem}")
    results = _results(path, graph, x, at_once=1)
    maps, scores = maps_and_scores(score, [results[kind] for kind in ("map", "score") if kind in results])
    return Detector(graph=graph, input=spec, score=score, golden=frames, maps=maps, scores=scores, notes=tuple(notes))


def _input_spec(path: Path, model: ModelProto, description: Description) -> InputSpec:
    """The only input's (C, H, W) with what ``description`` says of it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise EngineError(f"{path} has {len(inputs)} inputs ({names}), and a frame is all there is: export it with one")
    (value,) = inputs
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    shown = _shape_text(value)
    if kind.elem_type != TensorProto.FLOAT:
        raise EngineError(f"{path}: its input {shown} is {_type_text(value)}: export it with an input of float32")
    if len(sizes) != 4:
        raise EngineError(f"{path}: its input {shown} is no batch of pictures (N, C, H, W): export it with one")
    channels = sizes[1] or (1 if description.color == "gray" else 3)
    if channels not in (1, 3):
        raise EngineError(
            f"{path}: its input {shown} has {channels} channels where 1 or 3 are expected, before H and W"
        )
    size = (sizes[2], sizes[3])
    given = description.size
    if given is None and (size[0] is None or size[1] is None):
        raise UsageError(f"{path}: its input {shown} takes pictures of any size: say which with --input-size HxW")
    if given is not None and any(own not in (None, wanted) for own, wanted in zip(size, given, strict=True)):
        raise UsageError(f"{path}: its input {shown} is not --input-size {given[0]}x{given[1]}: leave the option out")
    height, width = given or (size[0] or 0, size[1] or 0)
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


def _outputs(path: Path, model: ModelProto, description: Description) -> dict[str, str]:
    """The chosen outputs' names in the graph by what they are: "map", "score", or both in that order.

    Raises `UsageError` where it is not clear which are meant.
    """
    values = {value.name: value for value in model.graph.output}
    listed = ", ".join(_shape_text(value) for value in values.values())
    asked = {"map": description.map, "score": description.score}
    chosen = {kind: name for kind, name in asked.items() if name is not None}
    if not chosen and len(values) > 1:
        raise UsageError(
            f"{path} has {len(values)} outputs, {listed}: say which is the anomaly map and which the picture's score "
            "with --map NAME, --score NAME, or both"
        )
    for kind, name in chosen.items():
        if name not in values:
            raise UsageError(f"{path} has no output '{name}' for --{kind}: it has {listed}")
    if not chosen:
        (only,) = values.values()
        kind = only.type.tensor_type
        is_score = kind.HasField("shape") and len(kind.shape.dim) < 3
        chosen = {"score" if is_score else "map": only.name}
    return chosen


def _score_spec(path: Path, outputs: Mapping[str, str], description: Description) -> ScoreSpec:
    if "map" not in outputs and description.filters:
        raise UsageError(f"{path} gives a score and no map, so there is nothing to filter: leave the filters out")
    reduce: Literal["max", "mean", "output"] = "output" if "score" in outputs else description.reduce
    return ScoreSpec(comparison=ReadyMap(), filters=description.filters, reduce=reduce)


def _selected(model: ModelProto, outputs: Mapping[str, str], spec: InputSpec, *, batch: int | str) -> ModelProto:
    """The model with an input of fixed size, and of its outputs only the chosen ones and what they need."""
    selected = ModelProto()
    selected.CopyFrom(model)
    graph = selected.graph
    constants = {tensor.name for tensor in graph.initializer}
    needed = set(outputs.values())
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _read_by(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    name = next(value.name for value in graph.input if value.name not in constants)
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *spec.shape]))
    graph.output.extend(helper.make_tensor_value_info(name, kinds[name], None) for name in outputs.values())
    return selected


def _read_by(node: NodeProto) -> set[str]:
    """The tensors that a node reads, its inner graphs' included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for one in inner.node:
                names |= _read_by(one)
    return names


def _in_form(path: Path, kind: str, name: str, values: NDArray[Any], spec: InputSpec) -> NDArray[np.float32]:
    """An output's values for N single frames as maps (N, 1, H, W) or scores (N,), float32.

    Raises `EngineError` where they are neither, `GateError` where they are not finite.
    """
    count, *shape = values.shape
    if values.dtype != np.float32:
        raise EngineError(f"{path}: its output '{name}' is {values.dtype}: choose or export one of float32")
    if not np.isfinite(values).all():
        raise GateError(f"{path}: '{name}' is not finite for a golden frame: check --scale, --mean and --std")
    if kind == "score":
        if values.size != count:
            raise EngineError(f"{path}: its output '{name}' is {tuple(shape)} for one frame, and a score is one number")
        return values.reshape(count)
    if len(shape) < 2 or values.size != count * shape[-2] * shape[-1]:
        raise EngineError(f"{path}: its output '{name}' is {tuple(shape)} for one frame, and a map is (H, W)")
    maps = values.reshape(count, *shape[-2:])
    if maps.shape[1:] != (spec.height, spec.width):
        maps = np.stack([cv2.resize(one, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR) for one in maps])
    return maps[:, None]


def _results(path: Path, graph: bytes, x: NDArray[np.float32], *, at_once: int) -> dict[str, NDArray[np.float32]]:
    """The "map" (n, 1, H, W) and, where there is one, "score" (n,) of a graph in this package's form."""
    parts = _run(path, graph, x, at_once=at_once)
    return {
        kind: np.concatenate(values) for kind, values in zip(("map", "score"), zip(*parts, strict=True), strict=False)
    }


def _change(expected: Mapping[str, NDArray[np.float32]], results: Mapping[str, NDArray[np.float32]]) -> float:
    """The largest difference as a fraction of the largest value; infinite where the shapes differ."""
    changes = []
    for kind, values in expected.items():
        found = results[kind]
        if found.shape[1:] != values.shape[1:]:
            return math.inf
        largest = float(np.abs(values).max())
        difference = float(np.abs(found - values[: len(found)]).max())
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
    """The model in this package's form; ``shapes`` are those of the chosen outputs for one frame."""
    # Its own names may be any, "map" and "score" among them.
    selected = renamed(_selected(model, outputs, spec, batch=batch), _OWN)
    graph = selected.graph
    own_input = graph.input[0].name
    # The input under its new name first, for nodes are sorted; simplifying removes what only renames.
    nodes = [helper.make_node("Identity", [INPUT], [own_input]), *graph.node]
    for kind, name in outputs.items():
        if kind == "map":
            nodes += _map_nodes(graph, _OWN + name, shapes[kind], spec)
        else:
            nodes += _reshaped(graph, _OWN + name, "score", [-1])
    if "map" not in outputs:
        # A detector of pictures has no map: its score stands in every pixel.
        nodes += _reshaped(graph, "score", "score_pixel", [-1, 1, 1, 1])
        graph.initializer.append(_integers("flat_map_size", [1, 1, spec.height, spec.width]))
        nodes.append(helper.make_node("Expand", ["score_pixel", "flat_map_size"], ["map"]))
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input[0].name = INPUT
    graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 1, spec.height, spec.width]))
    if "score" in outputs:
        graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [batch]))
    simplified = _simplified(convert_opset(selected, OPSET))
    for number, node in enumerate(simplified.graph.node):
        node.name = f"{node.op_type}_{number}"  # INT8 goes by names, which exporters may leave empty
    strip_metadata(simplified)
    return serialise(simplified)


def _map_nodes(graph: GraphProto, name: str, shape: tuple[int, ...], spec: InputSpec) -> list[NodeProto]:
    """From an output (N, 1, h, w) or (N, h, w) to "map" (N, 1, H, W), resized bilinearly where it is smaller."""
    height, width = shape[-2:]
    if (height, width) == (spec.height, spec.width):
        return _reshaped(graph, name, "map", [-1, 1, height, width])
    scales = np.array([1, 1, spec.height / height, spec.width / width], np.float32)
    # The size is floor(length * scale): rounding must not take the last pixel.
    scales[2:] = np.nextafter(scales[2:], np.float32(np.inf))
    graph.initializer.append(numpy_helper.from_array(scales, "map_scales"))
    resize = helper.make_node(
        "Resize",
        ["small_map", "", "map_scales"],
        ["map"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    return [*_reshaped(graph, name, "small_map", [-1, 1, height, width]), resize]


def _reshaped(graph: GraphProto, source: str, target: str, shape: list[int]) -> list[NodeProto]:
    graph.initializer.append(_integers(f"{target}_shape", shape))
    return [helper.make_node("Reshape", [source, f"{target}_shape"], [target])]


def _integers(name: str, values: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _simplified(model: ModelProto) -> ModelProto:
    """ONNX Runtime's basic optimisations: constants folded, batch normalisation merged into convolutions."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise EngineError(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error
        simplified = load(target)
    used = {node.domain for node in simplified.graph.node}
    kept = [entry for entry in simplified.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del simplified.opset_import[:]
    simplified.opset_import.extend(kept)
    return simplified


def _run(path: Path, graph: bytes, x: NDArray[np.float32], *, at_once: int) -> list[list[NDArray[Any]]]:
    """The outputs for frames (N, C, H, W), ``at_once`` of them in each run; frames left over are not run."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        starts = range(0, len(x) - at_once + 1, at_once)
        return [session.run(None, {name: x[start : start + at_once]}) for start in starts]
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise EngineError(f"ONNX Runtime cannot run {path}: {_first_line(error)}") from error


def _incompatibilities_with_tensorrt(model: ModelProto) -> list[str]:
    """Sentences about what TensorRT's parser will not take; a build has the last word."""
    notes = []
    unexpected = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
        | {node.op_type for node in model.graph.node if node.op_type in UNKNOWN_TO_TENSORRT}
    )
    if unexpected:
        notes.append(f"TensorRT knows no {', '.join(unexpected)}: its engines cannot be built from this graph as it is")
    if opset_of(model) > OPSET:
        notes.append(f"opset {opset_of(model)}: TensorRT 8.5 and 8.6 parse at most {OPSET}, later ones take more")
    return notes


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export", "trying an imported graph") from error
    return onnxruntime


def _shape_text(value: ValueInfoProto) -> str:
    """An input or output for people: "anomaly_map (N × 1 × 256 × 256)"."""
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in _dims(value)]
    return f"{value.name} ({' × '.join(dims)})"


def _dims(value: ValueInfoProto) -> list[Any]:
    return list(value.type.tensor_type.shape.dim)


def _type_text(value: ValueInfoProto) -> str:
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _first_problem(error: ValidationError) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _versions() -> dict[str, str]:
    ort = _onnxruntime()
    return {
        "adedge": __version__,
        "python": platform.python_version(),
        "onnxruntime": str(ort.__version__),
        "numpy": np.__version__,
    }
