"""INT8 ranges: the largest magnitudes of each tensor on real good pictures.

The FP32 graph runs in ONNX Runtime, one frame at a time. Each tensor to be quantised feeds a histogram of its absolute
values, so that memory does not grow with the number of pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from adedge.errors import BundleError, DataError, MissingDependency
from adedge.json_files import parse_json
from adedge.processors import physical_cores
from adedge.progress import Progress
from adedge.specs import Record

RangeMethod = Literal["entropy", "percentile", "minmax"]
METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

BINS = 2048
PERCENTILE = 99.99
LEVELS = 128  # an INT8 magnitude is one of 0 ... 127


class Ranges(Record):
    """ranges.json: the largest magnitude that INT8 must represent, for each tensor of the FP32 graph to be quantised.

    A tensor's scale is its range / 127. ``graph_sha256`` is the digest of the FP32 graph, ``data_digest`` that of the
    pictures. ``float_nodes`` stay in floating point, and ``notes`` say why (see `adedge.calibration.sensitivity`).
    """

    method: RangeMethod
    pictures: int = Field(ge=1)
    data_digest: str
    graph_sha256: str
    tensors: Mapping[str, float]
    float_nodes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Histogram:
    """Counts of a tensor's absolute values in ``BINS`` equal bins from 0 to ``limit``.

    For larger values ``limit`` doubles as often as needed, so that pairs of bins merge exactly.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape. Raises `DataError` if one is not finite."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise DataError("values that are not finite")
        self.largest = max(self.largest, largest)
        if largest == 0.0:
            self.counts[0] += magnitudes.size
            return
        if self.limit == 0.0:
            self.limit = largest
        while self.limit < largest:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[BINS // 2 :] = 0
            self.limit *= 2
        bins = np.minimum((magnitudes * np.float32(BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def range(self, method: RangeMethod) -> float:
        """The largest magnitude that INT8 must represent; 0 if all values are 0."""
        if method == "minmax" or self.largest == 0.0:
            return self.largest
        bins = _percentile_bins(self.counts) if method == "percentile" else _entropy_bins(self.counts)
        return min(bins * self.limit / BINS, self.largest)


def collect_ranges(
    graph: bytes,
    tensors: Iterable[str],
    frames: Iterable[NDArray[np.float32]],
    method: RangeMethod = "minmax",
    *,
    data_digest: str,
    progress: Progress | None = None,
    total: int = 0,
) -> Ranges:
    """Run frames (C, H, W) float32, preprocessed pictures of good parts, through the FP32 graph and measure the ranges.

    ``tensors`` are those of `adedge.calibration.qdq.quantised_tensors`; ``total`` is the number of frames, for
    ``progress``. Raises `DataError` if there are no frames or a value is not finite, `MissingDependency` without
    onnxruntime.
    """
    histograms = {name: Histogram() for name in tensors}
    session, input_name = _session(graph, histograms)
    names = [name for name in histograms if name != input_name]
    pictures = 0
    for frame in frames:
        values = dict(zip(names, session.run(names, {input_name: frame[None]}) if names else (), strict=True))
        values[input_name] = frame
        for name, histogram in histograms.items():
            try:
                histogram.add(values[name])
            except DataError as exc:
                raise DataError(f"calibration picture {pictures + 1} gives '{name}' {exc}") from exc
        pictures += 1
        if progress is not None:
            progress(pictures, total, "INT8 ranges")
    if not pictures:
        raise DataError("INT8 ranges require pictures of good parts, and there are none: add pictures")
    return Ranges(
        method=method,
        pictures=pictures,
        data_digest=data_digest,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        tensors={name: histogram.range(method) for name, histogram in histograms.items()},
    )


def ranges_from_json(text: str, graph: bytes) -> Ranges:
    """Read stored ranges. Raises `BundleError` if they are damaged or were measured on another graph than ``graph``."""
    try:
        ranges = Ranges.model_validate(
            parse_json(text.encode(), "ranges.json", BundleError, "run 'adedge calibrate' again")
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        where = f"'{'.'.join(str(part) for part in first['loc'])}' ({first['msg']})"
        raise BundleError(f"ranges.json is damaged at {where}: run 'adedge calibrate' again") from exc
    if ranges.graph_sha256 != hashlib.sha256(graph).hexdigest():
        raise BundleError("ranges.json is stale: it was measured on another FP32 graph; run 'adedge calibrate' again")
    return ranges


def _session(graph: bytes, tensors: Iterable[str]) -> tuple[Any, str]:
    """An ONNX Runtime session that also outputs the inner ``tensors``, and the name of its input."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as exc:
        raise MissingDependency("onnxruntime", "export", "measuring INT8 ranges") from exc
    from adedge.calibration.onnx_model import TensorProto, helper, parse

    model = parse(graph)
    existing = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in existing
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, model.graph.input[0].name


def _percentile_bins(counts: NDArray[np.int64]) -> int:
    """The fewest bins that hold ``PERCENTILE`` percent of the values."""
    cumulative = counts.cumsum()
    return int(np.searchsorted(cumulative, cumulative[-1] * (PERCENTILE / 100))) + 1


def _entropy_bins(counts: NDArray[np.int64]) -> int:
    """The number of bins whose clipping and quantisation to 128 levels loses least information.

    Like TensorRT's entropy calibration (Migacz, "8-bit inference with TensorRT", GTC 2017), it minimises the
    Kullback-Leibler divergence: the reference is the histogram with clipped values added to the last bin, the candidate
    has 128 levels, each spread evenly over its bins that are not empty.
    """
    histogram: NDArray[np.float64] = counts.astype(np.float64)
    # Bin 0 mostly holds exact zeros from a ReLU, which every scale represents exactly.
    histogram[0] = 0
    total = histogram.sum()
    best, best_bins = np.inf, len(counts)
    for bins in range(LEVELS, len(counts) + 1):
        reference = histogram[:bins].copy()
        occupied = histogram[:bins] > 0
        reference[-1] += total - reference.sum()
        if not occupied.any():
            continue
        level = np.arange(bins) * LEVELS // bins
        mass = np.bincount(level, histogram[:bins], LEVELS)
        occupied_bins = np.bincount(level, occupied, LEVELS)
        candidate = np.where(occupied, mass[level] / np.maximum(occupied_bins[level], 1), 0)
        divergence = _divergence(reference, candidate)
        if divergence < best:
            best, best_bins = divergence, bins
    return best_bins


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of two histograms, each normalised; empty bins of q count as 1e-12."""
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    occupied = p > 0
    return float(np.sum(p[occupied] * np.log(p[occupied] / q[occupied])))
