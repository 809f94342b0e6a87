"""The only way to judge pictures: open the inspector of an engine, and run pictures through it.

`adedge run`, `calibrate`, `prove`, `benchmark` and the self-test of a new engine all use this module, so that
thresholds, proofs and reports come from the same code, on the same device, as the verdicts on the line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.data.samples import Sample
from adedge.errors import AdedgeError, EngineError, MissingDependency
from adedge.escaping import command_line
from adedge.manifest import Normalisation
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.tensorrt import TensorRTBackend
from adedge.runtime.cuda.inspector import CudaInspector
from adedge.runtime.engines import engines_in, load_engine, read_record
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.inspector import Inspector, Maps
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict
from adedge.specs import EngineKey, InputSpec, Precision, ScoreSpec, Target

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Notify = Callable[[str], None]

PREFERENCE: tuple[EngineKey, ...] = (
    EngineKey("tensorrt", "fp16"),
    EngineKey("tensorrt", "int8"),
    EngineKey("tensorrt", "fp32"),
    EngineKey("tensorrt-rtx", "fp16"),
    EngineKey("tensorrt-rtx", "int8"),
    EngineKey("tensorrt-rtx", "fp32"),
    EngineKey("onnxruntime", "fp32"),
    EngineKey("onnxruntime", "int8"),
    EngineKey("onnxruntime", "fp16"),
)
"""The order in which engines are tried, best first. On a CPU, FP32 comes first: INT8 is slower there without VNNI, and
FP16 is computed in FP32."""


class EngineInspector:
    """A loaded engine of a bundle with its preprocessing and scoring: an `Inspector` with a key and a threshold."""

    def __init__(self, key: EngineKey, threshold: float, backend: Backend, inspector: Inspector) -> None:
        self.key = key
        self.threshold = threshold
        self.batch = inspector.batch
        self.slots = inspector.slots
        self._backend = backend
        self._inspector = inspector

    def judge(self, image: Image) -> Verdict:
        """The verdict on one picture: uint8 (H, W, 3) BGR, or (H, W) or (H, W, 1) grey, of any size.

        The verdict owns its anomaly map, float32 (height, width). Raises `DataError` if the picture has another shape
        or dtype, `EngineError` if the engine fails.
        """
        self.submit([Frame(0, time.monotonic_ns(), image, "image")])
        (verdict,) = self.collect()
        return verdict if verdict.map is None else replace(verdict, map=verdict.map.copy())

    def submit(self, frames: Sequence[Frame]) -> None:
        """Start judging 1 to ``batch`` frames; see `Inspector.submit`."""
        self._inspector.submit(frames)

    def collect(self) -> Iterator[Verdict]:
        """The verdicts on the frames submitted first; see `Inspector.collect`."""
        return self._inspector.collect()

    def close(self) -> None:
        """Release the engine and the inspector's buffers; a second call does nothing."""
        self._inspector.close()
        self._backend.close()

    def __enter__(self) -> EngineInspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_inspector(
    bundle: Bundle | str | Path,
    target: Target | None = None,
    precision: Precision | None = None,
    *,
    threshold: float | None = None,
    threads: int | None = None,
    maps: Maps = "always",
    host_scoring: bool = False,
    notify: Notify = log.warning,
) -> EngineInspector:
    """Load the best engine of a bundle that runs on this machine, ready to judge pictures.

    Tries calibrated engines first, in the order of `PREFERENCE`, and only those of ``target`` and ``precision`` if
    given. ``threshold`` replaces the calibrated one. ``threads`` are those of ONNX Runtime (default: physical cores).
    ``maps`` selects the frames whose anomaly maps are downloaded from a GPU; ``host_scoring`` keeps preprocessing and
    scoring on the CPU. ``notify`` receives one message for each reason why a better engine or the GPU is not used.

    >>> image = np.zeros((48, 64, 3), np.uint8)  # BGR, as from cv2.imread
    >>> with open_inspector("bottle.adedge") as inspector:
    ...     verdict = inspector.judge(image)
    >>> verdict.anomalous == (verdict.score > inspector.threshold), verdict.map.shape
    (True, (32, 32))

    Raises `BundleError` if the bundle is damaged, `EngineError` if no engine runs here or no calibrated one does, and
    `MissingDependency` if the library that executes it is not installed.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    candidates = _candidates(bundle, target, precision, calibrated_first=threshold is None)
    for key in candidates:
        # Before loading, which may take minutes on a device.
        limit = threshold_of(bundle, key) if threshold is None else threshold
        try:
            backend = load_engine(bundle, key, threads=threads)
        except (EngineError, MissingDependency) as error:
            if key == candidates[-1]:
                raise
            notify(f"{key} is not used: {error}")
            continue
        if threshold is None:
            _name_uncalibrated(bundle, candidates, key, notify)
        try:
            inspector = make_inspector(
                backend,
                bundle.manifest.input,
                bundle.manifest.score,
                threshold=limit,
                normalisation=bundle.manifest.normalisation,
                maps=maps,
                host_scoring=host_scoring,
                notify=notify,
            )
        except BaseException:
            backend.close()
            raise
        return EngineInspector(key, limit, backend, inspector)
    raise AssertionError("unreachable: the last candidate returns or raises")


def _candidates(
    bundle: Bundle, target: Target | None, precision: Precision | None, *, calibrated_first: bool
) -> list[EngineKey]:
    engines = engines_in(bundle)
    candidates = [
        e for e in PREFERENCE if e in engines and target in (None, e.target) and precision in (None, e.precision)
    ]
    if calibrated_first:
        candidates.sort(key=lambda key: bundle.manifest.threshold(key) is None)
    if not candidates:
        # Raises an error that says how to build the engine.
        read_record(bundle, EngineKey(target or "onnxruntime", precision or "fp32"))
    return candidates


def _name_uncalibrated(bundle: Bundle, candidates: Sequence[EngineKey], used: EngineKey, notify: Notify) -> None:
    """Say which engines would come before the used one if they had thresholds."""
    better = [key for key in PREFERENCE[: PREFERENCE.index(used)] if key in candidates]
    lacking = [str(key) for key in better if bundle.manifest.threshold(key) is None]
    if lacking:
        command = command_line("calibrate", bundle.path, "PICTURES", "--thresholds-only")
        notify(
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not used, for want of a threshold: run "
            f"'{command}' on a machine that can run {'it' if len(lacking) == 1 else 'them'}"
        )


def threshold_of(bundle: Bundle, key: EngineKey) -> float:
    """The score above which an engine rejects a frame. Raises `EngineError` if the engine is not calibrated."""
    threshold = bundle.manifest.threshold(key)
    if threshold is None:
        raise EngineError(
            f"{bundle.path} has no threshold for {key}: run 'adedge calibrate' on good pictures, "
            "or give one with --threshold"
        )
    return threshold


def make_inspector(
    backend: Backend,
    spec: InputSpec,
    score: ScoreSpec,
    *,
    threshold: float = np.inf,
    normalisation: Normalisation | None = None,
    maps: Maps = "always",
    host_scoring: bool = False,
    notify: Notify = log.warning,
) -> Inspector:
    """The inspector for a loaded engine: on the GPU if the engine and our kernels run there, otherwise on the CPU.

    ``notify`` receives the reason if preprocessing and scoring run on the CPU although the engine runs on a GPU.
    """
    if isinstance(backend, TensorRTBackend) and not host_scoring:
        try:
            return CudaInspector(backend, spec, score, threshold=threshold, normalisation=normalisation, maps=maps)
        except AdedgeError as error:
            notify(f"preprocessing and scoring on the processor: {error}")
    return HostInspector(backend, spec, score, threshold=threshold, normalisation=normalisation)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """An engine's raw scores (N,) of N pictures and, if requested, its anomaly maps, float32 (H, W) each."""

    scores: NDArray[np.floating[Any]]
    maps: tuple[NDArray[np.float32], ...] = ()


