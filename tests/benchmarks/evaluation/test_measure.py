"""One cell: a real training on generated pictures, and the metrics of what it gave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score

from adedge.benchmarks.evaluation.cells import METRICS
from adedge.benchmarks.evaluation.measure import Request, Settings, measure
from adedge.benchmarks.evaluation.tasks import Task, columns_from
from adedge.bundle import Bundle
from adedge.data.datasets import load_dataset
from adedge.errors import DataError
from adedge.methods import load_detector, predict

torch.set_num_threads(1)
Maker = Callable[..., Any]  # a fixture of conftest.py that makes what it is called


def request(folder: Path, task: Task, **settings: Any) -> Request:
    for name in ("cells", "bundles", "logs"):
        (folder / name).mkdir(exist_ok=True)
    return Request(task=task, settings=Settings(folder=folder, threads=1, **settings))


def test_a_one_class_cell_is_the_auroc_on_the_whole_test_set(root: Path, tmp_path: Path, task: Maker) -> None:
    (column,) = columns_from(["mnist:3"])
    cells = {
        system: measure(
            request(tmp_path, task(column, system, ae_iterations=100), root=root, keep_bundle=True),
        )
        for system in ("oesdn/ae", "oesdn/oe-sdn")
    }
    dataset = load_dataset("mnist:3", root=root, holdout=0.0)
    labels = [sample.label for sample in dataset.test]
    frames = np.stack([sample.read() for sample in dataset.test])
    for system, cell in cells.items():
        bundle = Bundle.open(tmp_path / "bundles" / f"{system.replace('/', '-')}.mnist.3.0.adedge")
        assert len(bundle.json("training.json")["pictures"]) == 8  # none held out
        _, scores = predict(load_detector(bundle), bundle.manifest, frames)
        found = cell.metrics["image_auroc"]
        assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        assert found.low <= found.value <= found.high
        assert (cell.pictures, cell.known, cell.system) == (60, ("mnist", "3"), system)
        assert set(cell.metrics) == {"image_auroc"}
        assert cell.training_s is not None

    x = frames[..., 0] / 255
    ae = load_detector(Bundle.open(tmp_path / "bundles" / "oesdn-ae.mnist.3.0.adedge"))
    with torch.inference_mode():
        reconstructed = ae(torch.from_numpy(x[:, None]).float())[1][:, 0].numpy().astype(float)
    dissimilarity = [
        (1 - structural_similarity(*pair, data_range=1)) / 2 for pair in zip(x, reconstructed, strict=True)
    ]
    assert cells["oesdn/ae"].metrics["image_auroc"].value == pytest.approx(
        roc_auc_score(labels, dissimilarity), abs=0.005
    )
    # Both variants begin with the same autoencoder: the baseline is that of the full method.
    sdn = load_detector(Bundle.open(tmp_path / "bundles" / "oesdn-oe-sdn.mnist.3.0.adedge"))
    for name, value in ae.get_submodule("ae").state_dict().items():
        torch.testing.assert_close(value, sdn.get_submodule("ae").state_dict()[name], rtol=0, atol=0)


def test_pixels_are_measured_where_masks_are_known(tmp_path: Path, task: Maker, write_class: Maker) -> None:
    for masks in (True, False):
        data = write_class(tmp_path / f"masks-{masks}" / "plate", masks=masks)
        (column,) = columns_from([str(data)])
        cell = measure(request(tmp_path, task(column, size=32)))
        assert set(cell.metrics) == (set(METRICS) if masks else {"image_auroc"})
        assert cell.known is None
        assert not (tmp_path / "bundles" / f"{cell.task.stem}.adedge").exists()


def test_a_test_set_of_one_kind_is_refused(tmp_path: Path, task: Maker, write_class: Maker) -> None:
    data = write_class(tmp_path / "plate")
    shutil.rmtree(data / "test" / "good")
    with pytest.raises(DataError, match="needs good and anomalous pictures"):
        measure(request(tmp_path, task(columns_from([str(data)])[0])))
