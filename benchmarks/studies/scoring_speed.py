"""Times scoring on a CPU against scikit-image and SciPy: DSSIM 7x7 on 3x256x256 float32, uniform 32, maximum.

    python -m adedge.benchmarks.studies.scoring_speed [--rounds 40]

Both process the same two images in turns; medians are compared. Before timing, maps and scores are compared with those
of scikit-image in float64. Goal: at least 5 times faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.scoring import Scorer
from adedge.specs import Dssim, ScoreSpec, Uniform

MIN_RATIO = 5.0
SHAPE = (3, 256, 256)
THREADS = 2
WARM_UP = 3


def compare(rounds: int) -> dict[str, list[float]]:
    """Time "adedge" and "peer" (scikit-image and SciPy) in turns, for ``rounds`` rounds; samples in milliseconds."""
    try:
        from scipy.ndimage import uniform_filter
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingDependency("scikit-image", "demo", "the comparison") from error
    random = np.random.default_rng(0)
    a = random.random((1, *SHAPE), dtype=np.float32)
    b = np.clip(a + 0.1 * random.standard_normal(a.shape, dtype=np.float32), 0, 1)
    scorer = Scorer(ScoreSpec(comparison=Dssim(), filters=(Uniform(size=32),)), SHAPE, batch=1)

    def peer(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], float]:
        _, ssim = structural_similarity(x, y, full=True, win_size=7, data_range=1, channel_axis=0)
        filtered = uniform_filter((1 - ssim.mean(axis=0)) / 2, 32)
        return filtered, float(filtered.max())

    maps, scores = scorer((a, b))
    expected_map, expected_score = peer(a[0].astype(np.float64), b[0].astype(np.float64))
    if abs(maps[0] - expected_map).max() > 1e-4 or abs(scores[0] - expected_score) > 1e-4:
        raise EngineError("the maps of adedge and scikit-image differ, so they are not timed")

    samples: dict[str, list[float]] = {"adedge": [], "peer": []}
    runs: dict[str, Callable[[], object]] = {"adedge": lambda: scorer((a, b)), "peer": lambda: peer(a[0], b[0])}
    for turn in range(WARM_UP + rounds):
        for name, run in runs.items():
            started = time.perf_counter_ns()
            run()
            if turn >= WARM_UP:
                samples[name].append((time.perf_counter_ns() - started) / 1e6)
    return samples


def main() -> None:
    """Print a Markdown table; exit with 1 if the ratio misses the goal."""
    parser = argparse.ArgumentParser(description="Time CPU scoring against scikit-image and SciPy.")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    cv2.setNumThreads(THREADS)
    samples = compare(options.rounds)
    ours, theirs = statistics.median(samples["adedge"]), statistics.median(samples["peer"])
    rows = [
        f"DSSIM 7x7 of 3x256x256 float32, uniform 32, max; {options.rounds} rounds; OpenCV {cv2.__version__} with "
        f"{THREADS} threads allowed, scikit-image and SciPy use one",
        "",
        "| scoring | median ms | fastest ms |",
        "| --- | ---: | ---: |",
        f"| adedge.runtime.scoring | {ours:.2f} | {min(samples['adedge']):.2f} |",
        f"| scikit-image + SciPy | {theirs:.2f} | {min(samples['peer']):.2f} |",
        "",
        f"ratio {theirs / ours:.1f} (goal: at least {MIN_RATIO:.0f})",
    ]
    sys.stdout.write("\n".join(rows) + "\n")
    sys.exit(0 if theirs / ours >= MIN_RATIO else 1)


if __name__ == "__main__":
    main()
