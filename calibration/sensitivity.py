"""Choose the layers that stay in floating point by measuring their sensitivity on pictures.

A score that compares two nearly equal images can be a hundred times more sensitive to the rounding of some layers than
of others. If quantising every layer exceeds the limits, each layer is quantised alone to measure its effect on maps or
scores, and as many of the least sensitive layers as the limits allow are quantised together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adedge.calibration.onnx_model import multiply_accumulates, parse
from adedge.calibration.qdq import convolutions, first_and_last, int8_from_fp32, quantisable_nodes
from adedge.calibration.ranges import Ranges
from adedge.errors import AdedgeError, DataError
from adedge.progress import Progress

Floats = NDArray[np.float32]
Score = Callable[[bytes, Floats], tuple[Floats, Floats]]

RANKING_FRAMES = 2  # of good and of anomalous frames each, to rank single layers by


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How quantisation changes the maps and scores of the probe pictures, compared with FP32.

    ``map_error`` is the largest absolute difference of map values. ``score_noise`` is the standard deviation of the
    scores' differences divided by that of good pictures' scores; the threshold absorbs a shift common to all scores.
    """

    map_error: float
    score_noise: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest effect that INT8 may have, in the units of `Effect`; None means no limit.

    With a score noise of a twentieth of good pictures' own spread, two normal distributions of scores overlap as if
    they were 0.1% closer together.
    """

    score_noise: float = 0.05
    map_error: float | None = None

    def allow(self, effect: Effect) -> bool:
        """Whether an effect is within the limits."""
        small = self.map_error is None or effect.map_error <= self.map_error
        return small and effect.score_noise <= self.score_noise


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The nodes that stay in floating point, the effect of quantising the others, and notes for the user."""

    float_nodes: tuple[str, ...]
    effect: Effect
    notes: tuple[str, ...]


def choose_float_nodes(
    graph: bytes,
    ranges: Ranges,
    score: Score,
    probe: Floats,
    good: NDArray[np.bool_],
    *,
    limits: Limits,
    rank_by: Literal["map", "score"] = "map",
    least_share: float = 0.0,
    progress: Progress | None = None,
) -> Decision:
    """Quantise as many nodes as keep the effect within ``limits``.

    ``score`` runs a graph on frames (N, C, H, W) float32 and returns maps (N, H, W) and scores (N,); ``probe`` are the
    frames to measure the effect on, ``good`` (N,) marks the good ones. First and last convolutions stay in floating
    point, and so do nodes with less than ``least_share`` of the convolutions' multiply-accumulates. If quantising all
    others exceeds the limits, they are ranked by what each alone does to maps or scores (``rank_by``), and bisection
    finds the longest prefix of that ranking that is within the limits.

    Raises `DataError` if fewer than two good frames have different scores, `AdedgeError` if a quantised graph's output
    is not finite.
    """
    maps, scores = score(graph, probe)
    spread = float(np.std(scores[good], ddof=1)) if good.sum() > 1 else 0.0
    if not spread > 0:
        raise DataError("INT8 placement requires at least two good pictures with different scores: add pictures")
    nodes = quantisable_nodes(graph)
    edges = first_and_last(graph)
    inner = [name for name in nodes if name not in edges | _cheap(graph, least_share)]
    ranking_frames = np.concatenate([np.flatnonzero(good)[:RANKING_FRAMES], np.flatnonzero(~good)[:RANKING_FRAMES]])
    steps = 1 + len(inner) + len(inner).bit_length()
    done = 0

    def quantised(names: Sequence[str], frames: Floats) -> tuple[Floats, Floats]:
        nonlocal done
        result = score(int8_from_fp32(graph, ranges, set(nodes) - set(names)), frames)
        done += 1
        if progress is not None:
            progress(done, steps, "INT8 placement")
        return result

    def change(name: str) -> float:
        changed = quantised([name], probe[ranking_frames])
        new, old = (changed[0], maps[ranking_frames]) if rank_by == "map" else (changed[1], scores[ranking_frames])
        return float(np.mean((new - old) ** 2, dtype=np.float64))

    best, effect = inner, _effect((maps, scores), quantised(inner, probe), spread)
    if not limits.allow(effect):
        changes = {name: change(name) for name in inner}
        ranking = sorted(inner, key=changes.__getitem__)
        # Quantising the first `low` nodes is within the limits (quantising none always is), the first `high` is not.
        low, high = 0, len(ranking)
        best, effect = [], Effect(map_error=0.0, score_noise=0.0)
        while high - low > 1:
            middle = (low + high) // 2
            candidate = _effect((maps, scores), quantised(ranking[:middle], probe), spread)
            if limits.allow(candidate):
                low, best, effect = middle, ranking[:middle], candidate
            else:
                high = middle
    float_nodes = tuple(name for name in nodes if name not in set(best))
    return Decision(float_nodes=float_nodes, effect=effect, notes=_notes(graph, float_nodes, effect, limits))


def _cheap(graph: bytes, share: float) -> frozenset[str]:
    """Names of nodes below a share of the convolutions' multiply-accumulates; other node types count as 0."""
    model = parse(graph)
    names = set(convolutions(graph))
    costs = {node.name: multiply_accumulates(model, [node]) if node.name in names else 0 for node in model.graph.node}
    return frozenset(name for name, cost in costs.items() if cost < share * sum(costs.values()))


def _effect(reference: tuple[Floats, Floats], quantised: tuple[Floats, Floats], spread: float) -> Effect:
    maps, scores = (np.asarray(a, np.float64) - b for a, b in zip(quantised, reference, strict=True))
    effect = Effect(map_error=float(np.abs(maps).max()), score_noise=float(np.std(scores)) / spread)
    if not np.isfinite([effect.map_error, effect.score_noise]).all():
        raise AdedgeError(
            "a quantised graph gives values that are not finite: choose another --method for the INT8 ranges"
        )
    return effect


def _notes(graph: bytes, float_nodes: tuple[str, ...], effect: Effect, limits: Limits) -> tuple[str, ...]:
    model = parse(graph)
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    quantisable = set(convolutions(graph))
    int8 = [node for node in weighted if node.name in quantisable - set(float_nodes)]
    share = multiply_accumulates(model, int8) / max(multiply_accumulates(model, weighted), 1)
    names = ", ".join(name for name in float_nodes if name in quantisable) or "none"
    return (
        f"{len(int8)} of {len(weighted)} convolutions ({share:.0%} of their multiply-accumulates) in INT8; "
        f"score noise: {effect.score_noise:.3f} of good pictures' spread (limit {limits.score_noise:g})",
        f"in floating point: {names}",
    )
