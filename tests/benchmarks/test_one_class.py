"""The one-class protocol on a small set in MNIST's format, AUROC against scikit-learn."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from adedge.benchmarks import one_class
from adedge.bundle import Bundle
from adedge.datasets import load_dataset
from adedge.methods import load_detector, predict

torch.set_num_threads(1)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes: a bright bar at a row that the class decides, and noise."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 60)):
        labels = np.arange(count) % 10
        pictures = rng.integers(0, 40, (count, 28, 28))
        for picture, label in zip(pictures, labels, strict=True):
            picture[2 + 2 * label : 6 + 2 * label, 4:24] += 200
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pictures)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_rows_are_the_auroc_of_each_variant_on_the_whole_test_set(root: Path, tmp_path: Path) -> None:
    rows = one_class.measure("mnist:3", tmp_path, root=root, budget="quick", ae_iterations=150, sdn_iterations=3)
    assert [row.variant for row in rows] == ["ae", "sdn", "oe-sdn"]
    dataset = load_dataset("mnist:3", root=root, holdout=0.0)
    labels = [sample.label for sample in dataset.test]
    frames = np.stack([sample.read() for sample in dataset.test])
    for row in rows[1:]:
        bundle = Bundle.open(tmp_path / f"mnist-3-{row.variant}-quick-0.adedge")
        _, scores = predict(load_detector(bundle), bundle.manifest, frames)
        assert row.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        assert row.low <= row.auroc <= row.high
        assert row.pictures == 60
        assert row.training_s is not None

    x = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        reconstructed = load_detector(bundle).get_submodule("ae")(x)
    from skimage.metrics import structural_similarity

    pairs = zip(x[:, 0].numpy().astype(float), reconstructed[:, 0].numpy().astype(float), strict=True)
    dissimilarity = [(1 - structural_similarity(a, b, data_range=1)) / 2 for a, b in pairs]
    assert rows[0].auroc == pytest.approx(roc_auc_score(labels, dissimilarity), abs=0.005)

    again = one_class.measure("mnist:3", tmp_path, root=root, budget="quick")
    assert [row.auroc for row in again] == [row.auroc for row in rows]
    assert all(row.training_s is None for row in again)  # measured again, not trained again


def test_command_prints_a_table_and_keeps_the_rows_of_other_classes(root: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(one_class.main)
    options = ("-o", tmp_path, "--root", root, "--budget", "quick", "--ae-iterations", 3, "--sdn-iterations", 1)
    for data in ("mnist:3", "mnist:4", "mnist:3"):
        result = CliRunner().invoke(app, [data, *map(str, options)])
        assert result.exit_code == 0, result.output
    recorded = json.loads((tmp_path / "one_class.json").read_text())
    measured = sorted((row["data"], row["variant"]) for row in recorded)
    assert measured == [(data, variant) for data in ("mnist:3", "mnist:4") for variant in ("ae", "oe-sdn", "sdn")]
