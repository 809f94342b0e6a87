"""Differences against a closed form, flips and AUROC counted by hand, and the tolerance as a gate."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from adedge.bundle import Bundle, create
from adedge.data.pictures import network_input
from adedge.errors import GateError
from adedge.export.verify import TOLERANCES, check_tolerance, difference, flips_of, one_sided_golden, tolerance_of
from adedge.golden import read_golden
from adedge.manifest import Difference, Manifest, Provenance, Threshold
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

SPEC = InputSpec(height=8, width=8, channels=1, color="gray", mean=(0.5,), std=(0.25,))
LEVELS = (10, 20, 30, 40)


def threshold(value: float) -> Threshold:
    return Threshold(value=value, false_alarm_rate=0.05, pictures=40, data_digest="")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Four flat frames whose map is their grey level / 100; the two brighter ones are anomalous."""
    frames = np.stack([np.full((8, 8, 1), level, np.uint8) for level in LEVELS])
    maps = (frames[..., 0] / 100).astype(np.float32)
    stream = io.BytesIO()
    np.savez(stream, frames=frames, labels=np.array([0, 0, 1, 1], np.int8), maps=maps, scores=maps.max(axis=(1, 2)))
    manifest = Manifest(
        method="oesdn",
        variant="ae",
        network={},
        input=SPEC,
        score=ScoreSpec(comparison=ReadyMap()),
        thresholds={"pytorch/fp32": threshold(0.25), "onnxruntime/fp32": threshold(0.35)},
        provenance=Provenance(
            created="", data="", data_digest=hashlib.sha256(b"").hexdigest(), seed=0, budget="", device="", versions={}
        ),
    )
    with create(tmp_path / "b.adedge", manifest) as draft:
        draft.write("golden.npz", stream.getvalue())
    return Bundle.open(tmp_path / "b.adedge")


def levels(x: np.ndarray) -> np.ndarray:
    """The grey level / 100 again, from preprocessed input."""
    return ((x[:, 0] * 0.25 + 0.5) * 2.55).astype(np.float32)


def test_the_same_outputs_differ_by_nothing_but_thresholds_decide(bundle: Bundle) -> None:
    found = difference(bundle, read_golden(bundle), lambda x: [levels(x)], threshold="onnxruntime/fp32")
    assert found.map_error == pytest.approx(0, abs=1e-6)
    assert found.score_error == pytest.approx(0, abs=1e-6)
    # 0.3 is above PyTorch's threshold of 0.25 and below the other one of 0.35.
    assert (found.frames, found.flips, found.auroc_change) == (4, 1, 0)
    assert difference(bundle, read_golden(bundle), lambda x: [levels(x)], threshold="tensorrt/fp32").flips is None


def test_one_wrong_pixel_and_a_wrong_order(bundle: Bundle) -> None:
    def run(x: np.ndarray) -> Sequence[np.ndarray]:
        maps = levels(x)
        maps[0, 3, 4] = 0.35  # a good frame now scores above one of the two anomalous ones: one pair of four
        return [maps]

    found = difference(bundle, read_golden(bundle), run)
    assert found.map_error == pytest.approx(0.25, abs=1e-6)
    assert found.score_error == pytest.approx(0.25, abs=1e-6)
    assert found.auroc_change == pytest.approx(-0.25)


def test_scored_graphs_are_taken_at_their_word(bundle: Bundle) -> None:
    found = difference(
        bundle, read_golden(bundle), lambda x: [levels(x), np.array([0.1, 0.2, 0.3, 0.5], np.float32)], scored=True
    )
    assert found.map_error == pytest.approx(0, abs=1e-6)
    assert found.score_error == pytest.approx(0.1, abs=1e-6)


def test_values_that_are_not_finite_are_refused(bundle: Bundle) -> None:
    def run(x: np.ndarray) -> Sequence[np.ndarray]:
        maps = levels(x)
        maps[2, 0, 0] = np.nan
        return [maps]

    with pytest.raises(GateError, match="golden frame 2"):
        difference(bundle, read_golden(bundle), run)


