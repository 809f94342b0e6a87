"""The report's plots: pictures that can be read, with each engine in its own colour where it has something to show."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from adedge.benchmarks.accuracy import Accuracy
from adedge.benchmarks.latency import Latency, percentiles
from adedge.benchmarks.plots import (
    COLOURS,
    curves,
    latency_accuracy,
    latency_histograms,
    require_matplotlib,
)
from adedge.errors import MissingDependency


def latency(ms: float) -> Latency:
    spread = percentiles([ms * (1 + step / 100) for step in range(40)])
    return Latency(network=spread, frame=spread, verdict=spread, frames_per_second=1e3 / ms, paced_at=1.0)


def accuracy(auroc: float, *, pro: bool = False) -> Accuracy:
    return Accuracy(
        pictures=10,
        auroc=auroc,
        auroc_low=auroc - 0.05,
        auroc_high=min(1.0, auroc + 0.05),
        best_f1=0.9,
        roc=((0.0, 0.0), (0.1, auroc), (1.0, 1.0)),
        pro=((0.0, 0.0), (0.3, auroc)) if pro else (),
    )


def decoded(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def shown(png: bytes) -> set[str]:
    """The engines' colours that are in a picture."""
    pixels = {tuple(pixel) for pixel in decoded(png).reshape(-1, 3)[:, ::-1].tolist()}
    return {name for name in COLOURS if tuple(round(255 * part) for part in to_rgb(name)) in pixels}


def columns(png: bytes, colour: str) -> np.ndarray:
    """The columns of a picture that hold a colour."""
    rgb = np.array([round(255 * part) for part in to_rgb(colour)])
    return np.flatnonzero((decoded(png)[..., ::-1] == rgb).all(axis=2).any(axis=0))


def test_each_engine_with_latency_and_accuracy_is_a_point_further_right_the_slower_it_is() -> None:
    latencies = {"a/fp32": latency(2), "b/fp32": latency(4), "c/fp32": latency(20)}
    accuracies = {"a/fp32": accuracy(0.7), "c/fp32": accuracy(0.6), "pytorch/fp32": accuracy(0.95)}
    png = latency_accuracy(latencies, accuracies)
    assert shown(png) - {"#000000"} == {COLOURS[0], COLOURS[2]}
    width = decoded(png).shape[1]
    assert columns(png, COLOURS[0]).min() < width / 4
    assert columns(png, COLOURS[2]).max() > width * 3 / 4


def test_every_engine_has_a_histogram_and_a_curve() -> None:
    names = ["a", "b", "c", "d"]
    assert set(COLOURS[:4]) <= shown(latency_histograms({name: latency(2 + n) for n, name in enumerate(names)}))
    assert set(COLOURS[:4]) <= shown(curves({name: accuracy(0.6 + n / 10) for n, name in enumerate(names)}))


def test_more_engines_than_colours_are_all_drawn() -> None:
    seven = {str(n): accuracy(0.6 + n / 20) for n in range(len(COLOURS))}
    assert curves(seven) != curves({**seven, "one more": accuracy(0.99)})


def test_a_second_plot_is_for_masks_alone() -> None:
    plain = decoded(curves({"a": accuracy(0.9), "b": accuracy(0.8)}))
    masked = decoded(curves({"a": accuracy(0.9, pro=True), "b": accuracy(0.8)}))
    assert masked.shape[1] > 1.8 * plain.shape[1]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[report\]'"):
        require_matplotlib()
    with pytest.raises(MissingDependency, match="the plots of a report needs the package 'matplotlib'"):
        curves({"a": accuracy(0.9)})
