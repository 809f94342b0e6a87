"""What is compiled when, what the cache keeps, and how it meets damage; and the two compilers, where they are."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adedge.errors import EngineError
from adedge.runtime.cuda import kernel_cache
from adedge.runtime.cuda.kernel_cache import Compiler, cache_folder, find_compiler, kernel_image, nvcc, nvrtc

KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }\n'


class Counting:
    """A compiler that answers with what it was asked, and remembers how often."""

    def __init__(self, name: str = "nvcc 13.0.88") -> None:
        self.calls = 0
        self.compiler = Compiler(name, (13, 0), self.compile)

    def compile(self, source: Path, architecture: str) -> bytes:
        self.calls += 1
        return f"{source.read_text()}\n{architecture}".encode() + b"\0\n\xff"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "factor.cuh").write_text("#define FACTOR 2\n")
    (folder / "twice.cu").write_text('#include "factor.cuh"\n' + KERNEL)
    return folder / "twice.cu"


def test_a_kernel_is_compiled_once(source: Path, tmp_path: Path) -> None:
    counting, folder = Counting(), tmp_path / "cache"
    images = [kernel_image(source, "sm_87", counting.compiler, folder) for _ in range(3)]
    assert counting.calls == 1
    assert set(images) == {counting.compile(source, "sm_87")}
    assert [path.suffix for path in folder.iterdir()] == [".cubin"]
    assert folder.stat().st_mode & 0o077 == 0


def change_source(source: Path) -> None:
    source.write_text(source.read_text() + "// changed\n")


def change_header(source: Path) -> None:
    source.with_name("factor.cuh").write_text("#define FACTOR 3\n")


@pytest.mark.parametrize("change", [change_source, change_header])
def test_a_changed_file_is_compiled_again(source: Path, tmp_path: Path, change: object) -> None:
    counting = Counting()
    kernel_image(source, "sm_87", counting.compiler, tmp_path)
    change(source)  # type: ignore[operator]
    kernel_image(source, "sm_87", counting.compiler, tmp_path)
    assert counting.calls == 2


def test_architectures_and_compilers_have_entries_of_their_own(source: Path, tmp_path: Path) -> None:
    old, new = Counting(), Counting("nvcc 13.1.2")
    for counting, architecture in ((old, "sm_87"), (old, "sm_90"), (new, "sm_87"), (old, "sm_87")):
        image = kernel_image(source, architecture, counting.compiler, tmp_path)
        assert image == counting.compile(source, architecture)
    assert (old.calls - 3, new.calls - 1) == (2, 1)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:70] + b"x" + b[71:], lambda b: b"0" + b]
)
def test_a_damaged_entry_is_replaced(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    counting, folder = Counting(), tmp_path / "cache"
    whole = kernel_image(source, "sm_87", counting.compiler, folder)
    entry = next(folder.iterdir())
    entry.write_bytes(damage(entry.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, logger="adedge"):
        assert kernel_image(source, "sm_87", counting.compiler, folder) == whole
    assert f"{entry} is damaged: compiling again" in caplog.text
    assert kernel_image(source, "sm_87", counting.compiler, folder) == whole
    assert counting.calls == 2


def test_a_cache_that_cannot_be_written_costs_time_and_says_so(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting, folder = Counting(), tmp_path / "file"
    folder.write_text("not a folder")  # refuses root too, which may write into a read-only folder
    with caplog.at_level(logging.WARNING, logger="adedge"):
        for _ in range(2):
            kernel_image(source, "sm_87", counting.compiler, folder / "kernels")
    assert counting.calls == 2
    assert "cannot be written" in caplog.text
    assert "ADEDGE_CACHE" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_still_serves_what_it_has(source: Path, tmp_path: Path) -> None:
    counting, folder = Counting(), tmp_path / "cache"
    kernel_image(source, "sm_87", counting.compiler, folder)
    folder.chmod(0o500)
    try:
        kernel_image(source, "sm_87", counting.compiler, folder)
        kernel_image(source, "sm_90", counting.compiler, folder)
    finally:
        folder.chmod(0o700)
    assert counting.calls == 2


def test_a_failed_compilation_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    def refuse(path: Path, architecture: str) -> bytes:
        raise EngineError("refused")

    with pytest.raises(EngineError, match="refused"):
        kernel_image(source, "sm_87", Compiler("none", (0, 0), refuse), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_two_at_once_leave_a_whole_entry(source: Path, tmp_path: Path) -> None:
    counting = Counting()
    arguments = (source, "sm_87", counting.compiler, tmp_path / "cache")
    threads = [threading.Thread(target=kernel_image, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = counting.calls
    assert kernel_image(*arguments) == counting.compile(source, "sm_87")
    assert counting.calls == calls + 1  # that of this assertion
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADEDGE_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a" / "kernels"
    monkeypatch.delenv("ADEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "adedge" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adedge" / "kernels"


def test_a_user_without_a_home_compiles_at_every_start(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ADEDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    counting = Counting()
    assert cache_folder() is None
    images = {kernel_image(source, "sm_87", counting.compiler) for _ in range(2)}
    assert (len(images), counting.calls) == (1, 2)
    assert "set ADEDGE_CACHE" in caplog.text


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "nvcc", lambda: None)
    monkeypatch.setattr(kernel_cache, "nvrtc", lambda: None)
    find_compiler.cache_clear()
    with pytest.raises(EngineError, match="needs nvcc or libnvrtc"):
        find_compiler()
    find_compiler.cache_clear()


@pytest.fixture(params=[nvcc, nvrtc], ids=["nvcc", "nvrtc"])
def compiler(request: pytest.FixtureRequest) -> Compiler:
    found: Compiler | None = request.param()
    if found is None:
        pytest.skip(f"{request.param.__name__} is not on this machine")
    return found


def test_a_real_compiler_makes_machine_code(compiler: Compiler, source: Path) -> None:
    image = compiler.compile(source, "sm_87")
    assert image.startswith(b"\x7fELF")
    assert b"twice" in image
    assert compiler.version >= (11, 4)
    assert str(compiler.version[0]) in compiler.name


def test_nvrtc_finds_all_of_itself(source: Path) -> None:
    """In a process of its own: PyTorch, where another test imported it, has loaded NVRTC's other library already."""
    if nvrtc() is None:
        pytest.skip("nvrtc is not on this machine")
    code = (
        "import pathlib, sys; from adedge.runtime.cuda.kernel_cache import nvrtc; "
        "sys.exit(not nvrtc().compile(pathlib.Path(sys.argv[1]), 'sm_87'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "architecture", "message"),
    [
        ("__global__ void f() { undeclared = 1; }", "sm_87", "twice.cu for sm_87: .*undeclared"),
        (KERNEL, "sm_13", "twice.cu for sm_13: .*(Unsupported|invalid value)"),
    ],
    ids=["source", "architecture"],
)
def test_a_real_compilers_refusal_is_one_sentence(
    compiler: Compiler, source: Path, text: str, architecture: str, message: str
) -> None:
    source.write_text(text)
    with pytest.raises(EngineError, match=message) as caught:
        compiler.compile(source, architecture)
    assert "\n" not in str(caught.value)


def test_an_nvcc_without_a_host_compiler_says_so(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in nvcc that knows its version and fails to compile, as one on a machine without gcc does."""
    fake = tmp_path / "nvcc"
    fake.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Cuda compilation tools, release 12.6, V12.6.85"; exit; fi\n'
        'echo "nvcc fatal   : Failed to find a host compiler" >&2; exit 1\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(fake))
    compiler = nvcc()
    assert compiler is not None
    assert (compiler.name, compiler.version) == ("nvcc 12.6.85", (12, 6))
    with pytest.raises(EngineError, match=r"nvcc 12.6.85 cannot compile twice.cu for sm_87: .*host compiler"):
        compiler.compile(source, "sm_87")
