"""Building into a bundle: what is written, what is refused, and that a refusal leaves the bundle as it was."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adedge.bundle import Bundle, create, sha256_of
from adedge.errors import AdedgeError, BundleError, EngineError, GateError, UsageError
from adedge.export.build import Gates, build_engine
from adedge.export.builders import BuildOptions
from adedge.export.builders import onnxruntime as onnxruntime_builder
from adedge.manifest import Graph, Manifest, Provenance, Threshold
from adedge.runtime.engines import engines_in, load_engine, read_record
from adedge.specs import EngineKey, InputSpec, ReadyMap, ScoreSpec, Target

SIZE = 16
FRAMES = np.random.default_rng(0).integers(0, 200, (6, SIZE, SIZE, 3), dtype=np.uint8)


def graph(offset: float = 0.0, height: object = SIZE) -> bytes:
    """The mean over colours plus ``offset``: a detector whose maps NumPy gives exactly."""
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("ReduceMean", ["frame"], ["grey"], axes=[1], keepdims=0),
                helper.make_node("Add", ["grey", "offset"], ["map"]),
            ],
            "test",
            [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ("N", 3, height, SIZE))],
            [helper.make_tensor_value_info("map", TensorProto.FLOAT, ("N", height, SIZE))],
            [numpy_helper.from_array(np.float32(offset), "offset")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def threshold(value: float) -> Threshold:
    return Threshold(value=value, false_alarm_rate=0.05, pictures=40, data_digest="")


def described(models: dict[str, bytes], ranges: bytes | None) -> dict[str, Graph]:
    return {
        stem: Graph(
            file=f"{stem}.onnx",
            opset=17,
            inputs=("frame",),
            outputs=("map",),
            with_scoring=False,
            weights_sha256=hashlib.sha256(b"weights").hexdigest(),
            ranges_sha256=None if ranges is None else hashlib.sha256(ranges).hexdigest(),
        )
        for stem in models
    }


def golden(labels: list[int]) -> bytes:
    maps = (FRAMES.astype(np.float64) / 255).mean(axis=3).astype(np.float32)
    stream = io.BytesIO()
    np.savez(stream, frames=FRAMES, labels=np.array(labels, np.int8), maps=maps, scores=maps.max(axis=(1, 2)))
    return stream.getvalue()


def new_bundle(
    path: Path,
    models: dict[str, bytes],
    labels: list[int] | None = None,
    ranges: bytes | None = None,
    thresholds: dict[str, Threshold] | None = None,
) -> Bundle:
    manifest = Manifest(
        method="oesdn",
        variant="sdn",
        network={},
        input=InputSpec(height=SIZE, width=SIZE, channels=3, color="rgb"),
        score=ScoreSpec(comparison=ReadyMap()),
        provenance=Provenance(
            created="2026-01-01", data="test", data_digest="", seed=0, budget="quick", device="cpu", versions={}
        ),
        graphs=described(models, ranges),
        thresholds=thresholds or {},
    )
    with create(path, manifest) as draft:
        draft.write("weights.safetensors", b"weights")
        draft.write("golden.npz", golden(labels or [0, 0, 0, 1, 1, 1]))
        if ranges is not None:
            draft.write("ranges.json", ranges)
        for stem, data in models.items():
            draft.write(f"{stem}.onnx", data)
    return Bundle.open(path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return new_bundle(tmp_path / "part.adedge", {"model.fp32": graph(), "model.fp16": graph(0.25)})


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file()}


def test_an_engine_is_built_compared_and_loadable(bundle: Bundle) -> None:
    built = build_engine(bundle, EngineKey("onnxruntime", "fp32"), BuildOptions(batch=(1, 2, 4)))
    record = read_record(built, EngineKey("onnxruntime", "fp32"))
    assert record.self_test is not None
    assert record.self_test.frames == 6
    assert record.self_test.map_error < 1e-6
    assert record.self_test.auroc_change == pytest.approx(0, abs=1e-9)
    assert record.self_test.flips is None
    assert record.status == "self-test of 6 golden frames run on this machine"
    assert (record.batch, record.graph, record.input.shape) == ((1, 2, 4), "model.fp32.onnx", (3, SIZE, SIZE))
    assert built.verify() == []
    backend = load_engine(built, EngineKey("onnxruntime", "fp32"), threads=1)
    backend.input[:] = 0.5
    backend.run(4)
    np.testing.assert_allclose(backend.outputs[0], 0.5, rtol=1e-6)


def test_a_self_test_measures_what_is_wrong_with_a_graph(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        # Every golden score lies between 0.6 and 0.8: PyTorch calls all anomalous at 0.5; an offset of 0.25 changes no
        # verdict at 0.5 and all of them at 2.
        draft.manifest = draft.manifest.replace(
            thresholds={
                "pytorch/fp32": threshold(0.5).model_dump(),
                "onnxruntime/fp16": threshold(2.0).model_dump(),
            }
        )
    key = EngineKey("onnxruntime", "fp16")
    record = read_record(build_engine(Bundle.open(bundle.path), key), key)
    assert record.self_test is not None
    assert record.self_test.map_error == pytest.approx(0.25, abs=1e-6)
    assert record.self_test.score_error == pytest.approx(0.25, abs=1e-6)
    assert record.self_test.flips == 6


def test_building_again_replaces_the_engine_and_keeps_others(bundle: Bundle) -> None:
    once = build_engine(bundle, EngineKey("onnxruntime", "fp32"))
    twice = build_engine(
        build_engine(once, EngineKey("onnxruntime", "fp16")),
        EngineKey("onnxruntime", "fp32"),
        BuildOptions(batch=(1, 1, 8)),
    )
    assert engines_in(twice) == [("onnxruntime", "fp32"), ("onnxruntime", "fp16")]
    assert read_record(twice, EngineKey("onnxruntime", "fp32")).batch == (1, 1, 8)


@pytest.mark.parametrize(
    ("thresholds", "labels", "gates", "message"),
    [
        (
            {"pytorch/fp32": 0.5, "onnxruntime/fp16": 2.0},
            [0, 0, 0, 1, 1, 1],
            Gates(max_flips=5),
            "disagrees with the model on 6 of 6 golden frames, and --max-flips allows 5",
        ),
        ({}, [0, 0, 0, 1, 1, 1], Gates(max_flips=5), "--max-flips cannot be checked.*adedge calibrate"),
        ({}, [0] * 6, Gates(max_auroc_drop=0.1), "--max-auroc-drop cannot be checked"),
    ],
    ids=["too many flips", "no thresholds", "one label"],
)
def test_a_gate_that_is_not_passed_leaves_the_bundle_as_it_was(
    tmp_path: Path, thresholds: dict[str, float], labels: list[int], gates: Gates, message: str
) -> None:
    bundle = new_bundle(
        tmp_path / "part.adedge",
        {"model.fp16": graph(0.25)},
        labels,
        thresholds={key: threshold(value) for key, value in thresholds.items()},
    )
    before = contents(bundle.path)
    with pytest.raises(GateError, match=message):
        build_engine(bundle, EngineKey("onnxruntime", "fp16"), gates=gates)
    assert contents(bundle.path) == before
    assert list(tmp_path.iterdir()) == [bundle.path]


def test_an_auroc_drop_is_gated(tmp_path: Path) -> None:
    # The golden scores as NumPy has them put the anomalous frames above the good ones; a graph that negates the order
    # turns AUROC 1 into 0.
    order = np.argsort(FRAMES.astype(float).mean(axis=3).max(axis=(1, 2)))
    labels = [0] * 6
    for index in order[3:]:
        labels[index] = 1
    model = onnx.load_from_string(graph())
    model.graph.node[1].op_type = "Sub"
    model.graph.node[1].input[:] = ["offset", "grey"]
    bundle = new_bundle(tmp_path / "part.adedge", {"model.fp32": model.SerializeToString()}, labels)
    build_engine(bundle, EngineKey("onnxruntime", "fp32"), gates=Gates(max_auroc_drop=1.0))
    with pytest.raises(GateError, match=r"loses \d\.\d+ AUROC on the golden frames, and --max-auroc-drop allows 0.01"):
        build_engine(Bundle.open(bundle.path), EngineKey("onnxruntime", "fp32"), gates=Gates(max_auroc_drop=0.01))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: d.write("weights.safetensors", b"trained again"), BundleError, "stale: the weights changed"),
        (lambda d: d.write("ranges.json", b"calibrated again"), BundleError, "stale: the INT8 ranges changed"),
        (lambda d: d.remove("model.int8.onnx"), BundleError, "has no model.int8.onnx: run 'adedge export'"),
        (lambda d: d.write("model.int8.onnx", graph(height="H")), EngineError, "fixed C, H and W"),
        (lambda d: d.write("model.int8.onnx", b"rubbish"), EngineError, "cannot load the graph"),
    ],
    ids=["weights", "ranges", "missing", "dynamic size", "no graph"],
)
def test_a_graph_that_must_not_be_built_is_refused(
    tmp_path: Path, spoil: Callable[[Any], None], error: type[AdedgeError], message: str
) -> None:
    bundle = build_engine(
        new_bundle(tmp_path / "part.adedge", {"model.int8": graph()}, ranges=b"ranges"),
        EngineKey("onnxruntime", "int8"),
    )
    with bundle.edit() as draft:
        spoil(draft)
    before = contents(bundle.path)
    with pytest.raises(error, match=message):
        build_engine(Bundle.open(bundle.path), EngineKey("onnxruntime", "int8"))
    assert contents(bundle.path) == before


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onnxruntime", BuildOptions(workspace_bytes=1 << 30, tf32=True), "--tf32, --workspace: not an option of"),
        ("tensorrt-rtx", BuildOptions(dla_core=0), "--dla-core: not an option of --target tensorrt-rtx"),
        ("tensorrt", BuildOptions(compute_capabilities=("8.9",)), "--compute-capability: not an option"),
        ("onnxruntime", BuildOptions(batch=(2, 1, 4)), "--batch 2,1,4: give MIN,OPT,MAX"),
        ("tensorrt", BuildOptions(opt_level=6), "levels are 0 to 5"),
        ("tensorrt", BuildOptions(workspace_bytes=512), "at least one MiB"),
        ("tensorrt", BuildOptions(dla_core=-1), "numbered from 0"),
    ],
)
def test_options_that_do_not_fit_are_a_wrong_call(
    bundle: Bundle, target: Target, options: BuildOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_engine(bundle, EngineKey(target, "fp32"), options)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), BundleError)],
    ids=["interrupted", "disk full"],
)
def test_whatever_stops_a_build_leaves_the_bundle_as_it_was(
    bundle: Bundle, raised: BaseException, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise raised

    monkeypatch.setattr(onnxruntime_builder, "build", stop)
    before = contents(bundle.path)
    with pytest.raises(expected):
        build_engine(bundle, EngineKey("onnxruntime", "fp32"))
    assert contents(bundle.path) == before
    assert list(bundle.path.parent.iterdir()) == [bundle.path]


def test_an_engine_for_gpus_elsewhere_says_that_it_was_not_run(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")
    built = build_engine(bundle, EngineKey("tensorrt-rtx", "fp32"), BuildOptions(compute_capabilities=("8.9",)))
    record = read_record(built, EngineKey("tensorrt-rtx", "fp32"))
    assert record.self_test is None
    assert record.status.startswith("built ahead of time for compute capability 8.9; self-test not run: ")
    with pytest.raises(GateError, match="gates of .* cannot be checked: built ahead of time"):
        build_engine(built, EngineKey("tensorrt-rtx", "fp32"), gates=Gates(max_flips=0))
