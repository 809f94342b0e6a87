"""Times the kernels and the frame loop on an NVIDIA GPU, after comparing every kernel with its reference.

    python -m adedge.benchmarks.gpu [--output gpu.json] [--rounds 50] [--batch 256]

One call measures everything that the machine supports, and reports what it left out and why. Kernels are launched
through the driver API (ctypes on libcuda), which requires neither pycuda nor TensorRT; the frame loop requires pycuda.
Each kernel's complete result is first compared with `adedge.scoring` or OpenCV; a kernel that differs is reported, but
not timed. Times are medians of CUDA events around a series of launches that cycles through several buffers, together
larger than the GPU's cache. The floor of a kernel is the time for its compulsory memory traffic at the bandwidth of a
device copy, measured on the same GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.benchmarks.cuda_device import Device
from adedge.benchmarks.machine import machine_facts
from adedge.errors import AdedgeError, EngineError, MissingDependency
from adedge.runtime.cuda.driver import Gpu, Resources, load_cuda
from adedge.runtime.cuda.inspector import CudaInspector
from adedge.runtime.cuda.launches import Picture, merge_launch, preprocess_launch, tiles_launch
from adedge.runtime.cuda.score_plan import ScorePlan
from adedge.runtime.preprocess import Preprocessor
from adedge.runtime.sources import Frame
from adedge.runtime.tiling import cut_tiles, merge_maximum
from adedge.scoring import maps_and_scores
from adedge.specs import Dssim, Gaussian, InputSpec, Opening, ReadyMap, ScoreSpec, Tiling, Uniform

MAX_FLOOR_RATIO, MAX_BATCH_ONE_US, MIN_SPEEDUP, MAX_LOOP_US = 2.0, 25.0, 3.0, 60.0
"""Goals: twice the floor at batch 256; 25 us at batch 1; 3 times as fast as PyTorch; 60 us of overhead per frame."""

CACHE_BYTES = 256 << 20  # total size of the buffers that a measurement cycles through: more than any GPU's cache


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement: the samples, their median, and the floor set by the compulsory memory traffic."""

    name: str
    microseconds: float
    samples: tuple[float, ...]
    floor_microseconds: float | None = None
    promised: str = ""
    kept: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """A comparison of a complete result with its reference: the largest and the allowed difference."""

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.difference <= self.allowed


