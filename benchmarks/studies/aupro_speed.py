"""Times AUPRO of 100 maps of 256 x 256 against the common loop over thresholds that labels regions with SciPy.

    python -m adedge.benchmarks.studies.aupro_speed [--maps 100]

The maps have 256 distinct values and the loop visits each of them, so both must compute the same area. (Public
implementations visit some 200 to 1000 thresholds and are inexact on arbitrary maps.) adedge is also timed on the same
maps before rounding; the slower of its two times counts. Goals: at least 5 times faster, equal within 1e-4.
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

MIN_RATIO = 5.0
MAX_DIFFERENCE = 1e-4
SIDE = 256
LEVELS = 256
MAX_FPR = 0.3
ROUNDS = 5

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def synthetic_maps(count: int, seed: int = 0) -> tuple[Masks, Maps]:
    """Masks with up to three ellipses each, and maps of smooth noise, brighter inside: both (count, SIDE, SIDE)."""
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
    """AUPRO with one pass over all pixels per distinct map value, labelling all regions each time."""
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise MissingDependency("scipy", "dev", "the comparison") from error
    good = ~masks
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        positive = maps >= threshold
        region_overlaps = []
        for mask, detection in zip(masks, positive, strict=True):
            regions, count = label(mask, structure=np.ones((3, 3)))
            region_overlaps += [detection[regions == number].mean() for number in range(1, count + 1)]
        rates.append((positive & good).sum() / good.sum())
        overlaps.append(float(np.mean(region_overlaps)))
    end = int(np.searchsorted(rates, MAX_FPR))
    x = np.append(rates[:end], MAX_FPR)
    y = np.append(overlaps[:end], np.interp(MAX_FPR, rates, overlaps))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / MAX_FPR)


def main() -> None:
    """Print a Markdown table; exit with 1 if a goal is missed."""
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
        f"ratio {ratio:.0f} (goal: at least {MIN_RATIO:.0f}), difference {difference:.1e} "
        f"(goal: at most {MAX_DIFFERENCE:g})",
    ]
    sys.stdout.write("\n".join(rows) + "\n")
    sys.exit(0 if ratio >= MIN_RATIO and difference <= MAX_DIFFERENCE else 1)


if __name__ == "__main__":
    main()
