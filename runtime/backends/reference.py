"""The model itself behind the interface of an engine: what thresholds, flips and proofs are counted against."""

from __future__ import annotations

from adedge.bundle import IMPORTED, Bundle
from adedge.runtime.backends import Backend, FakeBackend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend

BATCH = 8


def load_reference(bundle: Bundle) -> Backend:
    """The bundle's networks in PyTorch; of an imported detector its graph in ONNX Runtime.

    Raises `MissingDependency` where it cannot run here, `BundleError` where the weights were changed.
    """
    manifest = bundle.manifest
    if manifest.method == IMPORTED:
        return OnnxRuntimeBackend(bundle.read(manifest.weights), batch=BATCH, or_fewer=True)
    from adedge.methods import detector_function, require_torch

    require_torch()
    return FakeBackend(detector_function(bundle), manifest.input.shape, batch=BATCH)
