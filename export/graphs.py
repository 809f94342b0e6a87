"""All graphs of a bundle: derived from one FP32 export, each compared with the reference before it is stored.

    model.fp32      model.fp16      model.int8 (Q/DQ with FP32 scales)      model.int8-fp16 (Q/DQ with FP16 scales)

and the same four as "scored.*", which compute map and score from a frame.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle, Draft
from adedge.errors import AdedgeError, BundleError, EngineError, GateError, MissingDependency
from adedge.export.verify import Run, check_tolerance, difference, tolerance_of
from adedge.golden import Golden, read_golden
from adedge.manifest import Difference, Graph, Manifest
from adedge.processors import physical_cores
from adedge.progress import Progress
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.specs import PRECISIONS, TARGETS, EngineKey, Precision

if TYPE_CHECKING:
    from adedge.calibration.ranges import Ranges

BATCH = 8


class PartialExport(GateError):  # noqa: N818 - says what the result is
    """Some graphs could not be made or missed their tolerance; the others are in the reopened ``bundle``."""

    def __init__(self, failures: Mapping[str, AdedgeError], bundle: Bundle, notes: tuple[str, ...]) -> None:
        super().__init__("; ".join(failure_sentences(failures)))
        self.bundle = bundle
        self.notes = notes


@dataclass(frozen=True, kw_only=True)
class VerifiedGraph:
    """A verified graph: its stem ("scored.int8"), precision, file contents and manifest entry."""

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
    """Export the graphs into the bundle; returns the reopened bundle and notes for the user.

    The FP32 graph is always written, INT8 graphs only if the bundle has INT8 ranges for it (see
    `adedge.export.calibrate`). Notes say which graphs are missing and which graphs or thresholds were dropped. Raises
    `GateError` if the FP32 graph differs from the reference by more than its tolerance, `PartialExport` after writing
    the other graphs if one of another precision does or cannot be made, `BundleError`, `EngineError`,
    `MissingDependency`.

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
        failures: dict[str, AdedgeError] = {}
        files = graph_files(fp32, precisions, ranges, failures)
        graphs = verify_graphs(bundle, files, ranges, failures, with_scoring=with_scoring, progress=progress)
        notes += store(draft, graphs)[1]
        notes += dropped_threshold_notes(bundle.manifest, draft.manifest)
    bundle = draft.bundle
    if failures:
        raise PartialExport(failures, bundle, tuple(notes))
    return bundle, tuple(notes)


def require_packages() -> None:
    """Raise `MissingDependency` unless onnx and onnxruntime are installed."""
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency(package, "export", "exporting and verifying ONNX graphs") from error


def graph_files(
    fp32: bytes,
    precisions: Sequence[Precision],
    ranges: Ranges | None,
    failures: dict[str, AdedgeError] | None = None,
) -> dict[str, bytes]:
    """Derive the graphs of the given precisions from the FP32 graph, keyed by the last part of their stem.

    "int8-fp16", with FP16 scales and FP16 in the unquantised layers, needs both precisions. The error of a graph that
    cannot be made goes into ``failures`` under its key; without ``failures``, it is raised.
    """
    from adedge.calibration.onnx_model import FP16_SCALES_OPSET, convert_opset, parse, serialise
    from adedge.calibration.qdq import int8_from_fp32
    from adedge.export.fp16 import fp16_from_fp32

    makers: dict[str, Callable[[], bytes]] = {}
    if "fp16" in precisions:
        makers["fp16"] = lambda: fp16_from_fp32(fp32)
    if "int8" in precisions and ranges is not None:
        makers["int8"] = lambda: int8_from_fp32(fp32, ranges)
        if "fp16" in precisions:
            newer = serialise(convert_opset(parse(fp32), FP16_SCALES_OPSET))
            makers["int8-fp16"] = lambda: fp16_from_fp32(int8_from_fp32(newer, ranges))
    files = {"fp32": fp32}
    for kind, make in makers.items():
        try:
            files[kind] = make()
        except AdedgeError as error:
            if failures is None:
                raise
            failures[kind] = error
    return files


def verify_graphs(
    bundle: Bundle,
    files: Mapping[str, bytes],
    ranges: Ranges | None,
    failures: dict[str, AdedgeError],
    *,
    with_scoring: bool = False,
    progress: Progress | None = None,
) -> list[VerifiedGraph]:
    """Compare every graph with the reference, with scored graphs too if requested or already in the bundle.

    A graph that differs by more than its tolerance or does not run is left out, and its error goes into ``failures``.
    Without "fp16" there is no "int8-fp16" either: its unquantised layers would fail for the same reason. Raises
    `GateError` if the FP32 graph differs, `EngineError` if it does not run.
    """
    from adedge.export.onnx_scoring import append_scoring

    manifest, golden = bundle.manifest, read_golden(bundle)
    with_scoring = with_scoring or any(graph.with_scoring for graph in manifest.graphs.values())
    stems = [(prefix, kind) for prefix in ("model", "scored")[: 1 + with_scoring] for kind in files]
    graphs = []
    for done, (prefix, kind) in enumerate(stems):
        if progress is not None:
            progress(done, len(stems), f"{prefix}.{kind}")
        scored = prefix == "scored"
        if kind in failures:
            continue
        try:
            data = append_scoring(files[kind], manifest.score, manifest.input) if scored else files[kind]
            graphs.append(_verify(bundle, golden, f"{prefix}.{kind}", data, files["fp32"], ranges))
        except (EngineError, GateError) as error:
            if kind == "fp32":
                raise type(error)(f"{error}; the bundle is unchanged") from error
            failures[kind] = error
            if kind == "fp16" and "int8-fp16" in files:
                failures["int8-fp16"] = error
    if progress is not None:
        progress(len(stems), len(stems), "verified")
    return [graph for graph in graphs if graph.stem.split(".")[1] not in failures]


