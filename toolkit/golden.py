"""Golden frames: a few pictures with the detector's maps and scores, the self-test of every graph and engine.

golden.npz: frames uint8 (N, H, W, C) in the spec's colour order; labels int8 (N,), 1 for anomalous; maps float32
(N, H, W); scores float32 (N,); masks uint8 (N, H, W), only if the defects' pixels are known in every frame.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample
from adedge.data.pictures import conform
from adedge.errors import BundleError, DataError
from adedge.limits import ARCHIVE_BYTES, check
from adedge.specs import InputSpec

PER_LABEL = 16
SMALLER_TILE = "choose a smaller --size, or --fit resize"  # the remedy while a detector is made


@dataclass(frozen=True, kw_only=True)
class GoldenFrames:
    """Conformed frames (N, H, W, C) uint8, labels (N,) int8, and masks (N, H, W) bool, None unless all are known."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int8]
    masks: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The contents of golden.npz without its masks: frames (N, H, W, C), labels (N,), maps (N, H, W), scores (N,)."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int8]
    maps: NDArray[np.float32]
    scores: NDArray[np.float32]


def choose_frames(dataset: Dataset, spec: InputSpec) -> GoldenFrames:
    """Choose up to 16 good and 16 anomalous frames of ``dataset``.

    Takes test pictures if there are any. Good frames otherwise come from the training pictures (held-out ones are left
    for thresholds), anomalous ones from good frames with a synthetic stain. Raises `DataError` if a picture is smaller
    than the tile to cut from it.
    """
    rng = np.random.default_rng(0)
    good = _choose([s for s in dataset.test if s.label == 0] or dataset.train, rng)
    bad = _choose([s for s in dataset.test if s.label == 1], rng)
    frames = [_frame(sample, spec) for sample in good]
    masks: list[NDArray[np.bool_] | None] = [np.zeros((spec.height, spec.width), bool) for _ in good]
    for sample in bad:
        mask = sample.read_mask()
        frames.append(_frame(sample, spec, mask))
        masks.append(None if mask is None else _mask(mask, spec))
    if not bad:
        for frame in list(frames):
            stained, mask = stain(frame, rng)
            frames.append(stained)
            masks.append(mask)
    pixel_masks = [mask for mask in masks if mask is not None]
    return GoldenFrames(
        frames=np.stack(frames),
        labels=np.array([0] * len(good) + [1] * (len(frames) - len(good)), np.int8),
        masks=np.stack(pixel_masks) if len(pixel_masks) == len(frames) else None,
    )


def golden_file(golden: GoldenFrames, maps: NDArray[np.float32], scores: NDArray[np.float32]) -> bytes:
    """The bytes of golden.npz: the frames with the detector's maps (N, H, W) and scores (N,).

    The same arrays give the same bytes, and so the same digest: NumPy's own writer would add the time.
    """
    arrays = {"frames": golden.frames, "labels": golden.labels, "maps": maps, "scores": scores}
    if golden.masks is not None:
        arrays["masks"] = golden.masks.astype(np.uint8)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def read_golden(bundle: Bundle) -> Golden:
    """Read a bundle's golden frames. Raises `BundleError` if they are missing, changed or do not fit the bundle.

    Sizes are checked before anything is decompressed.
    """
    path, spec = bundle.path / "golden.npz", bundle.manifest.input
    data = bundle.read("golden.npz")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            headers = {name: _header(archive, name) for name in ("frames", "labels", "maps", "scores")}
            if headers != _headers(headers["labels"].shape, spec):
                raise BundleError(f"{path} does not fit the bundle's input spec: run 'adedge train' again")
            total = sum(header.bytes for header in headers.values())
            check(ARCHIVE_BYTES, total, str(path), BundleError)
            golden = Golden(
                frames=_array(archive, "frames"),
                labels=_array(archive, "labels"),
                maps=_array(archive, "maps"),
                scores=_array(archive, "scores"),
            )
    except BundleError:
        raise
    except Exception as exc:  # zipfile, its decompressors and NumPy raise a dozen kinds for damaged bytes
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise BundleError(f"{path} is not a file of golden frames ({reason}): run 'adedge train' again") from exc
    finite = np.isfinite(golden.maps).all() and np.isfinite(golden.scores).all()
    if not finite or not np.isin(golden.labels, (0, 1)).all():
        raise BundleError(f"{path} holds labels other than 0 and 1, or infinite numbers: run 'adedge train' again")
    return golden


