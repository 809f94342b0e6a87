"""The GPU benchmark from its arguments to its report, on the stand-in driver: its figures mean nothing."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adedge.benchmarks import gpu as benchmark
from adedge.errors import EngineError
from adedge.runtime.cuda.driver import Gpu, load_cuda
from adedge.runtime.cuda.kernel_cache import Compiler
from adedge.scoring import maps_and_scores


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and buffers that a processor gets through."""
    monkeypatch.setattr(benchmark, "SHAPE", (3, 24, 32))
    monkeypatch.setattr(benchmark, "CACHE_BYTES", 1 << 15)
    spec = benchmark.NETWORK_INPUT.model_copy(update={"height": 24, "width": 32})
    monkeypatch.setattr(benchmark, "NETWORK_INPUT", spec)

    def torch() -> Any:
        raise EngineError("PyTorch sees no GPU")  # and shall not look for one where the stand-in pretends to be it

    monkeypatch.setattr(benchmark, "_torch", torch)


@pytest.fixture
def device(driver: Any, host_compiler: Compiler, tmp_path: Path) -> Any:
    device = benchmark.Device(host_compiler, tmp_path)
    yield device
    device.close()


def test_everything_is_measured_or_left_out_with_a_reason(device: Any, host_compiler: Compiler, tmp_path: Path) -> None:
    report = benchmark.measure(
        device, rounds=1, batch=2, cuda=lambda: Gpu(load_cuda("the loop"), compiler=host_compiler, cache=tmp_path)
    )
    assert [check.passed for check in report.checks] == [True] * 15
    names = " ".join(row.name for row in report.rows)
    assert all(name in names for name in ("batch 1", "batch 2", "1920 x 1080", "3840 x 2160", "1920 x 1080, NV12"))
    left_out = " ".join(report.left_out)
    for name in ("PyTorch at batch 1", "PyTorch at batch 2", "a public fused SSIM at batch 1"):
        assert name in left_out
    loops = sum("frame loop" in row.name for row in report.rows)
    assert loops == (0 if importlib.util.find_spec("pycuda") is None else 2)
    assert all(row.microseconds > 0 and row.samples for row in report.rows if "loop" not in row.name)
    page = report.markdown()
    assert "Host driver (no GPU), sm_87, driver for CUDA 13.0" in page
    assert page.count("| ok |") == 15


def test_a_kernel_that_differs_is_reported_and_not_timed(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(spec: Any, outputs: Any) -> Any:
        maps, scores = maps_and_scores(spec, outputs)
        return maps + np.float32(0.01), scores

    monkeypatch.setattr(benchmark, "maps_and_scores", wrong)
    check, row = benchmark.time_scoring(device, 2, 1, 1e9)
    assert not check.passed
    assert check.difference == pytest.approx(0.01, rel=0.1)
    assert row is None
    report = benchmark.Report(facts={}, checks=[check], rows=[], left_out=[])
    assert "| DIFFERS |" in report.markdown()


def test_nothing_is_left_on_the_device(device: Any, driver: Any) -> None:
    benchmark.time_preprocess(device, 48, 64, 1, 1e9)
    assert driver.live().get("allocations", 0) == 0


def test_a_failed_call_is_named(device: Any, driver: Any) -> None:
    driver.fail("cuMemAlloc_v2", 2)
    with pytest.raises(EngineError, match=r"cuMemAlloc_v2 failed: out of memory \(2\)"):
        device.allocate(8)


def test_composition_in_pytorch_is_the_reference() -> None:
    """Only then is its time one to compare with."""
    torch = pytest.importorskip("torch", reason="composes the score in PyTorch")
    a, b = benchmark.pictures(2, 0), benchmark.pictures(2, 1)
    _, wanted = maps_and_scores(benchmark.SCORE, [a, b])
    got = benchmark.composed(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-4)


class Clock:
    """What PyTorch's CUDA events are asked for: milliseconds between two of them, here the calls in between."""

    calls = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Clock.calls

    def synchronize(self) -> None:
        """Everything has ended."""

    def elapsed_time(self, end: Clock) -> float:
        return float(end.at - self.at)


def test_a_public_fused_ssim_is_timed_where_one_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(
        from_numpy=lambda array: SimpleNamespace(cuda=lambda: array),
        cuda=SimpleNamespace(Event=Clock),
        no_grad=contextlib.nullcontext,
    )
    monkeypatch.setattr(benchmark, "_torch", lambda: torch)
    with pytest.raises(EngineError, match="neither fused-ssim nor fussim"):
        benchmark.time_fused_ssim(2, rounds=3)

    def fused_ssim(a: np.ndarray, b: np.ndarray, *, train: bool) -> None:
        assert a.shape == b.shape == (2, *benchmark.SHAPE)
        assert not train
        Clock.calls += 1

    module = ModuleType("fussim")
    module.__spec__ = importlib.machinery.ModuleSpec("fussim", None)
    vars(module)["fused_ssim"] = fused_ssim
    monkeypatch.setitem(sys.modules, "fussim", module)
    row = benchmark.time_fused_ssim(2, rounds=3)
    # Each call was one millisecond.
    assert row.samples == (1000.0, 1000.0, 1000.0)
    assert "fussim" in row.name


def test_not_a_number_is_no_agreement() -> None:
    assert not benchmark.Check(name="x", difference=float("nan"), allowed=1.0).passed


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--batch", "-1"], ["--rounds", "many"], ["--quick"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_one_sentence(loaded_driver: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 1
    assert "error: cuInit failed: no CUDA-capable device is detected" in capsys.readouterr().err


def test_the_command_writes_its_samples(
    driver: Any,
    host_compiler: Compiler,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adedge.benchmarks.cuda_device.find_compiler", lambda: host_compiler)
    monkeypatch.setattr("adedge.runtime.cuda.driver.find_compiler", lambda: host_compiler)
    monkeypatch.setenv("ADEDGE_CACHE", str(tmp_path))
    output = tmp_path / "gpu.json"
    assert benchmark.main(["--rounds", "1", "--batch", "2", "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert {len(row["samples"]) for row in written["rows"]} == {1}
    assert "| machine | |" in capsys.readouterr().out
