"""Proofs counted by hand: a detector whose score is the brightest red of a picture, and an engine that dims it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adedge.bundle import Bundle
from adedge.data.datasets import Sample
from adedge.errors import GateError, MissingDependency
from adedge.export import proof
from adedge.export.proof import pictures_with_scores, prove, stored_scores
from adedge.runtime.engines import EngineRecord
from adedge.specs import Precision

LEVELS = tuple(range(5, 255, 10))  # of red, in the 25 pictures


@pytest.fixture
def bundle(red_bundle: Bundle) -> Bundle:
    return red_bundle


def test_flips_are_counted_on_the_pictures_and_bounded(bundle: Bundle, red_samples: tuple[Sample, ...]) -> None:
    found, bundle = pictures_with_scores(bundle, red_samples)
    fp32, int8 = sorted(prove(bundle, found), key=lambda one: one.engine)
    assert (fp32.pictures, fp32.flips) == (25, 0)
    assert fp32.flip_rate == pytest.approx(1 - 0.05 ** (1 / 25), abs=1e-6)
    # The model rejects levels above 127.5, the engine those above 127.5 / 0.92 = 138.6: 135 alone lies between.
    assert (int8.pictures, int8.flips) == (25, 1)
    # Levels 135 and up are 12 of the 25, those above 138.6 are 11.
    assert (fp32.rejected, int8.rejected) == (12, 11)
    assert not fp32.one_sided
    assert int8.score_error == pytest.approx(0.08 * 245 / 255, abs=1e-6)
    assert int8.golden is not None
    assert int8.golden.map_error == pytest.approx(0.08 * 240 / 255, abs=1e-6)
    assert fp32.problem is None
    assert int8.problem is None  # 0.08 of the largest score is within what INT8 may do


def test_golden_frames_alone_pass_as_camera_frames(bundle: Bundle) -> None:
    """Red and blue are opposites: exchanged on the way, maps would be far off."""
    fp32, int8 = prove(bundle)
    assert fp32.golden is not None
    assert fp32.golden.map_error == pytest.approx(0, abs=1e-6)
    assert (fp32.pictures, fp32.flips, int8.flips) == (4, 0, 0)


def test_an_engine_beyond_its_tolerance_or_changed_is_told_of(
    bundle: Bundle,
    graph_that_shows_red: Callable[[float], bytes],
    red_record: Callable[[Precision, bytes], EngineRecord],
) -> None:
    with bundle.edit() as draft:
        graph = graph_that_shows_red(0.5)
        record = red_record("fp32", graph)
        draft.write(record.graph, graph)
        draft.write(record.plan, graph)
        draft.write("engines/onnxruntime-fp32/engine.json", record.model_dump_json())
    plan = bundle.path / "engines/onnxruntime-int8/engine.onnx"
    changed = plan.read_bytes()[:-1] + b"?"
    plan.unlink()
    plan.write_bytes(changed)
    fp32, int8 = prove(Bundle.open(bundle.path))
    assert fp32.problem is not None
    assert "in a map" in fp32.problem
    assert int8.golden is None
    assert int8.problem is not None
    assert "not the file that was written" in int8.problem


def test_scores_stay_for_a_machine_without_the_model(
    bundle: Bundle, red_samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, known = pictures_with_scores(bundle, red_samples[:20])
    assert sorted(stored_scores(known).values()) == pytest.approx([level / 255 for level in LEVELS[:20]])

    def no_model(bundle: Bundle) -> None:
        raise MissingDependency("torch", "train", "running networks")

    monkeypatch.setattr(proof, "load_reference", no_model)
    found, again = pictures_with_scores(known, red_samples[:20])
    assert again is known
    assert [one.flips for one in prove(again, found)] == [0, 1]
    with pytest.raises(GateError, match="5 of 25 pictures have no model score"):
        pictures_with_scores(known, red_samples)


def test_scores_of_other_weights_are_none(
    bundle: Bundle, red_samples: tuple[Sample, ...], graph_that_shows_red: Callable[[float], bytes]
) -> None:
    _, known = pictures_with_scores(bundle, red_samples)
    with known.edit() as draft:
        draft.write("imported.onnx", graph_that_shows_red(0.9))
    assert stored_scores(Bundle.open(bundle.path)) == {}