def golden_among(golden: Golden, samples: Sequence[Sample], spec: InputSpec) -> frozenset[str]:
    """The digests of the good samples whose pixels are those of a golden frame, whatever file they come from.

    Raises `DataError` if a picture is smaller than the tile to cut from it, or cannot be read.
    """
    frames = {frame.tobytes() for frame in golden.frames}
    remedy = "leave it out, or train a detector with a smaller --size"

    def is_golden(sample: Sample) -> bool:
        return _frame(sample, spec, remedy=remedy).tobytes() in frames

    with ThreadPoolExecutor() as pool:
        found = pool.map(is_golden, samples)
        return frozenset(sample.digest for sample, yes in zip(samples, found, strict=True) if yes)


class _Header(NamedTuple):
    """What the header of a .npy file states."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _headers(count: tuple[int, ...], spec: InputSpec) -> dict[str, _Header]:
    """The headers that labels of shape ``count`` require; none if no golden file has such labels."""
    if len(count) != 1 or not 1 <= count[0] <= 2 * PER_LABEL:
        return {}
    size = (*count, spec.height, spec.width)
    return {
        "frames": _Header((*size, spec.channels), np.dtype(np.uint8)),
        "labels": _Header(count, np.dtype(np.int8)),
        "maps": _Header(size, np.dtype(np.float32)),
        "scores": _Header(count, np.dtype(np.float32)),
    }


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    """The header of an array in a .npz file."""
    with archive.open(f"{name}.npy") as stream:
        return _read_header(stream)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array in a .npz file; never decompresses more than its header states. Raises `ValueError`."""
    with archive.open(f"{name}.npy") as stream:
        header = _read_header(stream)
        data = stream.read(header.bytes + 1)
    return np.frombuffer(data, header.dtype).reshape(header.shape).copy()


def _read_header(stream: IO[bytes]) -> _Header:
    """Read the header of a .npy file that `numpy.savez` wrote. Raises `ValueError`."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"version {version} of NumPy's format instead of (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype.hasobject:
        raise ValueError("an array that is not stored in C order, or that holds objects")
    return _Header(shape, dtype)


def stain(frame: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A copy of a frame (H, W, C) with an elliptical stain of inverted brightness, and the stain's mask (H, W)."""
    height, width = frame.shape[:2]
    centre_y, centre_x = rng.uniform(0.25, 0.75, 2) * (height, width)
    radius_y, radius_x = rng.uniform(0.08, 0.16, 2) * (height, width)
    y, x = np.mgrid[:height, :width]
    mask = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
    stained = frame.copy()
    stained[mask] = 255 - stained[mask]
    return stained, mask


def _choose(samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    count = min(PER_LABEL, len(samples))
    return [samples[index] for index in sorted(rng.choice(len(samples), count, replace=False))] if count else []


def _frame(
    sample: Sample, spec: InputSpec, mask: NDArray[np.bool_] | None = None, *, remedy: str = SMALLER_TILE
) -> NDArray[np.uint8]:
    """A sample as one network input: for a tiled detector, the tile around the defect, or else the centre tile."""
    frame = conform(sample.read(), spec)
    require_size(frame, spec, sample, remedy=remedy)
    top, left = _tile_origin(frame.shape, spec, mask)
    tile: NDArray[np.uint8] = frame[top : top + spec.height, left : left + spec.width]
    return tile


def require_size(frame: NDArray[np.uint8], spec: InputSpec, sample: Sample, *, remedy: str = SMALLER_TILE) -> None:
    """Raise `DataError` with a ``remedy`` if a conformed frame is smaller than the network's input."""
    height, width = frame.shape[:2]
    if height < spec.height or width < spec.width:
        raise DataError(
            f"{sample.path or 'a picture'} of {width} × {height} pixels is smaller than a tile of {spec.width} × "
            f"{spec.height}: {remedy}"
        )


def _mask(mask: NDArray[np.bool_], spec: InputSpec) -> NDArray[np.bool_]:
    """The mask of one network input: cropped like `_frame`, or resized to the nearest pixel."""
    if spec.resize == "tile":
        top, left = _tile_origin(mask.shape, spec, mask)
        frame_mask: NDArray[np.bool_] = mask[top : top + spec.height, left : left + spec.width]
    else:
        rows = (np.arange(spec.height) + 0.5) * mask.shape[0] / spec.height
        columns = (np.arange(spec.width) + 0.5) * mask.shape[1] / spec.width
        frame_mask = mask[rows.astype(int)[:, None], columns.astype(int)[None]]
    return frame_mask


def _tile_origin(shape: tuple[int, ...], spec: InputSpec, mask: NDArray[np.bool_] | None) -> tuple[int, int]:
    centre = np.array(shape[:2]) / 2 if mask is None or not mask.any() else np.argwhere(mask).mean(axis=0)
    tile = np.array((spec.height, spec.width))
    top, left = np.clip((centre - tile / 2).astype(int), 0, np.array(shape[:2]) - tile)
    return int(top), int(left)
