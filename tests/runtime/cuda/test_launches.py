"""Launches as they are planned, and what they compute through pycuda, against the reference over whole maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adedge.errors import DataError
from adedge.runtime.cuda.driver import Gpu, Launch, Resources, load_cuda
from adedge.runtime.cuda.kernel_cache import Compiler
from adedge.runtime.cuda.launches import dssim_launch
from adedge.scoring import dssim_map
from adedge.specs import Dssim

pytestmark = pytest.mark.usefixtures("pycuda")

Run = Callable[[Callable[..., Sequence[Launch]], Sequence[np.ndarray], tuple[int, ...]], np.ndarray]


@pytest.fixture
def gpu(driver: Any, host_compiler: Compiler, tmp_path: Path) -> Iterator[Gpu]:
    gpu = Gpu(load_cuda("a test"), compiler=host_compiler, cache=tmp_path)
    yield gpu
    gpu.close()


@pytest.fixture
def run(gpu: Gpu) -> Run:
    """Uploads arrays, executes the launches planned for their addresses and the result's, downloads the result."""

    def execute(
        plan: Callable[..., Sequence[Launch]], arrays: Sequence[np.ndarray], shape: tuple[int, ...]
    ) -> np.ndarray:
        result = np.zeros(shape, np.float32)
        with gpu.current(), Resources(gpu) as resources:
            stream = gpu.stream()
            addresses = []
            for array in arrays:
                addresses.append(resources.device(max(array.nbytes, 4), "an input"))
                gpu.cuda.memcpy_htod(addresses[-1], np.ascontiguousarray(array))
            target = resources.device(result.nbytes, "a result")
            for launch in plan(*addresses, target):
                gpu.launch(launch, stream)
            gpu.wait(stream)
            gpu.cuda.memcpy_dtoh(result, target)
            resources.close()
        return result

    return execute


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 3, 24, 33), 7), ((1, 1, 9, 300), 11), ((3, 2, 1, 1), 3), ((1, 3, 70, 5), 15)]
)
def test_dssim_is_that_of_the_reference(run: Run, shape: tuple[int, int, int, int], window: int) -> None:
    rng = np.random.default_rng(sum(shape))
    a, b = (rng.random(shape).astype(np.float32) for _ in range(2))
    comparison = Dssim(window=window)
    got = run(lambda x, y, maps: [dssim_launch(comparison, x, y, maps, shape, 8)], (a, b), (shape[0], *shape[2:]))
    np.testing.assert_allclose(got, dssim_map(a, b, window=window), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "multiprocessors", "grid", "block", "rows"),
    [
        ((256, 3, 256, 256), 132, (1, 4, 256), 256, 64),
        ((1, 3, 256, 256), 132, (1, 32, 1), 256, 8),
        ((1, 3, 1080, 1920), 8, (8, 17, 1), 256, 64),
        ((16, 1, 250, 257), 16, (2, 4, 16), 160, 64),
        ((1, 1, 256, 256), 4, (1, 8, 1), 256, 32),
        ((1, 1, 4, 2), 4, (1, 1, 1), 32, 8),
    ],
)
def test_rows_a_block_follow_the_work_and_the_device(
    shape: tuple[int, int, int, int], multiprocessors: int, grid: tuple[int, ...], block: int, rows: int
) -> None:
    launch = dssim_launch(Dssim(), 1, 2, 3, shape, multiprocessors)
    assert (launch.grid, launch.block, launch.arguments[6]) == (grid, (block, 1, 1), rows)
    assert launch.arguments == (1, 2, 3, *shape[1:], rows, 1.0)


def test_a_window_without_a_kernel_is_refused() -> None:
    with pytest.raises(DataError, match="windows of 3 to 15 pixels, not 17"):
        dssim_launch(Dssim(window=17), 0, 0, 0, (1, 1, 8, 8), 8)
