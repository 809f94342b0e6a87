"""Placement of INT8: within its limits, and the layers that harm least come first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from adedge.calibration.onnx_model import multiply_accumulates
from adedge.calibration.qdq import convolutions, first_and_last, int8_from_fp32, quantisable_nodes
from adedge.calibration.ranges import Ranges
from adedge.calibration.sensitivity import Effect, Limits, choose_float_nodes
from adedge.errors import AdedgeError, DataError

FRAMES = np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)


def test_placement_keeps_within_its_limits(fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]) -> None:
    good = np.arange(6) < 4

    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = run(graph, frames)[:, 0]
        return maps, maps.mean(axis=(1, 2))

    everything = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9))
    assert set(everything.float_nodes) == first_and_last(fp32)
    strict = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9, map_error=1e-12))
    assert strict.float_nodes == quantisable_nodes(fp32)
    limit = everything.effect.map_error * 0.9
    between = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9, map_error=limit))
    quantised = run(int8_from_fp32(fp32, ranges, between.float_nodes))
    assert np.abs(quantised - run(fp32)).max() == pytest.approx(between.effect.map_error)
    assert between.effect.map_error <= limit
    assert set(everything.float_nodes) < set(between.float_nodes)


def test_placement_ranks_by_the_scores_that_a_network_gives_itself(
    fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]
) -> None:
    """The map says nothing of the score here: whatever stays quantised must move scores less than what does not."""
    good = np.arange(len(FRAMES)) < 4

    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = run(graph, frames)
        return np.zeros((len(outputs), 2, 2), np.float32), outputs.mean(axis=(1, 2, 3))

    every = quantisable_nodes(fp32)
    loosest = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9), rank_by="score")
    limits = Limits(score_noise=loosest.effect.score_noise * 0.9)
    found = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=limits, rank_by="score")
    assert found.effect.score_noise <= limits.score_noise
    few = np.r_[0:2, 4:6]
    reference = score(fp32, FRAMES[few])[1]
    effects = {
        name: np.square(score(int8_from_fp32(fp32, ranges, set(every) - {name}), FRAMES[few])[1] - reference).mean()
        for name in set(every) - first_and_last(fp32)
    }
    int8 = set(every) - set(found.float_nodes)
    assert int8
    assert int8 < set(effects)
    assert max(effects[name] for name in int8) <= min(effects[name] for name in set(effects) - int8)


def test_convolutions_of_little_work_stay_in_floating_point(
    fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]
) -> None:
    model = onnx.load_model_from_string(fp32)
    weighted = [node for node in model.graph.node if node.name in convolutions(fp32)]
    work = {node.name: multiply_accumulates(model, [node]) for node in weighted}
    inner = sorted(set(work) - first_and_last(fp32), key=work.__getitem__)
    share = (work[inner[-1]] - 1) / sum(work.values())  # just below the largest of them

    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = run(graph, frames)[:, 0]
        return maps, maps.mean(axis=(1, 2))

    good = np.arange(len(FRAMES)) < 4
    found = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9), least_share=share)
    assert set(quantisable_nodes(fp32)) - set(found.float_nodes) == {
        name for name in inner if work[name] == work[inner[-1]]
    }


@pytest.mark.parametrize(
    ("effect", "allowed"),
    [
        (Effect(map_error=9.0, score_noise=0.05), True),
        (Effect(map_error=0.0, score_noise=0.051), False),
    ],
)
def test_without_a_limit_of_the_map_scores_alone_decide(effect: Effect, allowed: bool) -> None:
    assert Limits().allow(effect) == allowed


def test_both_limits_hold_where_both_are_given() -> None:
    limits = Limits(score_noise=0.1, map_error=0.5)
    assert limits.allow(Effect(map_error=0.5, score_noise=0.1))
    assert not limits.allow(Effect(map_error=0.51, score_noise=0.1))
    assert not limits.allow(Effect(map_error=0.5, score_noise=0.11))


def test_the_effect_is_the_largest_change_of_a_map_and_the_spread_of_the_scores_changes(
    fp32: bytes, ranges: Ranges
) -> None:
    """Good scores 1 to 4 have a deviation of 1.291; a quantised graph raises all scores by 100, give or take 10."""
    scores = np.array([1, 2, 3, 4, 7, 7], np.float32)
    moved = scores + 100 + np.array([10, -10, 10, -10, 10, -10], np.float32)
    maps = np.zeros((6, 2, 2), np.float32)
    changed = maps.copy()
    changed[4, 1, 0] = -0.75

    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (maps, scores) if graph == fp32 else (changed, moved)

    found = choose_float_nodes(fp32, ranges, score, FRAMES, np.arange(6) < 4, limits=Limits(score_noise=1e9))
    assert found.effect.map_error == pytest.approx(0.75)
    assert found.effect.score_noise == pytest.approx(10 / np.sqrt(5 / 3))  # the shift of 100 is for the threshold


def test_notes_name_what_stays_in_floating_point(fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]) -> None:
    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = run(graph, frames)[:, 0]
        return maps, maps.mean(axis=(1, 2))

    good = np.arange(len(FRAMES)) < 4
    found = choose_float_nodes(fp32, ranges, score, FRAMES, good, limits=Limits(score_noise=1e9))
    # Of five convolutions and a transposed one, the first and the last stay in floating point, and the transposed one.
    assert found.notes[0].startswith("3 of 6 convolutions (")
    assert f"{found.effect.score_noise:.3f} of good pictures' spread (limit 1e+09)" in found.notes[0]
    kept = set(convolutions(fp32)) & set(found.float_nodes)
    assert len(kept) == 2
    assert set(found.notes[1].removeprefix("in floating point: ").split(", ")) == kept


@pytest.mark.parametrize("good", [[True, False], [True, True]], ids=["one good picture", "all alike"])
def test_without_a_spread_of_good_scores_there_is_nothing_to_measure_by(
    fp32: bytes, ranges: Ranges, good: list[bool]
) -> None:
    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((2, 4, 4), np.float32), np.ones(2, np.float32)

    with pytest.raises(DataError, match="INT8 placement requires at least two good pictures with different scores"):
        choose_float_nodes(fp32, ranges, score, FRAMES[:2], np.array(good), limits=Limits())


def test_values_that_are_not_finite_are_refused(fp32: bytes, ranges: Ranges) -> None:
    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = np.zeros((len(frames), 4, 4), np.float32)
        return maps + (0 if graph == fp32 else np.float32(np.nan)), np.arange(len(frames), dtype=np.float32)

    with pytest.raises(AdedgeError, match="not finite: choose another --method for the INT8 ranges"):
        choose_float_nodes(fp32, ranges, score, FRAMES, np.ones(6, bool), limits=Limits())


def test_progress_ends_where_the_work_does(fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]) -> None:
    def score(graph: bytes, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = run(graph, frames)[:, 0]
        return maps, maps.mean(axis=(1, 2))

    steps: list[tuple[int, int]] = []
    limits = Limits(score_noise=1e9, map_error=1e-12)  # nothing is within, so that everything is tried
    choose_float_nodes(
        *(fp32, ranges, score, FRAMES, np.arange(6) < 4),
        limits=limits,
        progress=lambda done, total, text: steps.append((done, total)),
    )
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert len({total for _, total in steps}) == 1
    assert steps[-1][0] <= steps[-1][1]
