"""Histograms against NumPy on all values at once, and ranges that are refused when stale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

from adedge.calibration.ranges import BINS, METHODS, Histogram, _entropy_bins, collect_ranges, ranges_from_json
from adedge.errors import BundleError, DataError


def graph(factor: float = 2.0) -> bytes:
    """frame -> doubled -> out: inner values are known exactly."""
    nodes = [
        helper.make_node("Mul", ["frame", "factor"], ["doubled"], name="mul"),
        helper.make_node("Relu", ["doubled"], ["out"], name="relu"),
    ]
    shapes = ["n", 1, 8, 8]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, shapes)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shapes)],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_growing_histogram_counts_what_numpy_counts() -> None:
    rng = np.random.default_rng(0)
    batches = [scale * rng.standard_normal(5000).astype(np.float32) for scale in (0.1, 1.0, 7.0, 0.5)]
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    magnitudes = np.abs(np.concatenate(batches))
    assert histogram.counts.sum() == magnitudes.size
    assert histogram.range("minmax") == magnitudes.max()
    width = histogram.limit / BINS
    assert abs(histogram.range("percentile") - np.percentile(magnitudes, 99.99, method="inverted_cdf")) <= 2 * width
    expected, _ = np.histogram(magnitudes, BINS, (0, histogram.limit))
    # float32 and float64 may put a value that lies on an edge into different bins
    assert np.abs(histogram.counts.cumsum() - expected.cumsum()).max() <= 3


def test_entropy_cuts_off_an_outlier_that_minmax_keeps() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).laplace(0, 1, 200_000).astype(np.float32))
    histogram.add(np.array([100.0], np.float32))
    assert histogram.range("minmax") == 100
    assert 4 < histogram.range("entropy") < 40


def entropy_by_definition(counts: list[int], levels: int = 128) -> int:
    """Migacz 2017, in plain loops: bins to keep so that KL(clipped histogram || its 128 levels) is least."""
    counts = [0, *counts[1:]]
    best, kept = float("inf"), len(counts)
    for bins in range(levels, len(counts) + 1):
        reference = [float(c) for c in counts[:bins]]
        reference[-1] += sum(counts[bins:])
        candidate = [0.0] * bins
        for level in range(levels):
            members = [i for i in range(bins) if i * levels // bins == level]
            filled = [i for i in members if counts[i]]
            for i in filled:
                candidate[i] = sum(counts[j] for j in members) / len(filled)
        if not sum(candidate):
            continue
        p = [value / sum(reference) for value in reference]
        q = [max(value / sum(candidate), 1e-12) for value in candidate]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < best:
            best, kept = divergence, bins
    return kept


@pytest.mark.parametrize("spread", ["laplace", "uniform", "two heaps"])
def test_entropy_is_what_its_definition_gives(spread: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "laplace": rng.laplace(0, 1, 20_000),
        "uniform": rng.uniform(0, 1, 20_000),
        "two heaps": np.concatenate([rng.normal(1, 0.1, 15_000), rng.normal(3, 0.05, 200)]),
    }[spread]
    counts, _ = np.histogram(np.abs(values), 192, (0, np.abs(values).max()))
    assert _entropy_bins(counts.astype(np.int64)) == entropy_by_definition(counts.tolist())


def test_values_spread_evenly_are_not_clipped() -> None:
    """Whatever is cut off a uniform distribution is a heap at the end: no level can stand for it."""
    histogram = Histogram()
    histogram.add(np.linspace(-1, 1, 400_001).astype(np.float32))
    assert histogram.range("entropy") == pytest.approx(1, abs=2 / BINS)
    assert histogram.range("percentile") == pytest.approx(0.9999, abs=2 / BINS)


def test_all_zeros_have_range_zero() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(10, np.float32))
    assert [histogram.range(method) for method in METHODS] == [0, 0, 0]


def test_ranges_of_inner_tensors() -> None:
    frames = [np.full((1, 8, 8), value, np.float32) for value in (-0.5, 0.25)]
    ranges = collect_ranges(graph(), ["frame", "doubled", "out"], frames, "minmax", data_digest="d")
    assert ranges.tensors == {"frame": 0.5, "doubled": 1.0, "out": 0.5}
    assert ranges.pictures == 2


def test_no_pictures_and_nan_are_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        collect_ranges(graph(), ["out"], [], data_digest="d")
    with pytest.raises(DataError, match="picture 1 gives 'doubled' values that are not finite"):
        collect_ranges(graph(), ["doubled"], [np.full((1, 8, 8), np.nan, np.float32)], data_digest="d")


def test_ranges_of_another_graph_or_damaged_ones_are_refused() -> None:
    ranges = collect_ranges(graph(), ["out"], [np.ones((1, 8, 8), np.float32)], data_digest="d")
    text = ranges.model_dump_json()
    assert ranges_from_json(text, graph()) == ranges
    with pytest.raises(BundleError, match="stale"):
        ranges_from_json(text, graph(3.0))
    with pytest.raises(BundleError, match="damaged at 'pictures'"):
        ranges_from_json(text.replace('"pictures":1', '"pictures":0'), graph())
