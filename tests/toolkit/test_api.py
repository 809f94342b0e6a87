"""The public interface: which names it has, and that the example in each docstring does what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import adedge

PUBLIC = {
    "__version__",
    "AdedgeError",
    "BenchmarkOptions",
    "Bundle",
    "EngineKey",
    "TrainingOptions",
    "Verdict",
    "benchmark",
    "build_engine",
    "calibrate",
    "export_graphs",
    "load_dataset",
    "method_named",
    "open_bundle",
    "open_inspector",
    "prove",
    "train",
}
# In the order of the way from photographs to a verdict: an example finds what those before it have written.
EXAMPLES = (
    "load_dataset",
    "method_named",
    "train",
    "open_bundle",
    "export_graphs",
    "calibrate",
    "EngineKey",
    "build_engine",
    "prove",
    "open_inspector",
    "benchmark",
)


def test_the_public_interface_is_this_and_no_more() -> None:
    assert set(adedge.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(adedge, name) is not None
    assert set(adedge.__all__) <= set(dir(adedge))
    with pytest.raises(AttributeError, match="no attribute 'open_inspektor'"):
        adedge.open_inspektor  # noqa: B018 - the access is the case


def test_every_name_says_what_it_is() -> None:
    for name in PUBLIC - {"__version__"}:
        assert inspect.getdoc(getattr(adedge, name)), name


def test_a_name_loads_only_what_it_needs() -> None:
    code = "import sys, adedge; adedge.open_inspector; print('torch' in sys.modules, 'onnx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all examples: a folder "photos" of grey waves, with labelled test pictures."""
    folder = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)
    for name, count in {"train/good": 40, "test/good": 4, "test/spot": 4}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(count):
            wave = 128 + 60 * np.sin(np.arange(32) / 3 + rng.uniform(0, 2)) + rng.normal(0, 8, (32, 32))
            if name == "test/spot":
                wave[8:16, 8:16] = 255
            cv2.imwrite(str(folder / "photos" / name / f"{index}.png"), np.clip(wave, 0, 255).astype(np.uint8))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_in_its_docstring_runs(name: str, workplace: Path) -> None:
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "matplotlib"):
        pytest.importorskip(package)
    value = getattr(adedge, name)
    module = importlib.import_module(value.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(value, name, module=False, globs=dict(vars(module)))
    assert sum(len(test.examples) for test in tests) > 0, f"{name} has no example"
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert said == []
