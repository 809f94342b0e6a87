"""SmoothGrad against gradients: the rows hold what the functions give, and what cannot be measured is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from adedge.benchmarks.studies.smoothgrad import measure
from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample
from adedge.data.pictures import read_picture
from adedge.errors import DataError, UsageError
from adedge.methods.mkd import Mkd
from adedge.methods.training import train
from adedge.metrics import aupro, pixel_auroc
from adedge.scoring import gaussian_filter, opening

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Cuts of grass; two of three test pictures have a bright square in them, and its mask.

    The square keeps its grain: where all pixels are equal, so are the values under a pooling, and which of them gets
    the gradient is decided by how a convolution's sums are rounded.
    """
    folder, test = tmp_path_factory.mktemp("grass"), []
    cuts = [np.ascontiguousarray(skimage.data.grass()[64 * i : 64 * i + 64, :64]) for i in range(6)]
    mask = np.zeros((64, 64), np.uint8)
    mask[20:36, 24:40] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    for number, picture in enumerate(cuts):
        if number > 3:
            picture[mask > 0] = 255 - picture[mask > 0] // 2
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        bad = {"label": 1, "kind": "square", "mask_path": folder / "mask.png"}
        test.append(Sample(path=folder / f"{number}.png", **(bad if number > 3 else {"label": 0, "kind": "good"})))
    return Dataset(name="grass", train=tuple(test[:3]), calibration=(), test=tuple(test[3:]), digest="d")


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    method = Mkd.for_dataset(dataset, size=64, weights="none", iterations=2, batch=2)
    return train(method, dataset, output=tmp_path_factory.mktemp("mkd") / "b")


def test_rows_are_the_metrics_of_autograd_s_gradients(bundle: Bundle, dataset: Dataset) -> None:
    """Without noise both kinds are the gradient: PyTorch's own, filtered by hand."""
    from adedge.methods import input_from_frames, read_weights

    rows = measure(bundle, dataset.test, count=2, noise=0.0)
    assert [(row.name, row.filtered) for row in rows] == [
        ("gradients", False),
        ("gradients", True),
        ("SmoothGrad, 2 copies", False),
        ("SmoothGrad, 2 copies", True),
    ]
    networks = Mkd.networks("vgg16", {})
    read_weights(bundle, networks)
    networks.eval().double()
    grey = np.stack([read_picture(sample.path) for sample in dataset.test if sample.path])
    x = input_from_frames(np.repeat(grey, 3, axis=3), bundle.manifest.input).double().requires_grad_()
    loss = networks["discrepancy"](networks["source"](x.detach()), networks["cloner"](x))
    maps = torch.autograd.grad(loss.sum(), x)[0].abs().sum(1).numpy()
    masks = np.zeros(maps.shape, bool)
    masks[1:, 20:36, 24:40] = True
    for index, wanted in enumerate((maps, opening(gaussian_filter(maps, 4.0), 3))):
        for row in (rows[index], rows[index + 2]):
            assert row.pixel_auroc == pytest.approx(pixel_auroc(masks, wanted), abs=1e-3)
            assert row.aupro == pytest.approx(aupro(masks, wanted), abs=1e-3)
            assert row.pictures == 3


def test_noise_changes_the_map(bundle: Bundle, dataset: Dataset) -> None:
    rows = measure(bundle, dataset.test, count=2, noise=0.3)
    assert rows[0].pixel_auroc != rows[2].pixel_auroc


def test_what_cannot_be_measured_is_one_sentence(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    without = [replace(sample, mask_path=None) for sample in dataset.test]
    with pytest.raises(DataError, match="judged by masks"):
        measure(bundle, without, count=1)
    other = replace(bundle, manifest=bundle.manifest.replace(method="hfr"))
    with pytest.raises(UsageError, match="give an mkd bundle"):
        measure(other, dataset.test)
