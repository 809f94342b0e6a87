"""The golden frames: which are chosen, that they are read as written, and what is no golden file."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from adedge.bundle import Bundle, create
from adedge.data.datasets import Dataset, Sample
from adedge.errors import BundleError, DataError
from adedge.golden import GoldenFrames, choose_frames, golden_file, read_golden, stain
from adedge.manifest import Manifest, Provenance
from adedge.specs import InputSpec, ReadyMap, ScoreSpec, Tiling

SPEC = InputSpec(height=8, width=8, channels=1, color="gray")
COUNT = 4


def golden() -> tuple[GoldenFrames, NDArray[np.float32], NDArray[np.float32]]:
    """Four frames of noise, of which the last two are anomalous, with maps and scores."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
    labels = np.array([0, 0, 1, 1], np.int8)
    maps = rng.random((COUNT, 8, 8), np.float32)
    return GoldenFrames(frames=frames, labels=labels, masks=maps > 0.9), maps, maps.max((1, 2))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = Manifest(
        method="m",
        variant="v",
        network={},
        input=SPEC,
        score=ScoreSpec(comparison=ReadyMap()),
        provenance=Provenance(created="", data="", data_digest="", seed=0, budget="", device="", versions={}),
    )
    with create(tmp_path / "b.adedge", manifest) as draft:
        draft.write("golden.npz", golden_file(*golden()))
    return Bundle.open(tmp_path / "b.adedge")


def rewritten(bundle: Bundle, data: bytes) -> Bundle:
    with bundle.edit() as draft:
        draft.write("golden.npz", data)
    return Bundle.open(bundle.path)


def test_golden_frames_are_read_as_written(bundle: Bundle) -> None:
    frames, maps, scores = golden()
    found = read_golden(bundle)
    for read, written in (
        (found.frames, frames.frames),
        (found.labels, frames.labels),
        (found.maps, maps),
        (found.scores, scores),
    ):
        np.testing.assert_array_equal(read, written)
        assert read.dtype == written.dtype
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as file:
        np.testing.assert_array_equal(file["masks"].astype(bool), frames.masks)


def test_unknown_masks_are_left_out() -> None:
    frames, maps, scores = golden()
    unmasked = GoldenFrames(frames=frames.frames, labels=frames.labels, masks=None)
    with np.load(io.BytesIO(golden_file(unmasked, maps, scores))) as file:
        assert set(file) == {"frames", "labels", "maps", "scores"}


