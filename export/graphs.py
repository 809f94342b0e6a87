"""All graphs of a bundle: made from one FP32 export, each compared with PyTorch before it is stored.

    model.fp32      model.fp16      model.int8 (Q/DQ with FP32 scales)      model.int8-fp16 (Q/DQ with FP16 scales)

and the same four as "scored.*", which go from frame to map and score.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle, Difference, Draft, Graph, Manifest
from adedge.errors import BundleError, MissingDependency
from adedge.export.verify import Run, check_tolerance, difference, tolerance_of
from adedge.golden import Golden, read_golden
from adedge.progress import Progress
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.specs import PRECISIONS, TARGETS, EngineKey, Precision

if TYPE_CHECKING:
    from adedge.calibration.ranges import Ranges

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class VerifiedGraph:
    """A verified graph: its stem ("scored.int8"), precision, file contents, and what the manifest says of it."""

    stem: str
    precision: Precision
    data: bytes
    record: Graph


def export_graphs(
    bundle: Bundle,
    precisions: Sequence[Precision] = PRECISIONS,
    *,
    opset: int | None = None,
    with_scoring: bool = False,
    progress: Progress | None = None,
) -> tuple[Bundle, tuple[str, ...]]:
    """Export into the bundle, all graphs or none; returns it reopened, and sentences about what no longer holds.

    The FP32 graph is always written. INT8 graphs are made where the bundle has ranges for it (see
    `adedge.export.calibrate`). Raises `GateError` where a graph is further from PyTorch than its tolerance,
    `BundleError`, `EngineError`, `MissingDependency`.

    >>> from adedge import open_bundle
    >>> bundle, notes = export_graphs(open_bundle("bottle.adedge"), ("fp32", "fp16"))
    >>> sorted(bundle.manifest.graphs)
    ['model.fp16', 'model.fp32']
    """
    require_packages()
    from adedge.calibration.onnx_model import OPSET
    from adedge.calibration.ranges import ranges_from_json
    from adedge.export.fp32 import export_fp32

    notes: list[str] = []
    with bundle.edit() as draft:
        fp32 = export_fp32(bundle, opset=opset or OPSET)
        ranges = None
        if "int8" in precisions:
            try:
                ranges = ranges_from_json(bundle.read("ranges.json").decode(), fp32)
            except BundleError as error:
                notes.append(f"no INT8 graphs: {error}")
        files = graph_files(fp32, precisions, ranges)
        made = verified(bundle, files, ranges, with_scoring=with_scoring, progress=progress)
        notes += store(draft, made)[1]
        notes += dropped_thresholds(bundle.manifest, draft.manifest)
    return Bundle.open(bundle.path), tuple(notes)


def require_packages() -> None:
    """Raise `MissingDependency` early where onnx or onnxruntime is not installed."""
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency(package, "export", "making and checking ONNX graphs") from error


def graph_files(fp32: bytes, precisions: Sequence[Precision], ranges: Ranges | None) -> dict[str, bytes]:
    """The graphs of some precisions by the last part of their stem ("int8-fp16"), made from the FP32 graph.

    INT8 with FP16 around it is made where both precisions are asked for.
    """
    from adedge.calibration.onnx_model import FP16_SCALES_OPSET, convert_opset, parse, serialise
    from adedge.calibration.qdq import int8_from_fp32
    from adedge.export.fp16 import fp16_from_fp32

    files = {"fp32": fp32}
    if "fp16" in precisions:
        files["fp16"] = fp16_from_fp32(fp32)
    if "int8" in precisions and ranges is not None:
        files["int8"] = int8_from_fp32(fp32, ranges)
        if "fp16" in precisions:
            newer = serialise(convert_opset(parse(fp32), FP16_SCALES_OPSET))
            files["int8-fp16"] = fp16_from_fp32(int8_from_fp32(newer, ranges))
    return files


def verified(
    bundle: Bundle,
    files: Mapping[str, bytes],
    ranges: Ranges | None,
    *,
    with_scoring: bool = False,
    progress: Progress | None = None,
) -> list[VerifiedGraph]:
    """Compare every graph with PyTorch, with scoring too where asked for or where the bundle has such graphs already.

    Raises `GateError` where one is further away than its tolerance.
    """
    from adedge.export.onnx_scoring import append_scoring

    manifest, golden = bundle.manifest, read_golden(bundle)
    with_scoring = with_scoring or any(graph.with_scoring for graph in manifest.graphs.values())
    stems = [(prefix, kind) for prefix in ("model", "scored")[: 1 + with_scoring] for kind in files]
    made = []
    for done, (prefix, kind) in enumerate(stems):
        if progress is not None:
            progress(done, len(stems), f"{prefix}.{kind}")
        scored = prefix == "scored"
        data = append_scoring(files[kind], manifest.score, manifest.input) if scored else files[kind]
        made.append(_verified(bundle, golden, f"{prefix}.{kind}", data, files["fp32"], ranges))
    if progress is not None:
        progress(len(stems), len(stems), "verified")
    return made


def _verified(
    bundle: Bundle, golden: Golden, stem: str, data: bytes, fp32: bytes, ranges: Ranges | None
) -> VerifiedGraph:
    """One graph's comparison with PyTorch, as its record."""
    from adedge.calibration.onnx_model import opset_of, parse

    prefix, kind = stem.split(".")
    precision = precision_of(stem)
    scored = prefix == "scored"
    # The INT8 graph with FP16 scales has no threshold of its own: TensorRT runs it, ONNX Runtime the other one.
    threshold = None if kind == "int8-fp16" else str(EngineKey("onnxruntime", precision))
    tolerance = tolerance_of(precision, bundle.manifest.score)
    run = run_with_onnxruntime(data)
    found = difference(bundle, golden, run, name=f"{stem}.onnx", threshold=threshold, scored=scored)
    check_tolerance(f"{stem}.onnx", found, golden, tolerance)
    notes: tuple[str, ...] = ()
    if precision == "fp16" and not scored:
        emulated = emulate_fp16(bundle, golden, fp32)
        check_tolerance(f"{stem}.onnx with FP16 activations", emulated, golden, tolerance)
        notes = _fp16_notes(emulated)
    elif precision == "int8" and ranges is not None:
        notes = ranges.notes
    model = parse(data)
    return VerifiedGraph(
        stem=stem,
        precision=precision,
        data=data,
        record=Graph(
            file=f"{stem}.onnx",
            opset=opset_of(model),
            inputs=tuple(value.name for value in model.graph.input),
            outputs=tuple(value.name for value in model.graph.output),
            with_scoring=scored,
            weights_sha256=bundle.manifest.files[bundle.manifest.weights].sha256,
            ranges_sha256=_sha256(json_from_ranges(ranges)) if precision == "int8" and ranges is not None else None,
            difference=found,
            notes=notes,
        ),
    )


