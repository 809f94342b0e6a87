"""The model itself behind the interface of an engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adedge.bundle import Bundle
from adedge.errors import MissingDependency
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.runtime.backends.reference import BATCH, load_reference

pytest.importorskip("onnxruntime")


def test_an_imported_detector_runs_in_onnx_runtime(red_bundle: Bundle) -> None:
    with load_reference(red_bundle) as reference:  # type: ignore[attr-defined]  # of a class with buffers
        assert isinstance(reference, OnnxRuntimeBackend)
        assert reference.batch == BATCH
        reference.input[:2] = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
        reference.run(2)
        np.testing.assert_allclose(reference.outputs[0][:2, 0], reference.input[:2, 0], rtol=1e-6)


def test_a_trained_detector_without_torch_names_the_extra(
    red_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = replace(red_bundle, manifest=red_bundle.manifest.replace(method="hfr"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[train\]'"):
        load_reference(trained)