def test_damaged_golden_frames_are_refused(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("golden.npz", b"nothing")
    with pytest.raises(BundleError, match="not a file of golden frames"):
        read_golden(Bundle.open(bundle.path))


def saved(**changes: NDArray[Any]) -> bytes:
    frames, maps, scores = golden()
    stream = io.BytesIO()
    arrays = {"frames": frames.frames, "labels": frames.labels, "maps": maps, "scores": scores, **changes}
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the names for its options
    return stream.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": np.zeros((COUNT, 8, 9, 1), np.uint8)},
        {"frames": np.zeros((COUNT, 8, 8, 3), np.uint8)},
        {"labels": np.zeros(COUNT - 1, np.int8)},
        {"maps": np.zeros((COUNT, 4, 4), np.float32)},
        {"scores": np.zeros((COUNT, 1), np.float32)},
        {
            "frames": np.zeros((0, 8, 8, 1), np.uint8),
            "labels": np.zeros(0, np.int8),
            "maps": np.zeros((0, 8, 8), np.float32),
            "scores": np.zeros(0, np.float32),
        },
        {
            "frames": np.zeros((8, 8, 1), np.uint8),
            "labels": np.zeros((), np.int8),
            "maps": np.zeros((8, 8), np.float32),
            "scores": np.zeros((), np.float32),
        },
        {"maps": np.zeros((COUNT, 8, 8), np.float64)},
        {"scores": np.zeros(COUNT, ">f4")},
        {
            "frames": np.zeros((33, 8, 8, 1), np.uint8),
            "labels": np.zeros(33, np.int8),
            "maps": np.zeros((33, 8, 8), np.float32),
            "scores": np.zeros(33, np.float32),
        },
    ],
    ids=[
        "wider",
        "colour",
        "a label less",
        "small maps",
        "scores in columns",
        "none",
        "no axis of frames",
        "double precision",
        "another byte order",
        "more than 16 of each label",
    ],
)
def test_shapes_that_do_not_fit_the_bundle_are_refused(bundle: Bundle, changes: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(BundleError, match=r"golden.npz does not fit the bundle's input spec: run 'adedge train' again"):
        read_golden(rewritten(bundle, saved(**changes)))


def test_a_file_without_scores_or_with_python_objects_is_refused(bundle: Bundle) -> None:
    """Objects would have to be unpickled, which executes code."""
    stream = io.BytesIO()
    np.savez(stream, frames=golden()[0].frames)
    for data in (stream.getvalue(), saved(scores=np.array([None] * COUNT, object))):
        with pytest.raises(BundleError, match="is not a file of golden frames .*: run 'adedge train' again"):
            read_golden(rewritten(Bundle.open(bundle.path), data))


def zipped(**arrays: bytes) -> bytes:
    """A .npz file with these bytes as arrays, and the proper ones for the rest."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as proper, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("frames", "labels", "maps", "scores"):
            archive.writestr(f"{name}.npy", arrays.get(name, proper.read(f"{name}.npy")))
    return stream.getvalue()


def header(shape: str, dtype: str = "<f4", version: bytes = b"\x01\x00") -> bytes:
    """The header of a .npy file, by NumPy's description of its format."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


MAPS = golden()[1].tobytes()


@pytest.mark.parametrize(
    "maps",
    [
        header("(4, 8, 8)") + MAPS[:-4],
        header("(4, 8, 8)") + MAPS + b"more",
        header("(4, 8, 8)", version=b"\x09\x00") + MAPS,
        header("(" * 200 + ")" * 200) + MAPS,
        header("(4, 8, 8)", dtype="<f4" + "x" * 50) + MAPS,
        header("(4, 8, 8)")[:20],
        b"",
    ],
    ids=["too short", "too long", "a later format", "nested", "no dtype", "half a header", "nothing"],
)
def test_arrays_that_are_not_what_their_header_says_are_refused(bundle: Bundle, maps: bytes) -> None:
    with pytest.raises(BundleError, match="is not a file of golden frames .*: run 'adedge train' again"):
        read_golden(rewritten(bundle, zipped(maps=maps)))


@pytest.mark.fault("archives that are bombs, cut off or unsafe")
def test_a_bomb_is_refused_before_it_is_decompressed(bundle: Bundle) -> None:
    """64 megabytes of zeros in 64 kilobytes, whether the header says so or not."""
    zeros = bytes(64 << 20)
    for shape, sentence in (("(262144, 8, 8)", "does not fit"), ("(4, 8, 8)", "is not a file of golden frames")):
        changed = rewritten(Bundle.open(bundle.path), zipped(maps=header(shape) + zeros))
        tracemalloc.start()
        with pytest.raises(BundleError, match=sentence):
            read_golden(changed)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_results_that_are_no_numbers_are_refused(bundle: Bundle) -> None:
    for changes in ({"scores": np.full(COUNT, np.nan, np.float32)}, {"labels": np.full(COUNT, 7, np.int8)}):
        with pytest.raises(BundleError, match="other than 0 and 1, or infinite numbers: run 'adedge train'"):
            read_golden(rewritten(Bundle.open(bundle.path), saved(**changes)))


def test_a_bundle_without_golden_frames_says_what_makes_them(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.remove("golden.npz")
    with pytest.raises(BundleError, match="has no golden.npz: run 'adedge train' again"):
        read_golden(Bundle.open(bundle.path))


# --- which frames are chosen -----------------------------------------------------------------------------------------


def sample(level: int, label: int = 0, shape: tuple[int, int] = (8, 8)) -> Sample:
    return Sample(path=None, label=label, kind="good", array=np.full((*shape, 1), level, np.uint8))


def dataset(**parts: list[Sample]) -> Dataset:
    whole = {"train": [sample(1)], "calibration": [], "test": [], **parts}
    return Dataset(name="d", **{name: tuple(part) for name, part in whole.items()})  # type: ignore[arg-type]


def levels(frames: GoldenFrames) -> list[int]:
    return frames.frames[:, 0, 0, 0].tolist()


def test_labelled_test_pictures_are_taken_sixteen_of_each_kind_at_most() -> None:
    test = [sample(10 + n) for n in range(30)] + [sample(100 + n, 1) for n in range(3)] + [sample(200, -1)]
    chosen = choose_frames(dataset(test=test), SPEC)
    assert chosen.labels.tolist() == [0] * 16 + [1] * 3
    assert len(set(levels(chosen))) == 19
    assert set(levels(chosen)) <= {*range(10, 40), 100, 101, 102}
    assert levels(chosen) == sorted(levels(chosen))  # in the data's order
    assert levels(choose_frames(dataset(test=test), SPEC)) == levels(chosen)
    assert chosen.masks is None  # of the anomalous ones no pixel is known


def test_without_test_pictures_those_trained_on_are_taken_and_held_out_ones_left_for_thresholds() -> None:
    for parts, expected in (
        ({"train": [sample(4), sample(5)], "calibration": [sample(2), sample(3)]}, [4, 5]),
        ({"train": [sample(1)]}, [1]),
    ):
        chosen = choose_frames(dataset(**parts), SPEC)
        good = len(expected)
        assert chosen.labels.tolist() == [0] * good + [1] * good
        assert levels(chosen)[:good] == expected
        # Each anomalous frame is a good one whose stained pixels, and no others, have the opposite brightness.
        assert chosen.masks is not None
        for before, after, mask in zip(
            chosen.frames[:good, ..., 0], chosen.frames[good:, ..., 0], chosen.masks[good:], strict=True
        ):
            assert mask.any()
            np.testing.assert_array_equal(after, np.where(mask, 255 - before, before))
        assert not chosen.masks[:good].any()


TILED = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=8))