def judge(
    backend: Backend,
    spec: InputSpec,
    score: ScoreSpec,
    images: Iterable[tuple[str, Image]],
    *,
    name: str,
    maps: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Predictions:
    """Judge named pictures, (H, W) or (H, W, 3) BGR, as `adedge run` judges frames.

    Returns scores and, with ``maps``, anomaly maps. ``name`` is the engine's, for messages; ``watch`` receives the
    number of pictures judged so far. Raises `EngineError` if the engine fails or gives a score that is not finite.
    """
    inspector = make_inspector(
        backend, spec, score, maps="always" if maps else "never", notify=partial(log.warning, "%s: %s", name)
    )
    frames = (Frame(index, time.monotonic_ns(), image, label) for index, (label, image) in enumerate(images))
    scores: list[float] = []
    anomaly_maps: list[NDArray[np.float32]] = []
    with closing(inspector):
        while batch := list(islice(frames, inspector.batch)):
            inspector.submit(batch)
            for verdict in inspector.collect():
                scores.append(verdict.score)
                if maps:
                    assert verdict.map is not None
                    anomaly_maps.append(verdict.map.copy())
                if watch is not None:
                    watch(len(scores))
    return Predictions(scores=np.array(scores, np.float64), maps=tuple(anomaly_maps))


def judge_samples(
    backend: Backend,
    spec: InputSpec,
    score: ScoreSpec,
    samples: Sequence[Sample],
    *,
    name: str,
    maps: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """`judge` for the pictures of a data set, read a batch at a time. Raises `DataError` if one is unreadable."""
    images = ((sample.digest if sample.path is None else sample.path.name, sample.read()) for sample in samples)
    watch = None if progress is None else lambda done: progress(done, len(samples), name)
    return judge(backend, spec, score, images, name=name, maps=maps, watch=watch)


def judge_frames(
    backend: Backend, spec: InputSpec, score: ScoreSpec, frames: NDArray[np.uint8], *, name: str
) -> Predictions:
    """`judge`, with maps, for conformed frames (N, H, W, C) in the spec's colour order, such as golden frames."""
    # Inspectors take BGR, as cameras deliver it.
    images = frames[..., ::-1] if spec.color == "rgb" else frames
    named = (("golden frame", np.ascontiguousarray(image)) for image in images)
    return judge(backend, spec, score, named, name=name, maps=True)