def test_network_input_is_the_formula(bundle: Bundle) -> None:
    frames = read_golden(bundle).frames
    expected = (frames.astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(network_input(frames, SPEC)[:, 0], expected[..., 0], atol=1e-6)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Difference(map_error=0.1, score_error=0, frames=4), "by 1.00e-01 in a map"),
        (Difference(map_error=0, score_error=0.1, frames=4), "by 1.00e-01 in a score"),
        (Difference(map_error=0, score_error=0, frames=4, auroc_change=-0.5), "loses 0.5000 AUROC"),
    ],
)
def test_beyond_the_tolerance_is_refused(bundle: Bundle, found: Difference, message: str) -> None:
    golden = read_golden(bundle)
    with pytest.raises(GateError, match=message):
        check_tolerance("model.fp16.onnx", found, golden, TOLERANCES["fp16"])
    small = found.model_copy(update={"score_error": 0.0, "auroc_change": -0.02})
    check_tolerance("model.int8.onnx", small, golden, TOLERANCES["int8"])


def test_one_pair_of_golden_frames_may_change_order(bundle: Bundle) -> None:
    golden = read_golden(bundle)
    two_good_two_bad = Difference(map_error=0, score_error=0, frames=4, auroc_change=-0.25)
    check_tolerance("model.fp16.onnx", two_good_two_bad, golden, TOLERANCES["fp16"])
    with pytest.raises(GateError, match="loses 0.5000 AUROC"):
        check_tolerance(
            "model.fp16.onnx", two_good_two_bad.model_copy(update={"auroc_change": -0.5}), golden, TOLERANCES["fp16"]
        )


def test_a_map_that_decides_nothing_may_differ_more_and_its_score_may_not(bundle: Bundle) -> None:
    golden = read_golden(bundle)
    decides, shown = (
        tolerance_of("fp16", ScoreSpec(comparison=ReadyMap(), reduce=reduce))  # type: ignore[arg-type]
        for reduce in ("max", "output")
    )
    assert decides == TOLERANCES["fp16"]
    flipped = Difference(map_error=0.15 * float(golden.maps.max()), score_error=0, frames=4)
    with pytest.raises(GateError, match="in a map"):
        check_tolerance("model.fp16.onnx", flipped, golden, decides)
    check_tolerance("model.fp16.onnx", flipped, golden, shown)
    with pytest.raises(GateError, match="in a score"):
        check_tolerance("model.fp16.onnx", flipped.model_copy(update={"score_error": 0.05}), golden, shown)


def test_scores_are_compared_with_thresholds_as_the_runtime_does(bundle: Bundle) -> None:
    """0.1 is no float32: the next one above it exceeds the threshold, although rounded to float32 both are equal."""
    manifest = bundle.manifest.replace(
        thresholds={"pytorch/fp32": threshold(0.2).model_dump(), "onnxruntime/fp32": threshold(0.1).model_dump()}
    )
    scores = np.array([np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0))], np.float32)
    assert float(scores[0]) > 0.1 > float(scores[1])
    assert flips_of(manifest, "onnxruntime/fp32", np.array([0.0, 0.0], np.float32), scores) == 1


@pytest.mark.parametrize("engine", [None, "tensorrt/int8"])
def test_without_one_of_the_thresholds_no_flips_are_known(bundle: Bundle, engine: str | None) -> None:
    scores = np.zeros(3, np.float32)
    assert flips_of(bundle.manifest, engine, scores, scores) is None
    assert flips_of(bundle.manifest.replace(thresholds={}), "onnxruntime/fp32", scores, scores) is None


@pytest.mark.parametrize(
    ("value", "verdict", "missing"), [(0.5, "accepts", "defective"), (0.05, "rejects", "good"), (0.25, None, None)]
)
def test_golden_frames_on_one_side_of_the_threshold_are_told_of(
    bundle: Bundle, value: float, verdict: str | None, missing: str | None
) -> None:
    """Scores are 0.1 to 0.4."""
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={"pytorch/fp32": threshold(value).model_dump()})
    warning = one_sided_golden(Bundle.open(bundle.path))
    if verdict is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(
            f"the model {verdict} all 4 golden frames, so engines that agree with it on them prove"
        )
        assert f"with {missing} ones too" in warning


def test_without_a_threshold_no_side_is_told_of(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={})
    assert one_sided_golden(Bundle.open(bundle.path)) is None