@pytest.mark.parametrize(
    ("spot", "top", "left"),
    [((20, 30), 14, 24), ((0, 0), 0, 0), ((47, 63), 32, 48)],
    ids=["inside", "first corner", "last corner"],
)
def test_of_a_large_picture_the_tile_around_the_defect_is_taken(
    tmp_path: Path, spot: tuple[int, int], top: int, left: int
) -> None:
    """A spot of 5 x 5 pixels or less: its middle is the tile's, unless the tile would leave the picture."""
    rows, columns = (slice(at, at + 5) for at in spot)
    picture = np.zeros((48, 64, 1), np.uint8)
    picture[rows, columns] = 200
    cv2.imwrite(str(tmp_path / "spot.png"), picture)
    bad = Sample(path=None, label=1, kind="spot", array=picture, mask_path=tmp_path / "spot.png")
    good = sample(7, shape=(48, 64))
    chosen = choose_frames(dataset(test=[good, bad]), TILED)
    assert chosen.frames.shape == (2, 16, 16, 1)
    np.testing.assert_array_equal(chosen.frames[1], picture[top : top + 16, left : left + 16])
    assert chosen.masks is not None
    np.testing.assert_array_equal(chosen.masks[1], chosen.frames[1, ..., 0] == 200)
    assert not chosen.masks[0].any()


def test_masks_are_resized_as_pictures_are(tmp_path: Path) -> None:
    """32 x 24 pixels to 8 x 8: a square on whole 4 x 3 blocks stays exactly that many pixels."""
    mask = np.zeros((32, 24, 1), np.uint8)
    mask[8:20, 6:12] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    bad = Sample(path=None, label=1, kind="spot", array=mask, mask_path=tmp_path / "mask.png")
    chosen = choose_frames(dataset(test=[sample(7, shape=(32, 24)), bad]), SPEC)
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:4] = True
    assert chosen.masks is not None
    np.testing.assert_array_equal(chosen.masks[1], expected)


def test_a_picture_smaller_than_a_tile_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        DataError, match=r"a picture of 20 × 12 pixels is smaller than a tile of 16 × 16: .*--size, or --fit"
    ):
        choose_frames(dataset(train=[sample(1, shape=(12, 20))]), TILED)


def test_a_stain_is_an_ellipse_inside_the_frame() -> None:
    """Over many stains: none touches the border, and the area is that of the ellipse of its own extent."""
    rng = np.random.default_rng(0)
    frame = np.full((100, 160, 3), 30, np.uint8)
    for _ in range(50):
        stained, mask = stain(frame, rng)
        assert set(np.unique(stained[mask])) == {225}
        assert set(np.unique(stained[~mask])) == {30}
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert rows[0] > 0
        assert columns[0] > 0
        assert rows[-1] < 99
        assert columns[-1] < 159
        assert mask.sum() == pytest.approx(np.pi / 4 * len(rows) * len(columns), rel=0.1)
    assert (frame == 30).all()  # the frame itself is left as it is


def test_the_same_frames_give_the_same_bytes_at_any_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read_golden(bundle)
    frames = GoldenFrames(frames=golden.frames, labels=golden.labels, masks=None)
    first = golden_file(frames, golden.maps, golden.scores)
    monkeypatch.setattr("time.time", lambda: 4_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *_: (2096, 10, 2, 7, 6, 40, 1, 276, 0))
    assert golden_file(frames, golden.maps, golden.scores) == first
    with np.load(io.BytesIO(first), allow_pickle=False) as file:
        assert np.array_equal(file["frames"], golden.frames)
