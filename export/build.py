"""Build an engine from a verified graph, self-test it against the reference, and add it to the bundle.

A build that fails, is interrupted or misses a gate leaves the bundle unchanged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone

from adedge.bundle import Bundle
from adedge.errors import BundleError, GateError
from adedge.escaping import command_line
from adedge.export.builders import GRAPHS, BuildOptions, BuildResult, Source, builder_of
from adedge.export.verify import difference_of
from adedge.golden import read_golden
from adedge.manifest import Difference, FileRecord
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.tensorrt import TensorRTBackend
from adedge.runtime.engines import EngineRecord, engine_folder, incompatibility, open_plan
from adedge.runtime.inspection import judge_frames
from adedge.specs import EngineKey


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits that the self-test must meet; None means no limit.

    ``max_auroc_drop`` bounds the reference's AUROC minus the engine's, ``max_flips`` the number of golden frames whose
    verdict differs from the reference's.
    """

    max_auroc_drop: float | None = None
    max_flips: int | None = None


def build_engine(
    bundle: Bundle,
    key: EngineKey,
    options: BuildOptions | None = None,
    gates: Gates | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Build an engine, self-test it on the golden frames, check the gates, and store plan and engine.json.

    Returns the reopened bundle. Raises `UsageError` if an option does not apply to the target, `BundleError` if a graph
    is missing or stale, `EngineError` if the build fails or the engine does not run, `GateError` if the self-test
    misses a gate or a gate cannot be checked, `MissingDependency`.

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
        result = builder_of(key.target)(source, options, progress)
        seconds = time.perf_counter() - started
        draft.remove(engine_folder(key))
        plan = f"{engine_folder(key)}/{'engine.onnx' if key.target == 'onnxruntime' else 'engine.plan'}"
        record = _record(bundle, key, source, result, plan, draft.write(plan, result.plan), seconds)
        record = self_test(bundle, record, result.plan)
        check_gates(record, gates or Gates())
        draft.write(f"{engine_folder(key)}/engine.json", record.model_dump_json(indent=2) + "\n")
    return draft.bundle


def source_from_bundle(bundle: Bundle, key: EngineKey, options: BuildOptions) -> Source:
    """The graphs that the target can build from, each checked against the bundle's current weights and ranges.

    Fallback graphs may be absent. Raises `BundleError` if no graph is present or one is stale.
    """
    stems = GRAPHS[key.target][key.precision]
    present = [stem for stem in stems if bundle.has(f"{stem}.onnx")]
    # If none is present, reading the preferred one raises an error that names the command to run.
    graphs = {stem: graph_from_bundle(bundle, stem) for stem in present or stems[:1]}
    return Source(
        graphs=graphs,
        precision=key.precision,
        shape=bundle.manifest.input.shape,
        batch=options.batch or default_batch(bundle),
    )


def graph_from_bundle(bundle: Bundle, stem: str) -> bytes:
    """Read a graph; raises `BundleError` unless it was exported from the bundle's current weights and ranges."""
    data, path = bundle.read(f"{stem}.onnx"), bundle.path / f"{stem}.onnx"
    graph = bundle.manifest.graphs.get(stem)
    if graph is None:
        raise BundleError(f"{path} has no entry in bundle.json: run '{command_line('export', bundle.path)}' again")
    for what, name, digest in (
        ("weights", bundle.manifest.weights, graph.weights_sha256),
        ("INT8 ranges", "ranges.json", graph.ranges_sha256),
    ):
        file = bundle.manifest.files.get(name)
        if digest is not None and (file is None or file.sha256 != digest):
            raise BundleError(
                f"{path} is stale: the {what} changed since it was exported; "
                f"run '{command_line('export', bundle.path)}' again"
            )
    return data


def default_batch(bundle: Bundle) -> tuple[int, int, int]:
    """The default (min, opt, max) batch: one frame, or up to eight tiles if frames are tiled."""
    return (1, 8, 8) if bundle.manifest.input.tiling else (1, 1, 1)


def self_test(bundle: Bundle, record: EngineRecord, plan: bytes) -> EngineRecord:
    """Run the golden frames and return the record with their difference from the reference.

    A TensorRT-RTX plan may be built for another machine; the status then says why it was not run. Any other plan must
    run on this machine. Raises `EngineError` if it does not, `GateError` if its output is not finite.
    """
    reason = incompatibility(record) if record.target == "tensorrt-rtx" else None
    if reason is not None:
        capabilities = ", ".join(record.compute_capabilities)
        status = f"built ahead of time for compute capability {capabilities}; self-test not run: {reason}"
        return record.model_copy(update={"status": status})
    backend = open_plan(record, plan)
    try:
        difference = _difference(bundle, backend, record.key)
        layers = backend.layer_counts() if isinstance(backend, TensorRTBackend) else {}
    finally:
        backend.close()
    status = f"self-test of {difference.frames} golden frames run on this machine"
    return record.model_copy(update={"self_test": difference, "status": status, "layers": layers})


def _difference(bundle: Bundle, backend: Backend, key: EngineKey) -> Difference:
    """Compare an engine with the reference on the golden frames, judged as `adedge run` judges them."""
    golden, manifest = read_golden(bundle), bundle.manifest
    judged = judge_frames(backend, manifest.input, manifest.score, golden.frames, name=str(key))
    return difference_of(bundle, golden, judged, name=f"the {key} engine", threshold=str(key))


def check_gates(record: EngineRecord, gates: Gates) -> None:
    """Raise `GateError` if the self-test misses a gate or a gate cannot be checked."""
    engine = f"the {record.key} engine"
    result = record.self_test
    if result is None:
        if gates != Gates():
            raise GateError(f"the gates of {engine} cannot be checked: {record.status}")
        return
    if gates.max_flips is not None:
        if result.flips is None:
            raise GateError(
                f"--max-flips cannot be checked: the bundle has no threshold for the model or for {record.key}; "
                "run 'adedge calibrate' first"
            )
        if result.flips > gates.max_flips:
            raise GateError(
                f"{engine} disagrees with the model on {result.flips} of {result.frames} golden frames, "
                f"and --max-flips allows {gates.max_flips}: nothing was written"
            )
    if gates.max_auroc_drop is not None:
        if result.auroc_change is None:
            raise GateError("--max-auroc-drop cannot be checked: it requires good and anomalous golden frames")
        if -result.auroc_change > gates.max_auroc_drop:
            raise GateError(
                f"{engine} loses {-result.auroc_change:.4f} AUROC on the golden frames, "
                f"and --max-auroc-drop allows {gates.max_auroc_drop:.4f}: nothing was written"
            )


def _record(
    bundle: Bundle, key: EngineKey, source: Source, result: BuildResult, plan: str, file: FileRecord, seconds: float
) -> EngineRecord:
    graph = f"{result.graph}.onnx"
    return EngineRecord(
        target=key.target,
        precision=key.precision,
        plan=plan,
        plan_sha256=file.sha256,
        graph=graph,
        graph_sha256=bundle.manifest.files[graph].sha256,
        batch=source.batch,
        input=result.input,
        outputs=result.outputs,
        library_version=result.library_version,
        gpu=result.gpu,
        compute_capabilities=result.compute_capabilities,
        path=result.path,
        attempts=result.attempts,
        warnings=result.warnings,
        flags=dict(result.flags),
        build_seconds=round(seconds, 3),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        status="self-test not run",
    )
