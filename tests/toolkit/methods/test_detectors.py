"""Trained detectors: they give what was written at the end of training, and weights that cannot be are refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from adedge.bundle import Bundle, create, sha256_of
from adedge.data.datasets import Dataset, Sample
from adedge.errors import BundleError
from adedge.manifest import FileRecord
from adedge.methods import input_from_frames, load_detector, predict
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.training import train
from adedge.specs import InputSpec

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small autoencoder that learnt noise."""
    arrays = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)
    good = tuple(Sample(path=None, label=0, kind="good", array=array) for array in arrays)
    method = OeSdn(
        architecture="dense", channels=1, size=16, one_class=True, ae_iterations=3, sdn_iterations=2, batch=2
    )
    dataset = Dataset(name="noise", train=good, calibration=(), test=good[:3], digest="")
    return train(method, dataset, output=tmp_path_factory.mktemp("b") / "noise.adedge")


def test_loaded_detector_gives_the_golden_maps_and_scores(bundle: Bundle) -> None:
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:
        maps, scores = predict(load_detector(bundle), bundle.manifest, golden["frames"], batch_size=2)
        np.testing.assert_allclose(maps, golden["maps"], atol=1e-6)
        np.testing.assert_allclose(scores, golden["scores"], atol=1e-6)


def test_network_input_is_scaled_and_normalised() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    spec = InputSpec(height=8, width=9, channels=3, color="rgb", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = ((frames / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(input_from_frames(frames, spec).numpy(), expected, atol=1e-6)


def rewritten(bundle: Bundle, directory: Path, change) -> Bundle:
    """A copy of the bundle whose weights were changed and whose digest is right again."""
    values = {name: value.copy() for name, value in load(bundle.read("weights.safetensors")).items()}
    change(values)
    with create(directory / "changed", bundle.manifest.replace(files={})) as draft:
        draft.write("weights.safetensors", save(values))
    return Bundle.open(directory / "changed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["ae.layers.2.bias"].__setitem__(3, np.nan), "not finite in 'ae.layers.2.bias'"),
        (lambda v: v.pop("ae.layers.2.bias"), "'ae.layers.2.bias' is only in one"),
        (lambda v: v.update({"ae.layers.2.bias": np.zeros(3, np.float32)}), r"'ae.layers.2.bias' has shape \(3,\)"),
    ],
    ids=["nan", "missing", "shape"],
)
def test_weights_that_cannot_be_are_refused(bundle: Bundle, tmp_path: Path, change, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_detector(rewritten(bundle, tmp_path, change))


def test_weights_with_one_changed_byte_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = rewritten(bundle, tmp_path, lambda values: None)
    path = copy.path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="not the file that was written"):
        load_detector(copy)


def test_file_that_is_not_safetensors_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = rewritten(bundle, tmp_path, lambda values: None)
    path = copy.path / "weights.safetensors"
    path.write_bytes(b"not weights")
    record = FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
    forged = replace(copy, manifest=copy.manifest.replace(files={"weights.safetensors": record.model_dump()}))
    with pytest.raises(BundleError, match="cannot be read"):
        load_detector(forged)
