"""Contenders whose behaviour is known, and pictures that they judge: what tests of measuring share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from adedge.benchmarks.latency import Contender
from adedge.data.datasets import Dataset, load_dataset
from adedge.runtime.backends import FunctionBackend

SHAPE = (1, 32, 32)
Network = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


def brightness(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A detector that calls bright pixels anomalous."""
    return [x[:, 0].copy()]


@pytest.fixture(scope="session")
def contender() -> Callable[..., Contender]:
    """Makes a contender for grey frames of 32 x 32: ``name``, its ``threshold``, and its network's ``work``."""

    def make(name: str, threshold: float | None = 0.5, work: Network = brightness, batch: int = 1) -> Contender:
        return Contender(name=name, backend=FunctionBackend(work, SHAPE, batch=batch), threshold=threshold)

    return make


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six dark good pictures and six with a bright square, one of them too dim for the threshold 0.5."""
    root = tmp_path / "parts"
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        plain = rng.integers(0, 60, (32, 32), np.uint8)
        spotted, mask = plain.copy(), np.zeros((32, 32), np.uint8)
        spotted[8:16, 8:16] = 100 if index == 0 else 200
        mask[8:16, 8:16] = 255
        cv2.imwrite(str(root / f"train/good/{index}.png"), plain + 1)
        cv2.imwrite(str(root / f"test/good/{index}.png"), plain)
        cv2.imwrite(str(root / f"test/spot/{index}.png"), spotted)
        cv2.imwrite(str(root / f"ground_truth/spot/{index}_mask.png"), mask)
    return load_dataset(str(root))
