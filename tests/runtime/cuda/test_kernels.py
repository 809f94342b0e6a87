"""The CUDA kernels, compiled for the host, against the NumPy reference, OpenCV, SciPy and PyTorch: whole maps."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage
from numpy.typing import NDArray
from scipy import ndimage

from adedge.data.pictures import conform
from adedge.runtime.cuda.driver import Launch
from adedge.runtime.cuda.kernel_cache import KERNELS
from adedge.runtime.cuda.launches import Picture, merge_launch, preprocess_launch, tiles_launch
from adedge.runtime.cuda.score_plan import ScorePlan
from adedge.runtime.preprocess import Preprocessor, value_tables
from adedge.runtime.tiling import cut_tiles, merge_maximum, tile_origins
from adedge.scoring import dssim_map, ellipse, gaussian_weights, opening
from adedge.specs import Dssim, Gaussian, InputSpec, Opening, ReadyMap, ScoreSpec, Tiling, Uniform

HOST_CUDA = Path(__file__).resolve().parents[2] / "host_cuda"
FAMILIES = ("dssim", "filters", "preprocess", "reduce")
SANITIZED = os.environ.get("ADEDGE_SANITIZED_KERNELS") == "1"

PROMISED = 1e-4  # absolute, of maps of images whose values span 0 to 1

Maps = NDArray[np.float32]


def load_build() -> Any:
    spec = importlib.util.spec_from_file_location("host_cuda_build", HOST_CUDA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class HostKernels:
    """Launches kernels of all families on the host; arrays are passed by address, and must be of the kernel's dtype."""

    def __init__(self, libraries: dict[str, Path]) -> None:
        self.libraries = {family: ctypes.CDLL(str(path)) for family, path in libraries.items()}

    def library(self, name: str) -> ctypes.CDLL:
        return next(library for library in self.libraries.values() if library.host_has(name.encode()))

    def __call__(self, name: str, grid: Sequence[int], block: Sequence[int], *arguments: Any) -> None:
        assert self.run(name, grid, block, *arguments) == 0

    def run(self, name: str, grid: Sequence[int], block: Sequence[int], *arguments: Any, shared: int = 0) -> int:
        library = self.library(name)
        sizes = (ctypes.c_int * 64)()
        number = library.host_params(name.encode(), sizes, 64)
        assert number == len(arguments), f"{name} takes {number} arguments, not {len(arguments)}"
        values = [self._value(argument, size) for argument, size in zip(arguments, sizes, strict=False)]
        pointers = (ctypes.c_void_p * number)(*(ctypes.addressof(value) for value in values))
        status = library.host_launch(
            name.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared, pointers
        )
        return int(status)

    @staticmethod
    def _value(argument: Any, size: int) -> Any:
        if isinstance(argument, np.ndarray):
            assert size == 8
            return ctypes.c_void_p(argument.ctypes.data)
        if isinstance(argument, float):
            assert size == 4
            return ctypes.c_float(argument)
        return {4: ctypes.c_int, 8: ctypes.c_longlong}[size](argument)


