"""Compares the pipeline's resident memory after 10 000 frames and after 500: it must not grow in a run of months.

    python -m adedge.benchmarks.studies.memory [--bundle BUNDLE] [--frames 10000]

As with a camera, each frame is a new array; two sizes alternate. Frames go through preprocessing, an ONNX Runtime
engine (that of BUNDLE, or a small convolution), scoring, and the sinks for JSON lines and rejects. The command fails if
memory grows by more than 5%.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.errors import MissingDependency
from adedge.runtime.backends import Backend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.runtime.engines import load_engine
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import JsonLinesSink, RejectsSink
from adedge.runtime.sources import ArraySource
from adedge.runtime.statistics import Statistics
from adedge.specs import Dssim, EngineKey, InputSpec, ScoreSpec, Uniform

EARLY, LATE = 500, 10_000
MAX_GROWTH = 0.05


def resident_bytes() -> int:
    """Resident memory of this process, as reported by the kernel."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(inspector: HostInspector, frames: int, folder: Path) -> dict[str, int]:
    """Run ``frames`` frames; return the resident bytes after `EARLY` of them and after all."""
    resident: dict[str, int] = {}

    def watch(statistics: Statistics) -> None:
        if statistics.frames in (EARLY, frames):
            resident[f"after_{statistics.frames}"] = resident_bytes()

    sinks = [JsonLinesSink(folder / "verdicts.jsonl"), RejectsSink(folder / "rejects")]
    source = ArraySource(lambda: _frames(frames), name="line")
    run([Stream(source, sinks)], inspector, policy="every", watch=watch)
    return resident


def _frames(count: int) -> Iterator[NDArray[np.uint8]]:
    """New frames of two sizes: a gradient, and in every 200th a patch of noise, which is rejected."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (480, 640) if number % 2 else (360, 480)
        row = np.linspace(90 + number % 20, 160, width).astype(np.uint8)
        frame = np.repeat(np.tile(row, (height, 1))[..., None], 3, axis=2)
        if number % 200 == 0:
            frame[100:200, 100:200] = rng.integers(0, 256, (100, 100, 3), np.uint8)
        yield frame


def _small_detector() -> tuple[Backend, InputSpec, ScoreSpec]:
    """A 3x3 convolution that blurs the picture; the anomaly map is the DSSIM of the two."""
    try:
        import onnx
    except ImportError:
        raise MissingDependency("onnx", "export", "the benchmark's small network") from None
    spec = InputSpec(height=64, width=64, channels=3, color="rgb")
    shape: list[str | int | None] = ["n", *spec.shape]
    frame, a, b = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("frame", "a", "b")
    )
    blur = np.zeros((3, 3, 3, 3), np.float32)
    blur[range(3), range(3)] = 1 / 9
    nodes = [
        onnx.helper.make_node("Identity", ["frame"], ["a"]),
        onnx.helper.make_node("Conv", ["frame", "blur"], ["b"], pads=[1, 1, 1, 1]),
    ]
    graph = onnx.helper.make_graph(nodes, "blur", [frame], [a, b], [onnx.numpy_helper.from_array(blur, "blur")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    backend = OnnxRuntimeBackend(model.SerializeToString(), threads=1)
    return backend, spec, ScoreSpec(comparison=Dssim(), filters=(Uniform(size=8),), margin=10)


def main() -> int:
    """Measure, print one JSON object, and return 1 if memory grew more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="use this bundle's onnxruntime/fp32 engine")
    parser.add_argument("--frames", type=int, default=LATE)
    arguments = parser.parse_args()
    threshold = 0.3
    if arguments.bundle is None:
        backend, spec, score = _small_detector()
    else:
        bundle = Bundle.open(arguments.bundle)
        backend, spec, score = (
            load_engine(bundle, EngineKey("onnxruntime", "fp32")),
            bundle.manifest.input,
            bundle.manifest.score,
        )
    with tempfile.TemporaryDirectory() as folder:
        inspector = HostInspector(backend, spec, score, threshold=threshold)
        resident = measure(inspector, arguments.frames, Path(folder))
        rejects = len(list((Path(folder) / "rejects").glob("*.png")))
    growth = resident[f"after_{arguments.frames}"] / resident[f"after_{EARLY}"] - 1
    result = {"resident_bytes": resident, "growth": round(growth, 4), "allowed": MAX_GROWTH, "rejects": rejects}
    sys.stdout.write(json.dumps(result) + "\n")
    return int(growth > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
