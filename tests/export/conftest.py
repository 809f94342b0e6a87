"""What the tests of exporting share: a detector that PyTorch trained for a moment on a photograph."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle
from adedge.data.datasets import load_dataset

SIZE = 32


def write_crops(folder: Path, count: int, top: int) -> None:
    import skimage.data

    folder.mkdir(parents=True)
    rng = np.random.default_rng(top)
    for index in range(count):
        y, x = int(rng.integers(top, top + 100)), int(rng.integers(0, 512 - SIZE))
        cv2.imwrite(str(folder / f"{index:03}.png"), skimage.data.brick()[y : y + SIZE, x : x + SIZE])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures to train on, and 24 that were held out."""
    root = tmp_path_factory.mktemp("data")
    write_crops(root / "train/good", 12, 0)
    write_crops(root / "calibration/good", 24, 200)
    return root


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as training left it; tests change copies of it, their `bundle`."""
    import torch

    from adedge.methods.oesdn.method import OeSdn
    from adedge.methods.training import train

    torch.set_num_threads(1)
    dataset = load_dataset(str(data))
    method = OeSdn.for_dataset(dataset, variant="ae", size=SIZE, ae_iterations=1, batch=2)
    return train(method, dataset, output=tmp_path_factory.mktemp("trained") / "b.adedge").path


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(trained, tmp_path / "b.adedge"))
