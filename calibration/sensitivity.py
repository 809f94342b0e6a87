"""Which layers stay in floating point: measured on pictures, not guessed.

A score that compares two nearly equal images feels the rounding of some layers a hundred times more than that of
others. Each layer is quantised alone and its effect on the scores noted; then as many of the harmless ones as the
tolerance allows are quantised together.
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

RANKING_FRAMES = 2  # good and not good ones each, by which single layers are ranked


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What quantisation does to maps and scores of the probe pictures, compared with FP32.

    ``map_error`` is the largest absolute difference of map values. ``score_noise`` is the standard deviation of the
    scores' differences over that of good pictures' scores; a shift that all scores share is left to the threshold.
    """

    map_error: float
    score_noise: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that INT8 may do, in the units of `Effect`; None is no limit.

    With a score noise of a twentieth of good pictures' own spread, two normal distributions of scores overlap as if
    they lay 0.1% closer together.
    """

    score_noise: float = 0.05
    map_error: float | None = None

    def allow(self, effect: Effect) -> bool:
        """Whether an effect is within the limits."""
        small = self.map_error is None or effect.map_error <= self.map_error
        return small and effect.score_noise <= self.score_noise


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which nodes stay in floating point, what the rest does to maps and scores, and the sentences that say so."""

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
    """Quantise as much as keeps the effect within ``limits``.

    ``score`` runs a graph on frames (N, C, H, W) float32 and gives maps (N, H, W) and scores (N,); ``probe`` are the
    frames to judge by, ``good`` (N,) says which of them are good. First and last convolutions stay in floating point.
    The other nodes are ranked by what each alone does to maps, or to scores where these do not come from maps; the
    longest head of that ranking that stays within the limits is found by bisection. What has less than ``least_share``
    of the convolutions' multiply-accumulates stays in floating point.

    Raises `DataError` where not even two good frames tell a spread.
    """
    maps, scores = score(graph, probe)
    spread = float(np.std(scores[good], ddof=1)) if good.sum() > 1 else 0.0
    if not spread > 0:
        raise DataError("at least two good pictures with different scores are needed to place INT8")
    nodes = quantisable_nodes(graph)
    edges = first_and_last(graph)
    inner = [name for name in nodes if name not in edges | _cheap(graph, least_share)]
    few = np.concatenate([np.flatnonzero(good)[:RANKING_FRAMES], np.flatnonzero(~good)[:RANKING_FRAMES]])
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
        changed = quantised([name], probe[few])
        new, old = (changed[0], maps[few]) if rank_by == "map" else (changed[1], scores[few])
        return float(np.mean((new - old) ** 2, dtype=np.float64))

    best, effect = inner, _effect((maps, scores), quantised(inner, probe), spread)
    if not limits.allow(effect):
        changes = {name: change(name) for name in inner}
        ranking = sorted(inner, key=changes.__getitem__)
        # The first `low` nodes together are allowed (none at all always are), the first `high` are not.
        low, high = 0, len(ranking)
        best, effect = [], Effect(map_error=0.0, score_noise=0.0)
        while high - low > 1:
            middle = (low + high) // 2
            tried = _effect((maps, scores), quantised(ranking[:middle], probe), spread)
            if limits.allow(tried):
                low, best, effect = middle, ranking[:middle], tried
            else:
                high = middle
    float_nodes = tuple(name for name in nodes if name not in set(best))
    return Decision(float_nodes=float_nodes, effect=effect, notes=_notes(graph, float_nodes, effect, limits))


def _cheap(graph: bytes, share: float) -> frozenset[str]:
    """Names of the nodes with less than a share of the convolutions' multiply-accumulates; other nodes have none."""
    model = parse(graph)
    names = set(convolutions(graph))
    costs = {node.name: multiply_accumulates(model, [node]) if node.name in names else 0 for node in model.graph.node}
    return frozenset(name for name, cost in costs.items() if cost < share * sum(costs.values()))


def _effect(reference: tuple[Floats, Floats], quantised: tuple[Floats, Floats], spread: float) -> Effect:
    maps, scores = (np.asarray(a, np.float64) - b for a, b in zip(quantised, reference, strict=True))
    effect = Effect(map_error=float(np.abs(maps).max()), score_noise=float(np.std(scores)) / spread)
    if not np.isfinite([effect.map_error, effect.score_noise]).all():
        raise AdedgeError("a quantised graph gives values that are not finite: the INT8 ranges cannot be right")
    return effect


def _notes(graph: bytes, float_nodes: tuple[str, ...], effect: Effect, limits: Limits) -> tuple[str, ...]:
    model = parse(graph)
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    kept = set(float_nodes)
    every = convolutions(graph)
    int8 = [node for node in weighted if node.name in every and node.name not in kept]
    share = multiply_accumulates(model, int8) / max(multiply_accumulates(model, weighted), 1)
    names = ", ".join(name for name in float_nodes if name in every) or "none"
    return (
        f"{len(int8)} of {len(weighted)} convolutions ({share:.0%} of their multiply-accumulates) in INT8; "
        f"INT8 shifts scores by {effect.score_noise:.3f} of good pictures' spread (limit {limits.score_noise:g})",
        f"in floating point: {names}",
    )