SCORE = ScoreSpec(comparison=Dssim(window=7), filters=(Uniform(size=32),), reduce="max")
SHAPE = (3, 256, 256)
NETWORK_INPUT = InputSpec(
    height=256, width=256, channels=3, color="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def pictures(n: int, seed: int) -> NDArray[np.float32]:
    """Smooth noise from 0 to 1, float32 (n, *SHAPE), whose windows differ in mean and variance."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, SHAPE[0], SHAPE[1] // 8, SHAPE[2] // 8), np.float32)
    smooth = coarse.repeat(8, axis=2).repeat(8, axis=3)
    noisy: NDArray[np.float32] = (0.8 * smooth + 0.2 * rng.random(smooth.shape, np.float32)).astype(np.float32)
    return noisy


CHECKED: dict[str, ScoreSpec] = {
    "DSSIM 3, mean": ScoreSpec(comparison=Dssim(window=3), reduce="mean"),
    "DSSIM 11, mean inside a margin": ScoreSpec(comparison=Dssim(window=11), reduce="mean", margin=5),
    "DSSIM 15, uniform 5 and 4": ScoreSpec(comparison=Dssim(window=15), filters=(Uniform(size=5), Uniform(size=4))),
    "ready map": ScoreSpec(comparison=ReadyMap()),
    "Gaussian 4": ScoreSpec(comparison=ReadyMap(), filters=(Gaussian(sigma=4),)),
    "opening 3, uniform 7": ScoreSpec(comparison=ReadyMap(), filters=(Opening(size=3), Uniform(size=7)), reduce="mean"),
    "opening 6": ScoreSpec(comparison=ReadyMap(), filters=(Opening(size=6),), margin=3),
}
"""Specs that are compared with the reference but not timed: they cover every family of scoring kernels."""


class Scoring:
    """Scoring of batches of ``n`` on the device, with one set of buffers per call of `add`."""

    def __init__(self, device: Device, spec: ScoreSpec, n: int) -> None:
        self.device, self.spec, self.n = device, spec, n
        self.outputs = [SHAPE, SHAPE] if isinstance(spec.comparison, Dssim) else [SHAPE[1:]]
        self.plan = ScorePlan(spec, SHAPE, n, self.outputs, device.multiprocessors)
        self.scratch = device.allocate(self.plan.scratch_bytes)
        device.fill(self.scratch, self.plan.constants)
        self.input_bytes = 4 * n * sum(int(np.prod(shape)) for shape in self.outputs)
        self.hosts: list[list[NDArray[np.float32]]] = []
        self.buffers: list[tuple[list[int], int, int]] = []

    def add(self, seed: int) -> None:
        """Add a batch of network outputs, and buffers for its maps and scores."""
        arrays = [pictures(self.n, 2 * seed + index) for index in range(len(self.outputs))]
        self.hosts.append([array if len(self.outputs) == 2 else array[:, 0] for array in arrays])
        addresses = [self.device.upload(array) for array in self.hosts[-1]]
        maps = self.device.allocate(4 * self.n * SHAPE[1] * SHAPE[2])
        self.buffers.append((addresses, maps, self.device.allocate(4 * self.n)))

    def run(self, index: int) -> None:
        """Score the batch with this index, modulo the number of batches."""
        images, maps, scores = self.buffers[index % len(self.buffers)]
        for launch in self.plan.launches(images, self.n, maps, scores, self.scratch):
            self.device.launch(launch)

    def check(self, name: str) -> Check:
        """Compare maps and scores of the first and last two pictures with `adedge.scoring`."""
        self.run(0)
        _, maps, scores = self.buffers[0]
        indices = sorted({index for index in (0, 1, self.n - 2, self.n - 1) if 0 <= index < self.n})
        device_maps = self.device.download(maps, (self.n, *SHAPE[1:]))[indices]
        device_scores = self.device.download(scores, (self.n,))[indices]
        expected_maps, expected_scores = maps_and_scores(self.spec, [array[indices] for array in self.hosts[0]])
        difference = max(np.abs(device_maps - expected_maps).max(), np.abs(device_scores - expected_scores).max())
        return Check(name=name, difference=float(difference), allowed=1e-4)


def measure_us(device: Device, rounds: int, launches: int, run: Callable[[int], None]) -> tuple[float, ...]:
    """Microseconds per launch, one sample per round: the mean over ``launches`` in one graph, after a warm-up."""
    run(0)  # compiles and loads the kernels, which is not possible during a capture

    def several() -> None:
        for index in range(launches):
            run(index)

    graph = device.capture(several)
    samples = [device.milliseconds(partial(device.replay, graph)) for _ in range(rounds + 2)]
    graph.close()
    return tuple(1e3 * elapsed / launches for elapsed in samples[2:])


def copy_bandwidth(device: Device, size: int, rounds: int) -> float:
    """Bandwidth of a copy on the device in bytes per second, counting both reading and writing."""
    source, target = device.allocate(size), device.allocate(size)
    samples = measure_us(device, rounds, 4, lambda _: device.copy(target, source, size))
    device.free()
    return 2 * size / (statistics.median(samples) * 1e-6)


def time_scoring(device: Device, n: int, rounds: int, bandwidth: float) -> tuple[Check, Row | None]:
    """Check, then time, the complete scoring at one batch size."""
    scoring = Scoring(device, SCORE, n)
    copies = max(2, -(-CACHE_BYTES // scoring.input_bytes))
    for seed in range(copies):
        scoring.add(seed)
    check = scoring.check(f"DSSIM 7, uniform 32, max, batch {n}")
    row = None
    if check.passed:
        samples = measure_us(device, rounds, copies, scoring.run)
        floor = (scoring.input_bytes + 4 * n) / bandwidth * 1e6
        median = statistics.median(samples)
        promised, kept = (
            (f"at most {MAX_BATCH_ONE_US:.0f} us", median <= MAX_BATCH_ONE_US)
            if n == 1
            else (f"at most {MAX_FLOOR_RATIO:.0f} times the floor", median <= MAX_FLOOR_RATIO * floor)
        )
        row = Row(
            name=check.name,
            microseconds=median,
            samples=samples,
            floor_microseconds=floor,
            promised=promised,
            kept=kept,
        )
    device.free()
    return check, row


def check_families(device: Device) -> list[Check]:
    """Compare every family of scoring kernels, and the tile kernels, with the reference."""
    checks = []
    for name, spec in CHECKED.items():
        scoring = Scoring(device, spec, 3)
        scoring.add(7)
        checks.append(scoring.check(name))
        device.free()
    for nv12 in (False, True):
        checks.append(check_tiles(device, nv12=nv12))
        device.free()
    return checks


def check_tiles(device: Device, *, nv12: bool) -> Check:
    """Compare tiles cut, scaled and merged on the device with `cut_tiles`, `Preprocessor` and `merge_maximum`."""
    tile, size = 16, (46, 62)
    tiling = Tiling(tile=tile, stride=7)
    spec = InputSpec(height=tile, width=tile, channels=1, color="gray", resize="tile", tiling=tiling)
    image = np.random.default_rng(5).integers(0, 256, (69 if nv12 else 46, 62), np.uint8)
    frame = Frame(0, 0, image, "noise", nv12)
    tiles, origins = cut_tiles(frame.picture, tiling)
    n = len(tiles)
    tile_origins = device.upload(np.array(origins, np.int32))
    cut, merged = device.allocate(4 * n * tile * tile), device.allocate(4 * size[0] * size[1])
    device.launch(tiles_launch(spec, Picture(device.upload(image), *size, 1, nv12), tile_origins, n, cut))
    device.launch(merge_launch(cut, tile_origins, n, tile, merged, size, first=True))
    values = np.zeros((n, *spec.shape), np.float32)
    Preprocessor(spec, n)(tiles, values)
    expected = np.full(size, -np.inf, np.float32)
    merge_maximum(expected, values[:, 0], origins)
    result = device.download(merged, size)
    return Check(
        name="tiles, merged" + (", NV12" if nv12 else ""),
        difference=float(np.abs(result - expected).max()),
        # OpenCV's optimised NV12 conversion may differ from its portable code by one grey level.
        allowed=1.01 / 255 if nv12 else 1e-6,
    )


def time_composition(n: int, rounds: int, ours: float) -> Row:
    """Time the same scoring composed of PyTorch operations, on PyTorch's stream with PyTorch's events.

    Raises `MissingDependency` if torch is not installed, `EngineError` if it has no GPU or its result differs.
    """
    torch = _torch()
    hosts = _pairs(n)
    pairs = _upload(torch, hosts)
    score = composed(*pairs[0])[:4].cpu().numpy()
    _, expected = maps_and_scores(SCORE, [array[:4] for array in hosts[0]])
    difference = np.abs(score - expected).max()
    if difference > 1e-3:
        raise EngineError(f"PyTorch's scores differ from the reference by {difference:.1e}, so they are not timed")
    samples = _torch_times(torch, composed, pairs, rounds)
    median = statistics.median(samples)
    return Row(
        name=f"the same composed in PyTorch {torch.__version__}, batch {n}",
        microseconds=median,
        samples=samples,
        promised=f"ours at least {MIN_SPEEDUP:.0f} times faster",
        kept=median >= MIN_SPEEDUP * ours,
    )


def time_fused_ssim(n: int, rounds: int) -> Row:
    """Time the fused SSIM of the package fused-ssim (R. Goel), or of fussim, which has the same interface.

    It does less work: an 11 x 11 Gaussian window and the mean over the batch, without filtering or writing a map.
    Raises `EngineError` if neither package is installed.
    """
    torch = _torch()
    package = next((name for name in ("fused_ssim", "fussim") if importlib.util.find_spec(name) is not None), None)
    if package is None:
        raise EngineError("neither fused-ssim nor fussim is installed")
    fused_ssim = importlib.import_module(package).fused_ssim
    pairs = _upload(torch, _pairs(n))
    with torch.no_grad():
        samples = _torch_times(torch, partial(fused_ssim, train=False), pairs, rounds)
    return Row(
        name=f"{package}: mean SSIM alone, 11 x 11 Gaussian, batch {n}",
        microseconds=statistics.median(samples),
        samples=samples,
    )


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise MissingDependency("torch", "train", "the comparison with PyTorch") from exc
    if not torch.cuda.is_available():
        raise EngineError("PyTorch sees no GPU")
    return torch


def _pairs(n: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Enough pairs of batches that they do not stay in the GPU's cache."""
    copies = max(2, min(16, -(-CACHE_BYTES // (8 * n * int(np.prod(SHAPE))))))
    return [(pictures(n, 2 * index), pictures(n, 2 * index + 1)) for index in range(copies)]


def _upload(torch: Any, hosts: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> list[tuple[Any, Any]]:
    return [(torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda()) for a, b in hosts]


def _torch_times(
    torch: Any, call: Callable[..., Any], pairs: Sequence[tuple[Any, Any]], rounds: int
) -> tuple[float, ...]:
    """Microseconds per call, one sample per round, after two uncounted rounds."""
    samples = []
    for round_ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for index in range(len(pairs)):
            call(*pairs[(round_ + index) % len(pairs)])
        end.record()
        end.synchronize()
        samples.append(1e3 * start.elapsed_time(end) / len(pairs))
    return tuple(samples[2:])


def composed(a: Any, b: Any, window: int = 7, size: int = 32) -> Any:
    """`SCORE` in PyTorch: (N, C, H, W) twice -> scores (N,). Borders are mirrored with the edge pixel repeated."""
    import torch

    def box(x: Any, width: int) -> Any:
        before, after = width // 2, width - 1 - width // 2
        x = torch.cat([x[..., :before].flip(-1), x, x[..., x.shape[-1] - after :].flip(-1)], -1)
        x = torch.cat([x[..., :before, :].flip(-2), x, x[..., x.shape[-2] - after :, :].flip(-2)], -2)
        return torch.nn.functional.avg_pool2d(x, width, 1)

    unbiased = window**2 / (window**2 - 1)
    mean_a, mean_b = box(a, window), box(b, window)
    variance_a = unbiased * (box(a * a, window) - mean_a**2)
    variance_b = unbiased * (box(b * b, window) - mean_b**2)
    covariance = unbiased * (box(a * b, window) - mean_a * mean_b)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    ssim = luminance * (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)
    maps = ((1 - ssim) / 2).mean(dim=1, keepdim=True)
    return box(maps, size).amax(dim=(1, 2, 3))


def time_preprocess(
    device: Device, height: int, width: int, rounds: int, bandwidth: float, *, nv12: bool = False
) -> tuple[Check, Row | None]:
    """Check, then time, preprocessing one frame, uint8 BGR or NV12, into the input `NETWORK_INPUT`."""
    rng = np.random.default_rng(height)
    shape = (height * 3 // 2, width) if nv12 else (height, width, 3)
    images = [rng.integers(0, 256, shape, np.uint8) for _ in range(2)]
    copies = max(2, min(16, -(-CACHE_BYTES // images[0].nbytes)))
    target = device.allocate(4 * int(np.prod(SHAPE)))
    addresses = [device.upload(images[index % 2]) for index in range(copies)]

    def run(index: int) -> None:
        picture = Picture(addresses[index % copies], height, width, 1 if nv12 else 3, nv12)
        device.launch(preprocess_launch(NETWORK_INPUT, picture, target))

    run(0)
    result = device.download(target, (1, *SHAPE))
    expected = np.zeros((1, *SHAPE), np.float32)
    Preprocessor(NETWORK_INPUT, 1)([Frame(0, 0, images[0], "noise", nv12).picture], expected)
    # OpenCV's optimised resize may differ from its portable code by one grey level.
    allowed = 1.01 / 255 / min(NETWORK_INPUT.std)
    name = f"preprocess {width} x {height}" + (", NV12" if nv12 else "")
    check = Check(name=name, difference=float(np.abs(result - expected).max()), allowed=allowed)
    row = None
    if check.passed:
        samples = measure_us(device, rounds, 2 * copies, run)
        # A bilinear resize must read four pixels per pixel written, at most the whole frame.
        read_bytes = images[0].nbytes * min(1.0, 4 * SHAPE[1] * SHAPE[2] / (height * width))
        floor = (read_bytes + 4 * int(np.prod(SHAPE))) / bandwidth * 1e6
        row = Row(name=name, microseconds=statistics.median(samples), samples=samples, floor_microseconds=floor)
    device.free()
    return check, row


class CopyingEngine:
    """An engine that only copies its input to two outputs, so that a frame's time is mostly that of the frame loop."""

    def __init__(self, gpu: Gpu, shape: tuple[int, int, int]) -> None:
        self.gpu, self.batch, self.shape_changes = gpu, 1, 0
        self.stream = gpu.stream()
        self.input = np.zeros((1, *shape), np.float32)
        self.outputs = (self.input, self.input)
        self._resources = Resources(gpu)
        self.device_input, *outputs = (self._resources.device(self.input.nbytes, "the engine") for _ in range(3))
        self.device_outputs = tuple(outputs)

    def enqueue(self, n: int) -> None:
        """Enqueue two copies on the device."""
        for address in self.device_outputs:
            self.gpu.cuda.memcpy_dtod_async(address, self.device_input, n * self.input.nbytes, self.stream)

    def close(self) -> None:
        """Free the memory."""
        self._resources.close()


def time_loop(rounds: int, *, graph: bool, cuda: Callable[[], Gpu]) -> Row:
    """Time of a 1080p frame beyond its copies and GPU stages, with a `CopyingEngine`.

    Raises `MissingDependency` if pycuda is not installed, `EngineError` if no graph can be captured.
    """
    gpu = cuda()
    with gpu.current():
        engine = CopyingEngine(gpu, NETWORK_INPUT.shape)
        inspector = CudaInspector(engine, NETWORK_INPUT, SCORE, threshold=1.0, maps="never", graph=graph, slots=1)
        image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
        samples = []
        for index in range(rounds + 10):
            (verdict,) = inspector.inspect([Frame(index, 0, image, "noise")])
            times = verdict.timings_ms
            stages = sum(times[name] for name in ("copy", "upload", "preprocess", "network", "scoring"))
            samples.append(1e3 * (times["frame"] - stages))
        reason = inspector.graph_disabled_reason
        inspector.close()
        engine.close()
    if graph and reason is not None:
        raise EngineError(f"no graph can be captured: {reason}")
    median = statistics.median(samples[10:])
    return Row(
        name=f"frame loop beyond copies and stages, {'with' if graph else 'without'} a graph",
        microseconds=median,
        samples=tuple(samples[10:]),
        promised=f"at most {MAX_LOOP_US:.0f} us" if graph else "",
        kept=median <= MAX_LOOP_US if graph else None,
    )


@dataclass
class Report:
    """The results; ``left_out`` lists what could not be measured, and why."""

    facts: dict[str, str]
    checks: list[Check]
    rows: list[Row]
    left_out: list[str]

    def markdown(self) -> str:
        """The report as Markdown tables."""
        lines = ["| machine | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in self.facts.items()), ""]
        lines += ["| compared with the reference | largest difference | allowed | |", "| --- | --- | --- | --- |"]
        for check in self.checks:
            verdict = "ok" if check.passed else "DIFFERS"
            lines.append(f"| {check.name} | {check.difference:.1e} | {check.allowed:.1e} | {verdict} |")
        lines += ["", "| time | median, us | p95 | floor, us | promised | |", "| --- | --- | --- | --- | --- | --- |"]
        for row in self.rows:
            floor = "" if row.floor_microseconds is None else f"{row.floor_microseconds:.1f}"
            kept = {True: "kept", False: "NOT KEPT", None: ""}[row.kept]
            p95 = float(np.percentile(row.samples, 95))
            lines.append(f"| {row.name} | {row.microseconds:.1f} | {p95:.1f} | {floor} | {row.promised} | {kept} |")
        lines += ["", *(f"- left out: {reason}" for reason in self.left_out)]
        return "\n".join(lines) + "\n"


def measure(device: Device, *, rounds: int, batch: int, cuda: Callable[[], Gpu]) -> Report:
    """Run all comparisons and measurements that this machine supports."""
    facts = {
        **machine_facts(),
        "GPU in use": f"{device.name}, {device.architecture}, driver for CUDA {device.cuda_version}",
        "kernels": f"compiled by {device.compiler}, launched through libcuda by ctypes",
        "command": " ".join(sys.argv),
    }
    report = Report(facts=facts, checks=[], rows=[], left_out=[])
    bandwidth = copy_bandwidth(device, CACHE_BYTES, rounds)
    facts["copy bandwidth"] = f"{bandwidth / 1e9:.0f} GB/s, read and write"
    report.checks += check_families(device)
    for n in dict.fromkeys((1, batch)):
        check, row = time_scoring(device, n, rounds, bandwidth)
        report.checks.append(check)
        if row is None:
            report.left_out.append(f"the time of {check.name}: its result differs from the reference")
            continue
        report.rows.append(row)
        _attempt(report, f"PyTorch at batch {n}", partial(time_composition, n, rounds, row.microseconds))
        _attempt(report, f"a public fused SSIM at batch {n}", partial(time_fused_ssim, n, rounds))
    for height, width, nv12 in ((1080, 1920, False), (2160, 3840, False), (1080, 1920, True), (2160, 3840, True)):
        check, row = time_preprocess(device, height, width, rounds, bandwidth, nv12=nv12)
        report.checks.append(check)
        if row is not None:
            report.rows.append(row)
    for graph in (False, True):
        name = f"the frame loop {'with' if graph else 'without'} a graph"
        _attempt(report, name, partial(time_loop, rounds, graph=graph, cuda=cuda))
    return report


def _attempt(report: Report, name: str, work: Callable[[], Row]) -> None:
    try:
        report.rows.append(work())
    except AdedgeError as error:
        report.left_out.append(f"{name}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if every kernel agrees with its reference, 1 if one differs or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m adedge.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write everything, including raw samples, to this JSON file")
    parser.add_argument("--rounds", type=int, default=50, help="samples per measurement")
    parser.add_argument("--batch", type=int, default=256, help="size of the large batch")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batch < 1:
        parser.error("--rounds and --batch must be at least 1")
    try:
        device = Device()
        report = measure(device, rounds=options.rounds, batch=options.batch, cuda=_gpu)
        device.close()
    except AdedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(report.markdown())
    if options.output is not None:
        options.output.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0 if all(check.passed for check in report.checks) else 1


def _gpu() -> Gpu:
    return Gpu(load_cuda("the frame loop"))


if __name__ == "__main__":
    sys.exit(main())
