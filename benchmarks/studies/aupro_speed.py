"""AUPRO of 100 maps of 256 x 256 against a loop over thresholds that labels regions with SciPy, as is common.

    python -m adedge.benchmarks.studies.aupro_speed [--maps 100]

The maps have 256 different values and the loop visits each of them, so that both must give the same area. (Public
implementations visit some 200 to 1000 thresholds, and are inexact on maps of any value.) adedge is also timed on the
same maps before they were rounded; the slower of its two times counts. Promised: at least 5 times faster, equal within
1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import MissingDependency
from adedge.metrics import aupro

RATIO_PROMISED = 5.0
DIFFERENCE_PROMISED = 1e-4
SIDE = 256
LEVELS = 256
MAX_FPR = 0.3
ROUNDS = 5

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def synthetic_maps(count: int, seed: int = 0) -> tuple[Masks, Maps]:
    """Masks with up to three ellipses each, and smooth noise that is brighter there: both (count, SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, SIDE, SIDE), bool)
    maps = np.empty(masks.shape, np.float32)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        for _ in range(number % 4):
            (centre_y, centre_x), (radius_y, radius_x) = rng.integers(20, SIDE - 20, 2), rng.integers(4, 20, 2)
            mask |= ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 <= 1
        noise = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), dtype=np.float32), (0, 0), 4)
        values[:] = noise / noise.std() + 1.5 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)
    return masks, maps


def loop_over_thresholds(masks: Masks, maps: Maps) -> float:
    """AUPRO with one pass over all pixels, and all regions labelled anew, for each of the maps' values."""
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise MissingDependency("scipy", "dev", "the comparison") from error
    good = ~masks
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        each = []
        for mask, inside in zip(masks, found, strict=True):
            regions, count = label(mask, structure=np.ones((3, 3)))
            each += [inside[regions == number].mean() for number in range(1, count + 1)]
        rates.append((found & good).sum() / good.sum())
        overlaps.append(float(np.mean(each)))
    inside = int(np.searchsorted(rates, MAX_FPR))
    x = np.append(rates[:inside], MAX_FPR)
    y = np.append(overlaps[:inside], np.interp(MAX_FPR, rates, overlaps))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / MAX_FPR)


def main() -> None:
    """Print a Markdown table; exit with 1 where the ratio or the difference breaks the promise."""
    parser = argparse.ArgumentParser(description="Time AUPRO against a loop over thresholds.")
    parser.add_argument("--maps", type=int, default=100)
    count = parser.parse_args().maps
    masks, smooth = synthetic_maps(count)
    low, high = smooth.min(), smooth.max()
    maps = np.round((smooth - low) / (high - low) * (LEVELS - 1)).astype(np.float32)

    def median_s(values: Maps) -> float:
        samples = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            aupro(masks, values, MAX_FPR)
            samples.append(time.perf_counter() - started)
        return statistics.median(samples)

    ours = {f"adedge, {LEVELS} values": median_s(maps), "adedge, any value": median_s(smooth)}
    started = time.perf_counter()
    expected = loop_over_thresholds(masks, maps)
    loop_s = time.perf_counter() - started
    area = aupro(masks, maps, MAX_FPR)
    ratio, difference = loop_s / max(ours.values()), abs(area - expected)
    rows = [
        f"AUPRO up to {MAX_FPR} of {count} maps of {SIDE}x{SIDE} float32; one thread; adedge: median of {ROUNDS}",
        "",
        "| AUPRO | seconds | area |",
        "| --- | ---: | ---: |",
        f"| loop, {len(np.unique(maps))} thresholds, SciPy | {loop_s:.2f} | {expected:.6f} |",
        *(
            f"| {name} | {s:.3f} | {aupro(masks, v):.6f} |"
            for (name, s), v in zip(ours.items(), (maps, smooth), strict=True)
        ),
        "",
        f"ratio {ratio:.0f} (promised: at least {RATIO_PROMISED:.0f}), difference {difference:.1e} "
        f"(promised: at most {DIFFERENCE_PROMISED:g})",
    ]
    sys.stdout.write("\n".join(rows) + "\n")
    sys.exit(0 if ratio >= RATIO_PROMISED and difference <= DIFFERENCE_PROMISED else 1)


if __name__ == "__main__":
    main()