def store(draft: Draft, made: Sequence[VerifiedGraph]) -> tuple[set[str], list[str]]:
    """Write graphs and their records, and drop thresholds of precisions whose graph changed.

    A changed FP32 graph takes the graphs along that came from the old one and were not made anew. Returns the names of
    the files that are not what the bundle had, and a sentence for each graph that is gone.
    """
    graphs, before = dict(draft.manifest.graphs), draft.manifest.files
    new = {one.record.file for one in made if draft.write(one.record.file, one.data) != before.get(one.record.file)}
    changed = [one for one in made if one.stem in graphs and one.record.file in new]
    stale: list[str] = []
    if any(one.stem == "model.fp32" for one in changed):
        stale = [stem for stem in graphs if stem not in {one.stem for one in made}]
    for one in made:
        graphs[one.stem] = one.record
    for stem in stale:
        draft.remove(graphs.pop(stem).file)
    precisions = {one.precision for one in changed} | {precision_of(stem) for stem in stale}
    gone = {str(EngineKey(target, precision)) for target in TARGETS for precision in precisions}
    thresholds = {name: value for name, value in draft.manifest.thresholds.items() if name not in gone}
    draft.manifest = draft.manifest.replace(graphs=graphs, thresholds=thresholds)
    return new, [f"{stem}.onnx was removed: it came from the FP32 graph that is replaced now" for stem in stale]


def dropped_thresholds(before: Manifest, after: Manifest) -> list[str]:
    """A sentence where thresholds went because their graphs changed."""
    gone = sorted(set(before.thresholds) - set(after.thresholds))
    if not gone:
        return []
    return [f"the graphs changed, so the thresholds of {', '.join(gone)} no longer hold: run 'adedge calibrate' again"]


def precision_of(stem: str) -> Precision:
    """The precision of a graph by its stem: "scored.int8-fp16" is INT8."""
    kind = stem.split(".")[1].split("-")[0]
    return next(precision for precision in PRECISIONS if precision == kind)


def json_from_ranges(ranges: Ranges) -> str:
    """The contents of ranges.json."""
    return ranges.model_dump_json(indent=2) + "\n"


def run_with_onnxruntime(graph: bytes) -> Run:
    """Run a graph as the runtime does: (N, C, H, W) float32 -> its outputs."""

    def run(frames: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        parts = []
        with OnnxRuntimeBackend(graph, batch=min(BATCH, len(frames)), or_fewer=True) as backend:
            for start in range(0, len(frames), backend.batch):
                part = frames[start : start + backend.batch]
                backend.input[: len(part)] = part
                backend.run(len(part))
                parts.append([output[: len(part)].copy() for output in backend.outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return run


def emulate_fp16(bundle: Bundle, golden: Golden, fp32: bytes) -> Difference:
    """The golden frames' difference with every weight and activation rounded to FP16, as on a GPU."""
    import onnxruntime as ort

    from adedge.export.fp16 import rounded_to_fp16

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(rounded_to_fp16(fp32), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(frames: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        parts = [session.run(None, {name: frame[None]}) for frame in frames]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return difference(bundle, golden, run, name="the network with every activation in FP16")


def _fp16_notes(emulated: Difference) -> tuple[str, ...]:
    auroc = "" if emulated.auroc_change is None else f", AUROC {emulated.auroc_change:+.4f}"
    return (
        "on a CPU ONNX Runtime computes this graph in FP32: the difference is that of weights rounded to FP16",
        f"with every activation rounded to FP16 as well, as on a GPU: map error {emulated.map_error:.2e}, "
        f"score error {emulated.score_error:.2e}{auroc}",
    )


def _sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