@pytest.fixture(scope="session")
def gpu() -> HostKernels:
    build = load_build()
    if build.compiler() is None:
        pytest.skip("g++, which compiles the kernels for the host, is not installed")
    return HostKernels({family: build.library(KERNELS / f"{family}.cu", sanitize=SANITIZED) for family in FAMILIES})


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def noise(*shape: int, seed: int = 0) -> Maps:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def empty(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Memory that holds NaN, or 255, until somebody writes it."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 255, dtype)


def photographs(height: int, width: int, channels: int, seed: int = 0) -> tuple[Maps, Maps]:
    """Two different parts of real surfaces, (2, channels, height, width) each, 0 to 1."""
    random = np.random.default_rng(seed)
    images = []
    for picture in (skimage.data.brick(), skimage.data.grass(), skimage.data.gravel(), skimage.data.brick()):
        planes = []
        for _ in range(channels):
            top, left = random.integers(0, 512 - height), random.integers(0, 512 - width)
            planes.append(picture[top : top + height, left : left + width])
        images.append(np.stack(planes))
    stack = np.stack(images).astype(np.float32) / 255
    return stack[:2], stack[2:]


# DSSIM


def run_dssim(gpu: HostKernels, a: Maps, b: Maps, *, window: int = 7, data_range: float = 1.0, rows: int = 16) -> Maps:
    n, channels, height, width = a.shape
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    maps = empty(n, height, width)
    parts = 1 if width <= 256 else ceil(width, 240)
    columns = 8 * ceil(ceil(width, parts), 8)
    reached = width if parts == 1 and window // 2 <= width else columns + window - 1
    grid, threads = (parts, ceil(height, rows), n), 32 * ceil(max(columns, reached), 32)
    gpu(f"dssim{window}", grid, (threads, 1, 1), a, b, maps, channels, height, width, rows, data_range)
    return maps


SIZES = [(1, 1), (1, 9), (2, 5), (7, 1), (8, 256), (5, 257), (9, 300), (17, 33), (40, 24), (3, 513)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_dssim_of_every_size(gpu: HostKernels, size: tuple[int, int]) -> None:
    a, b = noise(2, 2, *size, seed=1), noise(2, 2, *size, seed=2)
    np.testing.assert_allclose(run_dssim(gpu, a, b), dssim_map(a, b), atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_dssim_of_photographs(gpu: HostKernels, channels: int) -> None:
    a, b = photographs(70, 120, channels)
    maps = run_dssim(gpu, a, b, rows=32)
    np.testing.assert_allclose(maps, dssim_map(a, b), atol=2e-5, rtol=0)
    # scikit-image itself, away from the border where it pads otherwise.
    _, ssim = skimage.metrics.structural_similarity(
        a[1].astype(np.float64), b[1].astype(np.float64), full=True, win_size=7, data_range=1, channel_axis=0
    )
    np.testing.assert_allclose(maps[1], (1 - ssim.mean(0)) / 2, atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11, 13, 15])
def test_dssim_of_every_window(gpu: HostKernels, window: int) -> None:
    a, b = (x[..., :41] for x in photographs(30, 44, 3, seed=window))
    # A small window averages away fewer of float32's roundings.
    atol = 2e-5 if window >= 7 else 6e-5
    np.testing.assert_allclose(run_dssim(gpu, a, b, window=window), dssim_map(a, b, window=window), atol=atol, rtol=0)


@pytest.mark.parametrize("data_range", [2.0, 255.0, 65535.0])
def test_dssim_of_other_ranges(gpu: HostKernels, data_range: float) -> None:
    a, b = (x * np.float32(data_range) for x in photographs(24, 40, 1))
    maps = run_dssim(gpu, a, b, data_range=data_range)
    np.testing.assert_allclose(maps, dssim_map(a, b, data_range=data_range), atol=2e-5, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_dssim_keeps_its_digits_where_images_are_flat(gpu: HostKernels, level: float) -> None:
    flat = np.full((1, 1, 40, 60), level, np.float32)
    marked = flat + np.float32(0.01) * noise(*flat.shape, seed=3)
    for a, b in ((flat, marked), (marked, flat + np.float32(0.3))):
        np.testing.assert_allclose(run_dssim(gpu, a, b), dssim_map(a, b), atol=PROMISED, rtol=0)
    assert np.all(run_dssim(gpu, marked, marked) == 0)


@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_dssim_does_not_depend_on_the_rows_of_a_block(gpu: HostKernels, rows: int) -> None:
    a, b = noise(1, 2, 61, 50, seed=1), noise(1, 2, 61, 50, seed=2)
    np.testing.assert_array_equal(run_dssim(gpu, a, b, rows=rows), run_dssim(gpu, a, b, rows=64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (20, 30), (39, 299)])
def test_a_spoilt_pixel_spoils_its_windows_and_no_other(gpu: HostKernels, value: float, place: tuple[int, int]) -> None:
    a, b = noise(2, 2, 40, 300, seed=1), noise(2, 2, 40, 300, seed=2)
    sound = run_dssim(gpu, a, b)
    a[1, 1][place] = value
    maps = run_dssim(gpu, a, b)
    spoilt = np.zeros((2, 40, 300), bool)
    y, x = place
    spoilt[1, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = True
    np.testing.assert_array_equal(np.isnan(maps), spoilt)
    np.testing.assert_array_equal(maps[~spoilt], sound[~spoilt])


# Filters


def run_uniform(gpu: HostKernels, maps: Maps, size: int, *, rows: int = 16) -> Maps:
    n, height, width = maps.shape
    filtered = empty(*maps.shape)
    grid = (ceil(width, 256), ceil(height, rows), n)
    gpu("uniform", grid, (256, 1, 1), maps, filtered, height, width, size, rows)
    return filtered


def run_gaussian(gpu: HostKernels, maps: Maps, sigma: float) -> Maps:
    n, height, width = maps.shape
    weights = gaussian_weights(sigma).astype(np.float32)
    filtered = empty(*maps.shape)
    grid = (ceil(width, 256), ceil(height, 8), n)
    gpu("gaussian", grid, (256, 1, 1), maps, filtered, height, width, weights, len(weights) // 2)
    return filtered


def run_opening(gpu: HostKernels, maps: Maps, size: int) -> Maps:
    n, height, width = maps.shape
    grid, block = (ceil(width, 32), ceil(height, 8), n), (32, 8, 1)
    filtered, between = empty(*maps.shape), empty(*maps.shape)
    if size == 3:
        gpu("opening3", grid, block, maps, filtered, height, width)
    else:
        gpu("erode", grid, block, maps, between, height, width, size)
        gpu("dilate", grid, block, between, filtered, height, width, size)
    return filtered


@pytest.mark.parametrize("size", [2, 3, 7, 8, 31, 32, 64, 256])
@pytest.mark.parametrize("shape", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_uniform(gpu: HostKernels, shape: tuple[int, int], size: int) -> None:
    maps = noise(2, *shape, seed=size)
    expected = ndimage.uniform_filter(maps.astype(np.float64), (0, size, size), mode="reflect")
    np.testing.assert_allclose(run_uniform(gpu, maps, size), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("rows", [8, 32, 64])
def test_uniform_of_a_real_map(gpu: HostKernels, rows: int) -> None:
    maps = photographs(130, 270, 1)[0][:, 0]
    expected = ndimage.uniform_filter(maps.astype(np.float64), (0, 32, 32), mode="reflect")
    np.testing.assert_allclose(run_uniform(gpu, maps, 32, rows=rows), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.5, 4, 32])
@pytest.mark.parametrize("shape", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_gaussian(gpu: HostKernels, shape: tuple[int, int], sigma: float) -> None:
    maps = noise(2, *shape, seed=5)
    expected = ndimage.gaussian_filter(maps.astype(np.float64), (0, sigma, sigma), mode="reflect", truncate=4)
    np.testing.assert_allclose(run_gaussian(gpu, maps, sigma), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [3, 4, 5, 9, 16])
@pytest.mark.parametrize("shape", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_opening(gpu: HostKernels, shape: tuple[int, int], size: int) -> None:
    maps = noise(2, *shape, seed=6)
    opened = run_opening(gpu, maps, size)
    if size % 2:
        expected = [ndimage.grey_opening(plane, footprint=ellipse(size), mode="reflect") for plane in maps]
        np.testing.assert_array_equal(opened, np.stack(expected))
    np.testing.assert_array_equal(opened, opening(maps, size))


def test_every_opening_of_size_3_is_the_same(gpu: HostKernels) -> None:
    maps = photographs(60, 77, 1)[0][:, 0].copy()
    between, opened = empty(*maps.shape), empty(*maps.shape)
    grid = (3, 8, 2)
    gpu("erode", grid, (32, 8, 1), maps, between, 60, 77, 3)
    gpu("dilate", grid, (32, 8, 1), between, opened, 60, 77, 3)
    np.testing.assert_array_equal(run_opening(gpu, maps, 3), opened)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("run", [lambda g, m: run_uniform(g, m, 9), lambda g, m: run_gaussian(g, m, 1.5)])
def test_a_spoilt_pixel_spoils_at_least_its_windows(gpu: HostKernels, run: Any, value: float) -> None:
    maps = noise(3, 40, 50, seed=7)
    sound = run(gpu, maps)
    maps[1, 20, 30] = value
    filtered = run(gpu, maps)
    assert not np.isfinite(filtered[1, 16:25, 26:35]).any()
    # Pictures of a batch, and what lies before the window, have nothing to do with it.
    np.testing.assert_array_equal(filtered[[0, 2]], sound[[0, 2]])
    np.testing.assert_array_equal(filtered[1, :5], sound[1, :5])


@pytest.mark.parametrize("size", [3, 5])
def test_opening_spreads_nan_as_numpy_does(gpu: HostKernels, size: int) -> None:
    maps = noise(1, 20, 40, seed=8)
    maps[0, 10, 33] = np.nan
    maps[0, 3, 3] = np.inf
    opened = run_opening(gpu, maps, size)
    assert np.isnan(opened).any()
    np.testing.assert_array_equal(opened, opening(maps, size))


# Scores


def finish(gpu: HostKernels, partial: Maps, pixels: int, mean: int) -> Maps:
    n, blocks = partial.shape
    scores = empty(n)
    gpu("reduce_finish", (n, 1, 1), (256, 1, 1), partial, blocks, float(pixels), mean, scores)
    return scores


def reduced(maps: Maps, margin: int, mean: int) -> NDArray[np.float64]:
    inner = maps[:, margin : maps.shape[1] - margin, margin : maps.shape[2] - margin].astype(np.float64)
    return inner.mean((1, 2)) if mean else inner.max((1, 2))


@pytest.mark.parametrize("mean", [0, 1], ids=["max", "mean"])
@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("blocks", [1, 5, 40])
@pytest.mark.parametrize("size", [(7, 7), (9, 300), (130, 64)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_scores(gpu: HostKernels, size: tuple[int, int], blocks: int, margin: int, mean: int) -> None:
    maps = noise(3, *size, seed=9) - 2  # all below zero, so that a maximum cannot come from fresh memory
    height, width = size
    partial = empty(3, blocks)
    gpu("reduce_partial", (blocks, 3, 1), (256, 1, 1), maps, height, width, partial, margin, mean)
    scores = finish(gpu, partial, (height - 2 * margin) * (width - 2 * margin), mean)
    np.testing.assert_allclose(scores, reduced(maps, margin, mean), rtol=2e-7 if mean else 0)


@pytest.mark.parametrize("mean", [0, 1], ids=["max", "mean"])
@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("size", [(7, 7), (40, 300), (64, 64)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_uniform_and_score_in_one_pass(gpu: HostKernels, size: tuple[int, int], margin: int, mean: int) -> None:
    maps = noise(2, *size, seed=10) - 2
    height, width = size
    grid = (ceil(width, 256), ceil(height, 16), 2)
    filtered, partial = empty(*maps.shape), empty(2, grid[0] * grid[1])
    gpu("uniform_reduce", grid, (256, 1, 1), maps, filtered, height, width, 8, 16, partial, margin, mean)
    np.testing.assert_array_equal(filtered, run_uniform(gpu, maps, 8))
    scores = finish(gpu, partial, (height - 2 * margin) * (width - 2 * margin), mean)
    np.testing.assert_allclose(scores, reduced(filtered, margin, mean), rtol=2e-7 if mean else 0)


@pytest.mark.parametrize("mean", [0, 1], ids=["max", "mean"])
@pytest.mark.parametrize("place", [(0, 0), (8, 100), (31, 299)])
def test_not_a_number_reaches_the_score(gpu: HostKernels, place: tuple[int, int], mean: int) -> None:
    maps = noise(3, 32, 300, seed=11)
    maps[1][place] = np.nan
    partial = empty(3, 4)
    gpu("reduce_partial", (4, 3, 1), (256, 1, 1), maps, 32, 300, partial, 0, mean)
    scores = finish(gpu, partial, 32 * 300, mean)
    assert np.isnan(scores).tolist() == [False, True, False]


def test_the_maximum_of_one_value_is_that_value(gpu: HostKernels) -> None:
    partial = np.array([[0.25], [0.5], [np.nextafter(np.float32(0.5), np.float32(1))], [np.inf]], np.float32)
    np.testing.assert_array_equal(finish(gpu, partial, 1, 0), partial[:, 0])


# Maps of several parts


@pytest.mark.parametrize(("size", "tile", "stride"), [((40, 70), 16, 9), ((16, 16), 16, 16), ((33, 100), 32, 32)])
def test_merging_tiles(gpu: HostKernels, size: tuple[int, int], tile: int, stride: int) -> None:
    origins = np.array(
        [(y, x) for y in tile_origins(size[0], tile, stride) for x in tile_origins(size[1], tile, stride)], np.int32
    )
    tiles = noise(len(origins), tile, tile, seed=12) - 2
    tiles[-1, 0, 0] = np.nan
    expected = np.full(size, -np.inf, np.float32)
    merge_maximum(expected, tiles, [(int(y), int(x)) for y, x in origins])
    merged = empty(*size)
    half = len(origins) // 2
    grid = (ceil(size[1], 32), ceil(size[0], 8), 1)
    for part in (slice(0, half), slice(half, None)):
        first = int(part.start == 0)
        some, where = np.ascontiguousarray(tiles[part]), np.ascontiguousarray(origins[part])
        gpu("merge_maximum", grid, (32, 8, 1), some, where, len(some), tile, merged, *size, first)
    np.testing.assert_array_equal(merged, expected)
    assert np.isnan(merged).sum() == 1


def run_copy(gpu: HostKernels, maps: Maps) -> Maps:
    copied = empty(*maps.shape)
    gpu("copy_maps", (ceil(maps.size, 256), 1, 1), (256, 1, 1), maps, copied, maps.size)
    return copied


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 37, 90), (1, 16, 16)])
def test_a_copy_is_bit_for_bit(gpu: HostKernels, shape: tuple[int, ...]) -> None:
    maps = noise(*shape, seed=13) - 0.5
    maps.flat[-1] = np.nan
    np.testing.assert_array_equal(run_copy(gpu, maps).view(np.uint32), maps.view(np.uint32))


# Preprocessing


def constants(spec: InputSpec) -> list[float]:
    mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
    scales = [spec.scale / s for s in std] + [0.0] * (3 - spec.channels)
    return [*scales, *(-m / s for m, s in zip(mean, std, strict=True)), *[0.0] * (3 - spec.channels)]


def run_preprocess(gpu: HostKernels, frames: NDArray[np.uint8], spec: InputSpec, *, nv12: bool = False) -> Maps:
    """``frames``: (n, H, W), (n, H, W, C) or with ``nv12`` (n, 3 H / 2, W), any stride between frames and rows."""
    n, rows, source_width = frames.shape[:3]
    out = empty(n, *spec.shape)
    size = (rows * 2 // 3, source_width) if nv12 else (rows, source_width, 1 if frames.ndim == 3 else frames.shape[3])
    gpu(
        "preprocess_nv12" if nv12 else "preprocess",
        (ceil(spec.width, 32), ceil(spec.height, 8), n),
        (32, 8, 1),
        *(frames, frames.strides[0], frames.strides[1], *size),
        *(out, spec.height, spec.width, spec.channels, int(spec.color == "rgb")),
        *constants(spec),
    )
    return out


def run_tiles(
    gpu: HostKernels, frame: NDArray[np.uint8], origins: Sequence[tuple[int, int]], spec: InputSpec, *, nv12: bool
) -> Maps:
    """``frame``: (H, W), (H, W, C) or with ``nv12`` (3 H / 2, W), any stride between rows."""
    out = empty(len(origins), *spec.shape)
    gpu(
        "preprocess_tiles_nv12" if nv12 else "preprocess_tiles",
        (ceil(spec.width, 32), ceil(spec.height, 8), len(origins)),
        (32, 8, 1),
        *(frame, frame.strides[0], frame.shape[0] * 2 // 3 if nv12 else frame[0, 0].size, np.array(origins, np.int32)),
        *(out, spec.height, spec.channels, int(spec.color == "rgb")),
        *constants(spec),
    )
    return out


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SPECS = {
    "rgb": InputSpec(height=24, width=40, channels=3, color="rgb", **IMAGENET),
    "bgr": InputSpec(height=24, width=40, channels=3, color="bgr"),
    "gray": InputSpec(height=24, width=40, channels=1, color="gray", mean=(0.5,), std=(0.25,)),
}
FRAMES = [(24, 40), (48, 80), (1, 1), (5, 3), (31, 200), (100, 33), (8, 40), (24, 39), (130, 170)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", FRAMES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_preprocessing(gpu: HostKernels, size: tuple[int, int], channels: int, spec: InputSpec) -> None:
    frames = np.random.default_rng(14).integers(0, 256, (2, *size, channels), np.uint8)
    expected = empty(2, *spec.shape)
    Preprocessor(spec, batch=2)(list(frames), expected)
    got = run_preprocess(gpu, frames, spec)
    # One grey level where OpenCV's build computes in another way than its portable code, and rarely.
    step = spec.scale / min(spec.std or (1.0,))
    np.testing.assert_allclose(got, expected, atol=1.001 * step, rtol=0)
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.05


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_preprocessing_photographs_with_padded_rows(gpu: HostKernels, spec: InputSpec) -> None:
    wide = np.ascontiguousarray(skimage.data.astronaut()[:300, :400, ::-1])
    frames = wide[None, 7:250, 11:331]
    assert not frames.flags.c_contiguous
    expected = empty(1, *spec.shape)
    Preprocessor(spec, batch=1)([frames[0]], expected)
    got = run_preprocess(gpu, frames, spec)
    np.testing.assert_allclose(got, expected, atol=1.001 * spec.scale / min(spec.std or (1.0,)), rtol=0)
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.05
    # Against the exact bilinear value: rounded once, in 2048ths.
    exact = cv2.resize(frames[0].astype(np.float64), (spec.width, spec.height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(conform(frames[0], SPECS["bgr"]) - exact).max() < 1


def test_values_without_a_resize_are_those_of_the_tables(gpu: HostKernels) -> None:
    spec = InputSpec(height=16, width=16, channels=3, color="rgb", **IMAGENET)
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    got = run_preprocess(gpu, frames, spec)
    np.testing.assert_allclose(got[0].reshape(3, 256), value_tables(spec), atol=1e-6, rtol=0)


def nv12_frames(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noise over all 256 values, so that luma and chroma leave their limited ranges too, in padded rows."""
    planes = np.random.default_rng(15).integers(0, 256, (n, height * 3 // 2, width + 6), np.uint8)
    return planes[:, :, :width]


def bgr_from_nv12(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_YUV2BGR_NV12), np.uint8)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [(24, 40), (2, 2), (62, 90), (96, 34)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_nv12_is_opencvs_conversion_and_then_the_same(gpu: HostKernels, size: tuple[int, int], spec: InputSpec) -> None:
    """The conversion is the fixed-point arithmetic of OpenCV's portable code, and the resize as above.

    So a value differs only where OpenCV's build computes either in another way: then by one grey level, and rarely.
    """
    frames = nv12_frames(2, *size)
    expected = empty(2, *spec.shape)
    Preprocessor(spec, batch=2)([bgr_from_nv12(frame) for frame in frames], expected)
    got = run_preprocess(gpu, frames, spec, nv12=True)
    np.testing.assert_allclose(got, expected, atol=1.001 * spec.scale / min(spec.std or (1.0,)), rtol=0)
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.05


def test_nv12_is_limited_range_bt601(gpu: HostKernels) -> None:
    """Against the standard's formula in float64: rounded once, and the coefficients to 2^-20."""
    height, width = 96, 64
    spec = InputSpec(height=height, width=width, channels=3, color="rgb", scale=1.0)
    frame = nv12_frames(1, height, width)[0].astype(np.float64)
    luma = 1.164 * (frame[:height].clip(16) - 16)
    u, v = (frame[height:, part::2].repeat(2, axis=0).repeat(2, axis=1) - 128 for part in (0, 1))
    exact = np.stack([luma + 1.596 * v, luma - 0.813 * v - 0.391 * u, luma + 2.018 * u]).clip(0, 255)
    got = run_preprocess(gpu, nv12_frames(1, height, width), spec, nv12=True)[0]
    np.testing.assert_allclose(got, exact, atol=0.501, rtol=0)


@pytest.mark.parametrize("source", ["grey", "bgr", "nv12"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_tiles(gpu: HostKernels, color: Any, source: str) -> None:
    tiling = Tiling(tile=24, stride=17)
    spec = InputSpec(
        height=24, width=24, channels=1 if color == "gray" else 3, color=color, resize="tile", tiling=tiling
    )
    channels = 1 if source == "grey" else 3
    frame = np.ascontiguousarray(skimage.data.astronaut()[:70, :, :channels])[:, 100:190]
    if source == "nv12":
        frame = nv12_frames(1, 70, 90)[0]
    tiles, origins = cut_tiles(bgr_from_nv12(frame) if source == "nv12" else frame, tiling)
    assert any(row % 2 and column % 2 for row, column in origins), "some begin between two pixels of the same chroma"
    expected = empty(len(tiles), *spec.shape)
    Preprocessor(spec, batch=len(tiles))(tiles, expected)
    got = run_tiles(gpu, frame, origins, spec, nv12=source == "nv12")
    # A colour converted by OpenCV, grey from BGR or BGR from NV12, may be one level off where its build is another.
    atol = 1.001 * spec.scale if source == "nv12" else 1e-6
    np.testing.assert_allclose(got, expected, atol=atol, rtol=0)
    assert np.mean(np.abs(got - expected) > 1e-6) < 0.05


# The kernels as programs


def planned() -> Iterator[Launch]:
    """What an inspector on a GPU launches: of every plan that it can make, at least one."""
    spec = InputSpec(height=24, width=32, channels=3, color="rgb")
    for nv12 in (False, True):
        picture = Picture(0, 48, 64, 1 if nv12 else 3, nv12)
        yield preprocess_launch(spec, picture, 0)
        yield tiles_launch(spec, picture, 0, 1, 0)
    filters = [(), (Gaussian(sigma=1), Opening(size=3), Opening(size=5), Uniform(size=4)), (Uniform(size=4), Opening())]
    scores = [ScoreSpec(comparison=ReadyMap(), filters=steps) for steps in filters]
    scores += [ScoreSpec(comparison=Dssim(window=window)) for window in range(3, 16, 2)]
    for score in scores:
        outputs = [spec.shape] * 2 if isinstance(score.comparison, Dssim) else [spec.shape[1:]]
        yield from ScorePlan(score, spec.shape, 1, outputs, 8).launches([-1, -2], 1, -3, -4, 0)
    yield merge_launch(0, 0, 1, 24, 0, (48, 64), first=True)


def test_every_kernel_is_launched_by_the_product_and_every_launch_has_its_kernel() -> None:
    """A kernel that no inspector launches gives no user anything: wire it in, or delete it."""
    sources = {(source.stem, name) for source in KERNELS.glob("*.cu") for name in load_build().kernel_names(source)}
    assert {(launch.family, launch.kernel) for launch in planned()} == sources


def test_launches_pass_what_their_kernels_take(gpu: HostKernels) -> None:
    for launch in planned():
        sizes = (ctypes.c_int * 64)()
        number = gpu.libraries[launch.family].host_params(launch.kernel.encode(), sizes, 64)
        assert [struct.calcsize(letter) for letter in launch.signature] == list(sizes[:number]), launch.kernel
        assert len(launch.arguments) == number


def test_a_library_refuses_what_it_cannot_launch(gpu: HostKernels) -> None:
    library = gpu.libraries["filters"]
    assert (library.host_has(b"uniform"), library.host_has(b"unknown")) == (1, 0)
    sizes = (ctypes.c_int * 8)()
    assert library.host_params(b"uniform", sizes, 8) == 6
    assert list(sizes)[:6] == [8, 8, 4, 4, 4, 4]
    assert library.host_params(b"unknown", sizes, 8) == library.host_params(b"uniform", sizes, 5) == -1
    values = noise(4)
    assert gpu.run("copy_maps", (1, 1, 1), (256, 1, 1), values, empty(4), 4, shared=16) == 1


WRONG = """
extern "C" __global__ void quarrel(float *x) {
  if (threadIdx.x < 5) __syncthreads();
  else {
    x[threadIdx.x] = 1;
    __syncthreads();
  }
}
extern "C" __global__ void no_barrier(const float *x, float *y) {
  __shared__ float all[64];
  all[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = all[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void beyond(float *x) { x[threadIdx.x + 1] = 0; }
"""


def test_the_host_finds_what_is_wrong_with_a_kernel(tmp_path: Path) -> None:
    build = load_build()
    if build.compiler() is None:
        pytest.skip("g++, which compiles the kernels for the host, is not installed")
    source = tmp_path / "wrong.cu"
    source.write_text(WRONG)
    gpu = HostKernels({"wrong": build.library(source, tmp_path)})
    assert gpu.run("quarrel", (1, 1, 1), (64, 1, 1), noise(64)) == 1
    x, results = noise(64), []
    for order in (0, 1):
        gpu.libraries["wrong"].host_reverse(order)
        results.append(empty(64))
        gpu("no_barrier", (1, 1, 1), (64, 1, 1), x, results[-1])
    assert (results[0] != results[1]).any()
    code = f"""
import ctypes, numpy as np
library = ctypes.CDLL({str(build.library(source, tmp_path, sanitize=True))!r})
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
address = ctypes.c_void_p(libc.malloc(64 * 4))
one = ctypes.c_uint * 3
library.host_launch(b"beyond", one(1, 1, 1), one(64, 1, 1), 0, (ctypes.c_void_p * 1)(ctypes.addressof(address)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=sanitizer_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def sanitizer_environment() -> dict[str, str]:
    """Python itself is not watched, so the sanitizer has to be loaded before everything else."""
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    return {
        **os.environ,
        "ADEDGE_SANITIZED_KERNELS": "1",
        "LD_PRELOAD": runtime.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }


def everything(gpu: HostKernels) -> list[NDArray[Any]]:
    """A result of every kernel, with edges that do not fit their blocks."""
    a, b = photographs(29, 267, 3)
    maps = a[:, 0].copy()
    results: list[NDArray[Any]] = [run_dssim(gpu, a, b, rows=8), run_dssim(gpu, a[..., :99], b[..., :99], window=3)]
    results.append(run_dssim(gpu, a, b, window=15))
    results += [run_uniform(gpu, maps, size) for size in (2, 33)]
    results += [run_gaussian(gpu, maps, sigma) for sigma in (0.7, 9)]
    results += [run_opening(gpu, maps, size) for size in (3, 4)]
    partial, filtered = empty(2, 4), empty(*maps.shape)
    gpu("uniform_reduce", (2, 2, 2), (256, 1, 1), maps, filtered, 29, 267, 5, 16, partial, 2, 0)
    results += [partial, filtered]
    for mean in (0, 1):
        partial = empty(2, 3)
        gpu("reduce_partial", (3, 2, 1), (256, 1, 1), maps, 29, 267, partial, 2, mean)
        results += [partial, finish(gpu, partial, 25 * 263, mean)]
    frames = (maps[..., None] * 255).astype(np.uint8).repeat(3, axis=3)
    results += [run_preprocess(gpu, frames, spec) for spec in SPECS.values()]
    results += [run_preprocess(gpu, nv12_frames(2, 30, 50), spec, nv12=True) for spec in SPECS.values()]
    square = InputSpec(height=24, width=24, channels=3, color="rgb")
    for frame, nv12 in ((frames[0], False), (nv12_frames(1, 30, 50)[0], True)):
        results.append(run_tiles(gpu, frame, [(0, 0), (5, 26)], square, nv12=nv12))
    results.append(run_copy(gpu, maps))
    return results


def test_no_result_depends_on_the_order_of_threads_and_blocks(gpu: HostKernels) -> None:
    expected = everything(gpu)
    try:
        for library in gpu.libraries.values():
            library.host_reverse(1)
        for result, forward in zip(everything(gpu), expected, strict=True):
            np.testing.assert_array_equal(result, forward)
    finally:
        for library in gpu.libraries.values():
            library.host_reverse(0)


@pytest.mark.skipif(SANITIZED, reason="these are the tests that run under sanitizers")
def test_kernels_keep_to_their_memory(tmp_path: Path) -> None:
    """Run the tests of this file again on kernels that address and undefined-behaviour sanitizers watch."""
    if load_build().compiler() is None:
        pytest.skip("g++, which compiles the kernels for the host, is not installed")
    chosen = "depends_on_the_order or one_pass or of_every_size or merging or nv12 or test_tiles or a_copy"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, __file__],
        env=sanitizer_environment(),
        cwd=HOST_CUDA.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
