"""Proofs counted by hand: a detector whose score is the brightest red of a picture, and an engine that dims it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle, Manifest, Provenance, Threshold, create
from adedge.data.datasets import Sample, load_dataset
from adedge.errors import DataError, GateError, MissingDependency
from adedge.export import proof
from adedge.export.calibrate import fit_thresholds
from adedge.export.proof import pictures_with_scores, prove, stored_scores
from adedge.runtime.engines import EngineRecord, Tensor
from adedge.specs import InputSpec, Precision, ReadyMap, ScoreSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LEVELS = tuple(range(5, 255, 10))  # of red, in 25 flat pictures; blue is its opposite
GAINS = {"fp32": 1.0, "int8": 0.92}  # what an engine makes of red


def graph_that_shows_red(gain: float) -> bytes:
    """frame (n, 3, 8, 8) RGB -> map (n, 1, 8, 8), the red channel times ``gain``."""
    make = onnx.helper.make_tensor_value_info
    frame, out = (make(n, onnx.TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("frame", 3), ("map", 1)))
    weight = np.array([gain, 0, 0], np.float32).reshape(1, 3, 1, 1)
    node = onnx.helper.make_node("Conv", ["frame", "w"], ["map"])
    graph = onnx.helper.make_graph([node], "red", [frame], [out], [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def record_of(precision: Precision, graph: bytes) -> EngineRecord:
    return EngineRecord(
        target="onnxruntime",
        precision=precision,
        plan=f"engines/onnxruntime-{precision}/engine.onnx",
        plan_sha256=hashlib.sha256(graph).hexdigest(),
        graph=f"model.{precision}.onnx",
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        batch=(1, 4, 4),
        input=Tensor(name="frame", shape=(3, 8, 8)),
        outputs=(Tensor(name="map", shape=(1, 8, 8)),),
        library_version="1",
        path="as exported",
        build_seconds=0.0,
        built="",
        status="",
    )


def picture(level: int) -> np.ndarray:
    """8 x 8 RGB of one colour."""
    return np.full((8, 8, 3), (level, 0, 255 - level), np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    frames = np.stack([picture(level) for level in (10, 60, 200, 240)])
    maps = frames[..., 0].astype(np.float32) / 255
    golden = io.BytesIO()
    np.savez(golden, frames=frames, labels=np.array([0, 0, 1, 1], np.int8), maps=maps, scores=maps.max((1, 2)))
    manifest = Manifest(
        method="imported",  # its reference is the graph that it came as
        variant="",
        network={},
        input=InputSpec(height=8, width=8, channels=3, color="rgb"),
        score=ScoreSpec(comparison=ReadyMap()),
        thresholds={
            f"onnxruntime/{p}": Threshold(value=0.5, false_alarm_rate=0.1, pictures=9, data_digest="") for p in GAINS
        },
        provenance=Provenance(created="", data="", data_digest="", seed=0, budget="", device="", versions={}),
    )
    with create(tmp_path / "red.adedge", manifest) as draft:
        draft.write("golden.npz", golden.getvalue())
        draft.write_json("training.json", {"pictures": []})
        draft.write("imported.onnx", graph_that_shows_red(1.0))
        for precision, gain in GAINS.items():
            graph = graph_that_shows_red(gain)
            record = record_of(precision, graph)  # type: ignore[arg-type]  # a key of GAINS
            draft.write(record.graph, graph)
            draft.write(record.plan, graph)
            draft.write(f"engines/onnxruntime-{precision}/engine.json", record.model_dump_json())
    return Bundle.open(tmp_path / "red.adedge")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures [25]"
    folder.mkdir()
    for level in LEVELS:
        cv2.imwrite(str(folder / f"{level:03}.png"), picture(level)[..., ::-1])
    return folder


def _samples(folder: Path) -> tuple[Sample, ...]:
    dataset = load_dataset(str(folder))
    return tuple(sorted((*dataset.train, *dataset.calibration), key=lambda sample: str(sample.path)))


def test_flips_are_counted_on_the_pictures_and_bounded(bundle: Bundle, pictures: Path) -> None:
    found, bundle = pictures_with_scores(bundle, _samples(pictures))
    fp32, int8 = sorted(prove(bundle, found), key=lambda one: one.engine)
    assert (fp32.pictures, fp32.flips) == (25, 0)
    assert fp32.flip_rate == pytest.approx(1 - 0.05 ** (1 / 25), abs=1e-6)
    # The model rejects levels above 127.5, the engine those above 127.5 / 0.92 = 138.6: 135 alone lies between.
    assert (int8.pictures, int8.flips) == (25, 1)
    assert int8.score_error == pytest.approx(0.08 * 245 / 255, abs=1e-6)
    assert int8.golden is not None
    assert int8.golden.map_error == pytest.approx(0.08 * 240 / 255, abs=1e-6)
    assert fp32.problem is None
    assert int8.problem is None  # 0.08 of the largest score is within what INT8 may do


def test_golden_frames_alone_pass_as_camera_frames(bundle: Bundle) -> None:
    """Red and blue are opposites: exchanged on the way, maps would be far off."""
    fp32, int8 = prove(bundle)
    assert fp32.golden is not None
    assert fp32.golden.map_error == pytest.approx(0, abs=1e-6)
    assert (fp32.pictures, fp32.flips, int8.flips) == (4, 0, 0)


def test_an_engine_beyond_its_tolerance_or_changed_is_told_of(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        graph = graph_that_shows_red(0.5)
        record = record_of("fp32", graph)
        draft.write(record.graph, graph)
        draft.write(record.plan, graph)
        draft.write("engines/onnxruntime-fp32/engine.json", record.model_dump_json())
    plan = bundle.path / "engines/onnxruntime-int8/engine.onnx"
    changed = plan.read_bytes()[:-1] + b"?"
    plan.unlink()
    plan.write_bytes(changed)
    fp32, int8 = prove(Bundle.open(bundle.path))
    assert fp32.problem is not None
    assert "in a map" in fp32.problem
    assert int8.golden is None
    assert int8.problem is not None
    assert "not the file that was written" in int8.problem


def test_scores_stay_for_a_machine_without_the_model(
    bundle: Bundle, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, known = pictures_with_scores(bundle, _samples(pictures)[:20])
    assert sorted(stored_scores(known).values()) == pytest.approx([level / 255 for level in LEVELS[:20]])

    def no_model(bundle: Bundle) -> None:
        raise MissingDependency("torch", "train", "running networks")

    monkeypatch.setattr(proof, "load_reference", no_model)
    found, again = pictures_with_scores(known, _samples(pictures)[:20])
    assert again is known
    assert [one.flips for one in prove(again, found)] == [0, 1]
    with pytest.raises(GateError, match="5 of 25 pictures have no model score"):
        pictures_with_scores(known, _samples(pictures))


def test_scores_of_other_weights_are_none(bundle: Bundle, pictures: Path) -> None:
    _, known = pictures_with_scores(bundle, _samples(pictures))
    with known.edit() as draft:
        draft.write("imported.onnx", graph_that_shows_red(0.9))
    assert stored_scores(Bundle.open(bundle.path)) == {}


def test_thresholds_of_engines_are_fitted_alone(bundle: Bundle, pictures: Path) -> None:
    dataset = load_dataset(str(pictures))
    fitted = fit_thresholds(bundle, dataset)
    # The rate is the reference's, 0.1: of 25 scores the ceil(26 * 0.9) = 24th, level 235.
    thresholds = fitted.bundle.manifest.thresholds
    assert thresholds["onnxruntime/fp32"].value == pytest.approx(235 / 255, abs=1e-6)
    assert thresholds["onnxruntime/int8"].value == pytest.approx(0.92 * 235 / 255, abs=1e-6)
    assert thresholds["onnxruntime/int8"].pictures == 25
    assert any("other pictures" in note for note in fitted.notes)
    found, known = pictures_with_scores(fitted.bundle, _samples(pictures))
    assert [one.flips for one in prove(known, found)] == [0, 0]
    with pytest.raises(DataError, match="99"):
        fit_thresholds(fitted.bundle, dataset, false_alarm_rate=0.01)


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command on a device: none of the packages that training and exporting need."""
    absent = ("torch", "torchvision", "safetensors", "onnx", "scipy", "skimage", "matplotlib")
    script = f"import sys; sys.modules.update(dict.fromkeys({absent})); from adedge.cli import main; main()"
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_a_device_needs_neither_pytorch_nor_onnx(bundle: Bundle, pictures: Path) -> None:
    fitted = adedge("calibrate", bundle.path, pictures, "--thresholds-only", "--false-alarm-rate", 0.2)
    assert fitted.returncode == 0, fitted.stderr
    proved = adedge("prove", bundle.path, pictures, "--json", "--max-flips", 0)
    assert proved.returncode == 0, proved.stderr
    assert {one["engine"]: one["flips"] for one in json.loads(proved.stdout)["proofs"]} == {
        "onnxruntime/fp32": 0,
        "onnxruntime/int8": 0,
    }
    assert "on all 25 pictures" in proved.stderr


def test_gates_and_what_cannot_run_have_exit_codes(bundle: Bundle, pictures: Path) -> None:
    pictures_with_scores(bundle, _samples(pictures))
    flips = adedge("prove", bundle.path, pictures, "--max-flips", 0)
    assert flips.returncode == 1
    assert "onnxruntime/int8 differs from the model on 1 of 25 pictures" in flips.stderr
    assert adedge("prove", bundle.path, pictures, "--max-flips", 1).returncode == 0
    nothing = adedge("prove", bundle.path, "--target", "tensorrt")
    assert nothing.returncode == 1
    assert "run 'adedge build-engine" in nothing.stderr
