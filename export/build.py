"""Build an engine into a bundle: from a verified graph to a plan that was compared with PyTorch, or a clear no.

A build that fails, is interrupted, or does not pass its gates leaves the bundle as it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone

from adedge.bundle import Bundle, Difference, FileRecord
from adedge.errors import BundleError, GateError
from adedge.export.builders import GRAPHS, BuildOptions, Built, Source, builder_of
from adedge.export.verify import difference_of
from adedge.golden import read_golden
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.tensorrt import TensorRTBackend
from adedge.runtime.engines import EngineRecord, engine_folder, incompatibility, open_plan
from adedge.runtime.inspection import judge_frames
from adedge.specs import EngineKey


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What the self-test must reach. ``max_auroc_drop`` bounds PyTorch's AUROC minus the engine's; None is no gate."""

    max_auroc_drop: float | None = None
    max_flips: int | None = None


def build_engine(
    bundle: Bundle,
    key: EngineKey,
    options: BuildOptions | None = None,
    gates: Gates | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Build, self-test on the golden frames, check the gates, and put plan and engine.json into the bundle.

    Returns the bundle reopened. Raises `UsageError` (options that do not fit the target), `BundleError` (a graph is
    missing or stale), `EngineError` (nothing could be built or it does not run), `GateError` (the self-test is worse
    than asked for, or could not be made), `MissingDependency`.

    >>> from adedge import open_bundle
    >>> bundle = build_engine(open_bundle("bottle.adedge"), EngineKey("onnxruntime", "fp32"))
    >>> bundle.has("engines/onnxruntime-fp32/engine.json")
    True
    """
    options = options or BuildOptions()
    options.check(key.target)
    with bundle.edit() as draft:
        source = source_from_bundle(bundle, key, options)
        started = time.perf_counter()
        built = builder_of(key.target)(source, options, progress)
        seconds = time.perf_counter() - started
        draft.remove(engine_folder(key))
        plan = f"{engine_folder(key)}/{'engine.onnx' if key.target == 'onnxruntime' else 'engine.plan'}"
        record = _record(bundle, key, source, built, plan, draft.write(plan, built.plan), seconds)
        record = self_test(bundle, record, built.plan)
        check_gates(record, gates or Gates())
        draft.write(f"{engine_folder(key)}/engine.json", record.model_dump_json(indent=2) + "\n")
    return Bundle.open(bundle.path)


def source_from_bundle(bundle: Bundle, key: EngineKey, options: BuildOptions) -> Source:
    """The graphs that the target may build from, each checked to be of the bundle's present weights and ranges.

    A graph that is only a fallback may be absent. Raises `BundleError`.
    """
    stems = GRAPHS[key.target][key.precision]
    present = [stem for stem in stems if bundle.has(f"{stem}.onnx")]
    # Where none is there, asking for the first one says what to run.
    graphs = {stem: graph_from_bundle(bundle, stem) for stem in present or stems[:1]}
    return Source(
        graphs=graphs,
        precision=key.precision,
        shape=bundle.manifest.input.shape,
        batch=options.batch or default_batch(bundle),
    )


def graph_from_bundle(bundle: Bundle, stem: str) -> bytes:
    """A graph, if it was exported from the weights and ranges that the bundle holds now. Raises `BundleError`."""
    data, path = bundle.read(f"{stem}.onnx"), bundle.path / f"{stem}.onnx"
    graph = bundle.manifest.graphs.get(stem)
    if graph is None:
        raise BundleError(f"{path} is not described in bundle.json: run 'adedge export {bundle.path}' again")
    for what, name, digest in (
        ("weights", bundle.manifest.weights, graph.weights_sha256),
        ("INT8 ranges", "ranges.json", graph.ranges_sha256),
    ):
        file = bundle.manifest.files.get(name)
        if digest is not None and (file is None or file.sha256 != digest):
            raise BundleError(
                f"{path} is stale: the {what} changed since it was exported; run 'adedge export {bundle.path}' again"
            )
    return data


def default_batch(bundle: Bundle) -> tuple[int, int, int]:
    """One frame at once; up to eight where frames are cut into tiles."""
    return (1, 8, 8) if bundle.manifest.input.tiling else (1, 1, 1)


def self_test(bundle: Bundle, record: EngineRecord, plan: bytes) -> EngineRecord:
    """The record with the golden frames' difference from PyTorch, or with the reason why there is none.

    A plan of TensorRT-RTX may be for another machine than this one; every other plan must run here.
    """
    reason = incompatibility(record) if record.target == "tensorrt-rtx" else None
    if reason is not None:
        capabilities = ", ".join(record.compute_capabilities)
        status = f"built ahead of time for compute capability {capabilities}; self-test not run: {reason}"
        return record.model_copy(update={"status": status})
    backend = open_plan(record, plan)
    try:
        result = _difference(bundle, backend, record.key)
        layers = backend.layer_counts() if isinstance(backend, TensorRTBackend) else {}
    finally:
        backend.close()
    status = f"self-test of {result.frames} golden frames run on this machine"
    return record.model_copy(update={"self_test": result, "status": status, "layers": layers})


def _difference(bundle: Bundle, backend: Backend, key: EngineKey) -> Difference:
    """How an engine judges the golden frames, as `adedge run` does it, beside what PyTorch gave them."""
    golden, manifest = read_golden(bundle), bundle.manifest
    judged = judge_frames(backend, manifest.input, manifest.score, golden.frames, name=str(key))
    return difference_of(bundle, golden, judged, name=f"the {key} engine", threshold=str(key))


def check_gates(record: EngineRecord, gates: Gates) -> None:
    """Raise `GateError` where the self-test is worse than a gate allows, or where a gate cannot be checked."""
    engine = f"the {record.key} engine"
    result = record.self_test
    if result is None:
        if gates != Gates():
            raise GateError(f"{engine} cannot be held to its gates: {record.status}")
        return
    if gates.max_flips is not None:
        if result.flips is None:
            raise GateError(
                f"--max-flips cannot be checked: the bundle lacks a threshold for the model or for "
                f"{record.key}; run 'adedge calibrate' first"
            )
        if result.flips > gates.max_flips:
            raise GateError(
                f"{engine} decides {result.flips} of {result.frames} golden frames otherwise than the model, "
                f"and --max-flips allows {gates.max_flips}: nothing was written"
            )
    if gates.max_auroc_drop is not None:
        if result.auroc_change is None:
            raise GateError("--max-auroc-drop cannot be checked: the golden frames are not of both labels")
        if -result.auroc_change > gates.max_auroc_drop:
            raise GateError(
                f"{engine} loses {-result.auroc_change:.4f} AUROC on the golden frames, "
                f"and --max-auroc-drop allows {gates.max_auroc_drop:.4f}: nothing was written"
            )


def _record(
    bundle: Bundle, key: EngineKey, source: Source, built: Built, plan: str, file: FileRecord, seconds: float
) -> EngineRecord:
    graph = f"{built.graph}.onnx"
    return EngineRecord(
        target=key.target,
        precision=key.precision,
        plan=plan,
        plan_sha256=file.sha256,
        graph=graph,
        graph_sha256=bundle.manifest.files[graph].sha256,
        batch=source.batch,
        input=built.input,
        outputs=built.outputs,
        library_version=built.library_version,
        gpu=built.gpu,
        compute_capabilities=built.compute_capabilities,
        path=built.path,
        attempts=built.attempts,
        warnings=built.warnings,
        flags=dict(built.flags),
        build_seconds=round(seconds, 3),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        status="self-test not run",
    )
