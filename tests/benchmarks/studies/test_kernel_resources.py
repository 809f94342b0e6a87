"""Every kernel compiles for every device that is promised, within its registers; the figures are the compiler's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from adedge.benchmarks.studies.kernel_resources import ARCHITECTURES, KernelResources, compiled, main, resources
from adedge.errors import EngineError
from adedge.runtime.cuda.kernel_cache import KERNELS, Compiler, nvcc, nvrtc

FOUND: dict[str, Callable[[], Compiler | None]] = {"nvcc": cache(nvcc), "nvrtc": cache(nvrtc)}
ENTRY = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(', re.MULTILINE)


# NVRTC, which the development environment brings, for all; nvcc, which a Jetson has, for a Jetson.
@pytest.mark.parametrize(
    ("name", "architecture"), [*(("nvrtc", architecture) for architecture in ARCHITECTURES), ("nvcc", "sm_87")]
)
def test_every_kernel_compiles_and_stays_in_its_registers(name: str, architecture: str) -> None:
    compiler = FOUND[name]()
    if compiler is None:
        pytest.skip(f"this machine has no {name}")
    kernels = compiled(compiler, architecture)
    assert {name: sorted(kernel.kernel for kernel in found) for name, found in kernels.items()} == {
        source.name: sorted(ENTRY.findall(source.read_text())) for source in KERNELS.glob("*.cu")
    }
    for kernel in (kernel for found in kernels.values() for kernel in found):
        # One version of NVRTC saves two registers of one kernel for sm_110; an array would be many times that.
        assert kernel.stack_bytes <= 16, kernel
        assert 0 < kernel.registers <= 255
        # What every GPU gives a block without being asked.
        assert kernel.shared_bytes <= 48 << 10
        assert kernel.blocks(architecture)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="this machine has no nvcc")
@pytest.mark.parametrize("architecture", ["sm_87", "sm_90"])
def test_the_figures_are_those_that_nvcc_prints(tmp_path: Path, architecture: str) -> None:
    source, image = tmp_path / "spilling.cu", tmp_path / "image.cubin"
    source.write_text(
        """
        extern "C" __global__ void small(float *x) { x[threadIdx.x] = 1; }
        extern "C" __global__ void __launch_bounds__(1024, 2) large(const float *x, float *y) {
          __shared__ float all[1000];
          float own[64];
          for (int i = 0; i < 64; i++) own[i] = x[i * blockDim.x + threadIdx.x];
          all[threadIdx.x] = own[0];
          __syncthreads();
          for (int i = 0; i < 64; i++) y[i] = own[(i * 7 + (int)own[i]) % 64] + all[i];
        }
        """
    )
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-o", str(image), str(source)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    expected = {}
    for part in said.split("Compiling entry function")[1:]:
        name = re.findall(r"'(\w+)'", part)[0]
        shared = re.search(r"(\d+) bytes smem", part)
        expected[name] = (
            int(re.findall(r"Used (\d+) registers", part)[0]),
            int(shared[1]) if shared else 0,
            int(re.findall(r"(\d+) bytes stack frame", part)[0]),
        )
    found = {kernel.kernel: kernel for kernel in resources(image.read_bytes())}
    assert found.keys() == expected.keys() == {"small", "large"}
    for name, (registers, shared_bytes, stack_bytes) in expected.items():
        # From sm_90 on the machine code counts the 1024 bytes that CUDA keeps for itself, and nvcc does not.
        reserved = 1024 if shared_bytes and architecture != "sm_87" else 0
        assert found[name] == KernelResources(name, registers, shared_bytes + reserved, stack_bytes)
    assert found["large"].stack_bytes > 0


def test_blocks_that_fit_into_a_multiprocessor() -> None:
    # 64 registers x 256 threads are a quarter of 65536; 40 KiB go 4 times into 164 KiB, 5 times into 228 KiB.
    assert KernelResources("k", 64, 0, 0).blocks("sm_90") == 4
    assert KernelResources("k", 32, (40 << 10) - 1024, 0).blocks("sm_87") == 4
    assert KernelResources("k", 32, 40 << 10, 0).blocks("sm_90") == 5
    assert KernelResources("k", 16, 0, 0).blocks("sm_87") == 6
    assert KernelResources("k", 16, 0, 0).blocks("sm_75") is None


def test_what_is_no_machine_code_is_refused() -> None:
    with pytest.raises(EngineError, match="an ELF file was expected"):
        resources(b"// PTX")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    if not any(found() for found in FOUND.values()):
        assert main([]) == 1
        assert "needs nvcc or libnvrtc" in capsys.readouterr().err
        return
    assert main(["--architectures", "sm_87"]) == 0
    assert re.search(r"^dssim7 +sm_87 +\d+ +\d+ +0 +\d$", capsys.readouterr().out, re.MULTILINE)
    assert main(["--architectures", "sm_1"]) == 1
    assert "sm_1" in capsys.readouterr().err
