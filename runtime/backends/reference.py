"""The model itself as a backend: the reference that flips and proofs compare engines with."""

from __future__ import annotations

from adedge.bundle import Bundle
from adedge.manifest import IMPORTED
from adedge.runtime.backends import Backend, FunctionBackend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend

BATCH = 8


def load_reference(bundle: Bundle) -> Backend:
    """Load the bundle's networks in PyTorch, or the graph of an imported detector in ONNX Runtime.

    Raises `MissingDependency` if that library is not installed, `BundleError` if the weights were changed.
    """
    manifest = bundle.manifest
    if manifest.method == IMPORTED:
        return OnnxRuntimeBackend(bundle.read(manifest.weights), batch=BATCH, or_fewer=True)
    from adedge.methods import detector_function, require_torch

    require_torch()
    return FunctionBackend(detector_function(bundle), manifest.input.shape, batch=BATCH)
