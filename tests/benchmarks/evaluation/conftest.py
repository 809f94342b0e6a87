"""What the tests of evaluations share: small data sets, tasks that train in a second, and cells of known values."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adedge.benchmarks.evaluation.cells import Cell, Measured
from adedge.benchmarks.evaluation.tasks import Column, Task, tasks_from

FAST = {"ae_iterations": 3, "sdn_iterations": 1, "batch": 2}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's format, ten classes: a bright bar at a row that the class decides, and noise."""
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


@pytest.fixture
def write_class() -> Callable[..., Path]:
    def make(folder: Path, *, masks: bool = True) -> Path:
        """MVTec AD's layout: grey noise, with a bright square where it is defective."""
        rng = np.random.default_rng(1)
        for part, count in (("train/good", 4), ("test/good", 3), ("test/spot", 3)):
            (folder / part).mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 90, (32, 32), dtype=np.uint8)
                if part == "test/spot":
                    picture[8:16, 4:12] = 250
                cv2.imwrite(str(folder / part / f"{number}.png"), picture)
        if masks:
            mask = np.zeros((32, 32), np.uint8)
            mask[8:16, 4:12] = 255
            (folder / "ground_truth/spot").mkdir(parents=True)
            for number in range(3):
                cv2.imwrite(str(folder / f"ground_truth/spot/{number}_mask.png"), mask)
        return folder

    return make


@pytest.fixture
def task() -> Callable[..., Task]:
    def make(column: Column, system: str = "oesdn/ae", seed: int = 0, **options: Any) -> Task:
        (made,) = tasks_from([system], [column], [seed], budget="quick", options={"oesdn": {**FAST, **options}})
        return made

    return make


@pytest.fixture
def made_cell() -> Callable[..., Cell]:
    def make(task: Task, metrics: dict[str, float], **fields: Any) -> Cell:
        values: dict[str, Any] = {
            "task": task,
            "system": task.system,
            "known": None,
            "metrics": {name: Measured(value=value, low=0, high=1) for name, value in metrics.items()},
            "pictures": 10,
            "budget": "quick",
            "data_digest": "",
            "versions": {},
            "machine": {"processor": "abacus"},
            "training_s": 60.0,
            "measuring_s": 1.0,
        }
        return Cell.model_validate({**values, **fields})

    return make
