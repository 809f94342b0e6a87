"""Times the overhead of `adedge run`: the pipeline from preprocess to score against the bare ONNX Runtime session.

    python -m adedge.benchmarks.studies.run_overhead [--threads 2] [--rounds 40] [--bundle BUNDLE]

The network is an OE-SDN for 256x256x3 with untrained weights (which do not affect the time), or that of BUNDLE. "bare"
is ``session.run`` on a ready array, in a session with ONNX Runtime's default settings and the same number of threads.
The two take turns in blocks of rounds, so that a noisy machine disturbs both alike. The first rounds of a block do not
count, because the threads of the other session still spin and occupy cores. Medians are compared, after checking that
both outputs agree. Goals: preprocessing and network together at most 1.05 times the bare session, scoring at most 3 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from adedge.bundle import Bundle
from adedge.errors import EngineError, MissingDependency
from adedge.processors import physical_cores
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend, library_version
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.sources import Frame
from adedge.specs import Dssim, InputSpec, ScoreSpec, Uniform

MAX_RATIO = 1.05
MAX_SCORING_MS = 3.0
BLOCK = 10  # counted rounds per turn
SETTLE = 2  # uncounted rounds at the start of a block


def compare(
    graph: bytes, spec: InputSpec, score: ScoreSpec, *, threads: int, rounds: int
) -> dict[str, float | int | str | list[float]]:
    """Time both in turns; return medians and raw samples in milliseconds."""
    backend = OnnxRuntimeBackend(graph, threads=threads)
    inspector = HostInspector(backend, spec, score, threshold=1.0)
    frame = Frame(0, 0, np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8), "noise")
    list(inspector.inspect([frame]))
    bare = _bare_session(graph, backend.input[:1].copy(), threads)
    for ours, theirs in zip(backend.outputs, bare(), strict=True):
        if not np.allclose(ours[:1], theirs, atol=1e-5):
            raise EngineError("the outputs of the pipeline and the bare session differ, so they are not timed")

    samples: dict[str, list[float]] = {"bare": [], "preprocess": [], "network": [], "scoring": [], "frame": []}

    def time_bare() -> None:
        started = time.perf_counter_ns()
        bare()
        samples["bare"].append((time.perf_counter_ns() - started) / 1e6)

    def time_pipeline() -> None:
        (verdict,) = inspector.inspect([frame])
        for name, value in verdict.timings_ms.items():
            if name in samples:
                samples[name].append(value)

    for _ in range(max(1, rounds // BLOCK)):
        for timed, names in ((time_bare, ("bare",)), (time_pipeline, ("preprocess", "network", "scoring", "frame"))):
            for _ in range(SETTLE + BLOCK):
                timed()
            for name in names:
                del samples[name][-SETTLE - BLOCK : -BLOCK]
    median = {f"{name}_ms": round(statistics.median(values), 3) for name, values in samples.items()}
    to_network = statistics.median(p + n for p, n in zip(samples["preprocess"], samples["network"], strict=True))
    return {
        "ratio": round(to_network / statistics.median(samples["bare"]), 4),
        "ratio_allowed": MAX_RATIO,
        "scoring_allowed_ms": MAX_SCORING_MS,
        **median,
        "rounds": len(samples["bare"]),
        "onnxruntime_threads": threads,
        "opencv_threads": cv2.getNumThreads(),
        "onnxruntime": library_version(),
        "input": "x".join(map(str, spec.shape)),
        "samples_bare_ms": samples["bare"],
        "samples_frame_ms": samples["frame"],
    }


def _bare_session(graph: bytes, ready: np.ndarray, threads: int) -> Callable[[], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: ready})


def _untrained_oesdn() -> tuple[bytes, InputSpec, ScoreSpec]:
    """The paper's networks for 256x256x3, and its score: DSSIM, 32x32 mean, maximum."""
    try:
        import torch

        from adedge.methods.oesdn.method import ConvolutionalAutoencoder, Detector, StyleNetwork
    except ImportError:
        raise MissingDependency("torch", "export", "the benchmark's untrained network") from None
    torch.manual_seed(0)
    spec = InputSpec(height=256, width=256, channels=3, color="rgb")
    detector = Detector(ConvolutionalAutoencoder(3), StyleNetwork(3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            detector, (torch.zeros(1, *spec.shape),), dynamo=True, input_names=["frame"], verbose=False
        )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph, spec, ScoreSpec(comparison=Dssim(), filters=(Uniform(size=32),), reduce="max")


def main() -> int:
    """Measure, print one JSON object, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="use this bundle's FP32 graph (its input must not be tiled)")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="threads of ONNX Runtime, for both")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each, in blocks of ten")
    arguments = parser.parse_args()
    if arguments.bundle is None:
        graph, spec, score = _untrained_oesdn()
    else:
        bundle = Bundle.open(arguments.bundle)
        graph = bundle.read("model.fp32.onnx")
        spec, score = bundle.manifest.input, bundle.manifest.score
    result = compare(graph, spec, score, threads=arguments.threads, rounds=arguments.rounds)
    sys.stdout.write(json.dumps(result) + "\n")
    ratio, scoring_ms = (cast(float, result[key]) for key in ("ratio", "scoring_ms"))
    return int(ratio > MAX_RATIO or scoring_ms > MAX_SCORING_MS)


if __name__ == "__main__":
    sys.exit(main())