def _verify(
    bundle: Bundle, golden: Golden, stem: str, data: bytes, fp32: bytes, ranges: Ranges | None
) -> VerifiedGraph:
    """Compare one graph with the reference and check its tolerance."""
    from adedge.calibration.onnx_model import opset_of, parse

    prefix, kind = stem.split(".")
    precision = precision_of(stem)
    scored = prefix == "scored"
    # ONNX Runtime's INT8 threshold belongs to the graph with FP32 scales; the one with FP16 scales is for TensorRT.
    threshold = None if kind == "int8-fp16" else str(EngineKey("onnxruntime", precision))
    tolerance = tolerance_of(precision, bundle.manifest.score)
    run = run_with_onnxruntime(data)
    result = difference(bundle, golden, run, name=f"{stem}.onnx", threshold=threshold, scored=scored)
    check_tolerance(f"{stem}.onnx", result, golden, tolerance)
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
            difference=result,
            notes=notes,
        ),
    )


def store(draft: Draft, graphs: Sequence[VerifiedGraph]) -> tuple[set[str], list[str]]:
    """Write graphs and their manifest entries; drop the thresholds of each precision with a changed or removed one.

    A changed FP32 graph also removes every stored graph that is not among ``graphs``, since the old FP32 graph was its
    source. Returns the names of the files that were added or changed, and a note for each graph that was removed.
    """
    entries, before = dict(draft.manifest.graphs), draft.manifest.files
    new_files = {
        graph.record.file
        for graph in graphs
        if draft.write(graph.record.file, graph.data) != before.get(graph.record.file)
    }
    changed = [graph for graph in graphs if graph.stem in entries and graph.record.file in new_files]
    stale: list[str] = []
    if any(graph.stem == "model.fp32" for graph in changed):
        stale = [stem for stem in entries if stem not in {graph.stem for graph in graphs}]
    for graph in graphs:
        entries[graph.stem] = graph.record
    for stem in stale:
        draft.remove(entries.pop(stem).file)
    precisions = {graph.precision for graph in changed} | {precision_of(stem) for stem in stale}
    engines = {str(EngineKey(target, precision)) for target in TARGETS for precision in precisions}
    thresholds = {name: value for name, value in draft.manifest.thresholds.items() if name not in engines}
    draft.manifest = draft.manifest.replace(graphs=entries, thresholds=thresholds)
    return new_files, [f"{stem}.onnx was removed: the FP32 graph it was derived from has changed" for stem in stale]


def dropped_threshold_notes(before: Manifest, after: Manifest) -> list[str]:
    """A note that names the thresholds dropped because their graphs changed; empty if there are none."""
    dropped = sorted(set(before.thresholds) - set(after.thresholds))
    if not dropped:
        return []
    return [f"the graphs changed, so the thresholds of {', '.join(dropped)} were dropped: run 'adedge calibrate' again"]


def precision_of(stem: str) -> Precision:
    """The precision of a graph with this stem: "scored.int8-fp16" is INT8."""
    kind = stem.split(".")[1].split("-")[0]
    return next(precision for precision in PRECISIONS if precision == kind)


def failure_sentences(failures: Mapping[str, AdedgeError]) -> tuple[str, ...]:
    """One sentence for each reason why graphs, keyed by the last part of their stem, were not written."""
    files: dict[str, list[str]] = {}
    for kind, error in failures.items():
        files.setdefault(str(error), []).append(f"model.{kind}.onnx")
    return tuple(f"not written: {', '.join(names)}: {reason}" for reason, names in files.items())


def json_from_ranges(ranges: Ranges) -> str:
    """The contents of ranges.json."""
    return ranges.model_dump_json(indent=2) + "\n"


def run_with_onnxruntime(graph: bytes) -> Run:
    """A function that runs the graph as the runtime does: (N, C, H, W) float32 -> its outputs."""

    def run(frames: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        results = []
        with OnnxRuntimeBackend(graph, batch=min(BATCH, len(frames)), or_fewer=True) as backend:
            for start in range(0, len(frames), backend.batch):
                batch = frames[start : start + backend.batch]
                backend.input[: len(batch)] = batch
                backend.run(len(batch))
                results.append([output[: len(batch)].copy() for output in backend.outputs])
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]

    return run


def emulate_fp16(bundle: Bundle, golden: Golden, fp32: bytes) -> Difference:
    """The difference on the golden frames with every weight and activation rounded to FP16, as on a GPU."""
    import onnxruntime as ort

    from adedge.export.fp16 import rounded_to_fp16

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = 3
    session = ort.InferenceSession(rounded_to_fp16(fp32), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(frames: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        results = [session.run(None, {name: frame[None]}) for frame in frames]
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]

    return difference(bundle, golden, run, name="the network with every activation in FP16")


def _fp16_notes(emulated: Difference) -> tuple[str, ...]:
    auroc = "" if emulated.auroc_change is None else f", AUROC {emulated.auroc_change:+.4f}"
    return (
        "on a CPU, ONNX Runtime computes this graph in FP32: the difference comes from rounding the weights to FP16",
        f"with every activation rounded to FP16 as well, as on a GPU: map error {emulated.map_error:.2e}, "
        f"score error {emulated.score_error:.2e}{auroc}",
    )


def _sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
