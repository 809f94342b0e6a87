"""`adedge export` and `adedge calibrate` on a small bundle: what is stored, what is refused, the bundle as it was."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from adedge.bundle import Bundle
from adedge.data.datasets import load_dataset
from adedge.errors import BundleError, DataError
from adedge.export.calibrate import calibrate, split_pictures
from adedge.export.graphs import export_graphs
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.training import train

SIZE = 32


def write_crops(folder: Path, count: int, top: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(top)
    for index in range(count):
        y, x = int(rng.integers(top, top + 100)), int(rng.integers(0, 512 - SIZE))
        cv2.imwrite(str(folder / f"{index:03}.png"), skimage.data.brick()[y : y + SIZE, x : x + SIZE])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_crops(root / "train/good", 12, 0)
    write_crops(root / "calibration/good", 24, 200)
    return root


@pytest.fixture
def bundle(data: Path, tmp_path: Path) -> Bundle:
    torch.set_num_threads(1)
    dataset = load_dataset(str(data))
    method = OeSdn.for_dataset(dataset, variant="ae", size=SIZE, ae_iterations=1, batch=2)
    return train(method, dataset, output=tmp_path / "b.adedge")


def test_calibrate_stores_graphs_and_thresholds_and_export_repeats_them(bundle: Bundle, data: Path) -> None:
    bundle, _ = export_graphs(bundle)
    result = calibrate(bundle, load_dataset(str(data)), false_alarm_rate=0.05)
    manifest = result.bundle.manifest
    assert len(result.parts.thresholds) == 24
    assert result.parts.trained_on == 12
    assert set(manifest.graphs) == {"model.fp32", "model.fp16", "model.int8", "model.int8-fp16"}
    assert set(manifest.thresholds) == {"pytorch/fp32", *(f"onnxruntime/{p}" for p in ("fp32", "fp16", "int8"))}
    assert result.bundle.verify() == []
    again, notes = export_graphs(result.bundle)
    assert notes == ()
    assert again.manifest.files == manifest.files
    assert again.manifest.thresholds == manifest.thresholds


def test_too_few_pictures_leave_the_bundle_as_it_was(bundle: Bundle, data: Path) -> None:
    with pytest.raises(DataError, match="needs at least 99 good pictures .* there are 24"):
        calibrate(bundle, load_dataset(str(data)))
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_interrupted_calibration_leaves_the_bundle_as_it_was(bundle: Bundle, data: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith("onnxruntime"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, load_dataset(str(data)), false_alarm_rate=0.05, progress=interrupt)
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    assert Bundle.open(bundle.path).verify() == []


def test_trained_pictures_fit_no_threshold(bundle: Bundle, data: Path) -> None:
    dataset = load_dataset(str(data))
    parts = split_pictures(bundle, dataset, 0.05)
    trained = {sample.digest for sample in dataset.train}
    assert not trained & {sample.digest for sample in parts.thresholds}
    assert {sample.digest for sample in parts.int8} == trained


def test_changed_weights_are_refused(bundle: Bundle) -> None:
    weights = bundle.path / "weights.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.unlink()
    weights.write_bytes(changed)
    with pytest.raises(BundleError, match="not the file that was written"):
        export_graphs(bundle)
