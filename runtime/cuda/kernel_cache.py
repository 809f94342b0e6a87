"""CUDA kernels as machine code: compiled by nvcc or NVRTC, whichever is there, and kept on disk.

A kernel is compiled for one architecture ("sm_87") into a cubin, never into PTX: PTX of a newer compiler does not run
on an older driver. What was compiled is kept under a name that holds a digest of everything it depends on, so a changed
source, architecture or compiler finds nothing and compiles again, and no entry is ever stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from adedge.errors import EngineError
from adedge.files import write_whole

log = logging.getLogger(__name__)

KERNELS = Path(__file__).parents[1] / "kernels"
"""Where the sources are: one .cu for each family of kernels, and what they include."""

OPTIONS = ("--std=c++17",)

COMPILE_SECONDS = 300
"""A compiler that takes longer hangs."""


@dataclass(frozen=True)
class Compiler:
    """What makes machine code of a source.

    name      "nvcc 13.0.88": part of the cache's key
    version   of the CUDA toolkit it belongs to: a driver runs code of its own major version and older ones
    compile   (source file, architecture "sm_87") -> the image that the driver loads; raises `EngineError`
    """

    name: str
    version: tuple[int, int]
    compile: Callable[[Path, str], bytes]


@cache
def find_compiler() -> Compiler:
    """The compiler of this machine: nvcc on PATH or in /usr/local/cuda, else NVRTC's library.

    Raises `EngineError` where there is neither.
    """
    compiler = nvcc() or nvrtc()
    if compiler is None:
        raise EngineError(
            "compiling the CUDA kernels needs nvcc or libnvrtc, and this machine has neither: install the CUDA toolkit "
            "(on a Jetson 'sudo apt install nvidia-jetpack'), or 'pip install nvidia-cuda-nvrtc'"
        )
    return compiler


def cache_folder() -> Path:
    """Where compiled kernels are kept: $ADEDGE_CACHE/kernels, or adedge/kernels in the user's cache folder."""
    chosen = os.environ.get("ADEDGE_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adedge" / "kernels"


def kernel_image(
    source: Path, architecture: str, compiler: Compiler | None = None, folder: Path | None = None
) -> bytes:
    """The image of one source file for one architecture, from the cache or compiled now.

    A damaged entry is compiled again and replaced; a folder that cannot be written costs the compilation at every
    start. Both are said in the log, and neither is an error. Raises `EngineError` where it cannot be compiled.
    """
    compiler = compiler or find_compiler()
    folder = folder or cache_folder()
    entry = folder / f"{source.stem}-{architecture}-{_key(source, architecture, compiler)[:24]}.cubin"
    kept = _read(entry)
    if kept is not None:
        return kept
    log.info("compiling %s for %s with %s: once for this source and GPU", source.name, architecture, compiler.name)
    image = compiler.compile(source, architecture)
    _write(entry, image)
    return image


def _key(source: Path, architecture: str, compiler: Compiler) -> str:
    """A digest of everything that the image depends on, with the headers that the source may include."""
    digest = hashlib.sha256("\0".join((architecture, compiler.name, *OPTIONS)).encode())
    for path in (source, *sorted(source.parent.glob("*.cuh"))):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _read(entry: Path) -> bytes | None:
    """An entry is the hexadecimal sha256 of its image, a line feed, and the image; None where there is no whole one."""
    try:
        stored = entry.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the kernel cache entry %s cannot be read (%s): compiling again", entry, error.strerror)
        return None
    digest, _, image = stored.partition(b"\n")
    if hashlib.sha256(image).hexdigest().encode() != digest:
        log.warning("the kernel cache entry %s is damaged: compiling again", entry)
        return None
    return image


def _write(entry: Path, image: bytes) -> None:
    """Keep an entry; a reader, or a second writer, meets a whole one or none."""
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(entry, hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
    except OSError as error:
        log.warning(
            "the kernel cache %s cannot be written (%s): kernels are compiled at every start; "
            "name a folder that can with ADEDGE_CACHE",
            entry.parent,
            error.strerror,
        )


def nvcc() -> Compiler | None:
    """The toolkit's compiler, or None where this machine has none."""
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return None
    said = _run([path, "--version"]).stdout
    release = re.search(r"release (\d+)\.(\d+), V([\d.]+)", said)
    if release is None:
        return None

    def compile_(source: Path, architecture: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "kernels.cubin"
            done = _run([path, "-cubin", f"-arch={architecture}", *OPTIONS, "-o", str(image), str(source)])
            if done.returncode != 0:
                raise _refusal(f"nvcc {release[3]}", source, architecture, done.stderr or done.stdout)
            return image.read_bytes()

    return Compiler(f"nvcc {release[3]}", (int(release[1]), int(release[2])), compile_)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]} does not run ({error}): repair the CUDA toolkit") from error


def _refusal(compiler: str, source: Path, architecture: str, said: str) -> EngineError:
    """The compiler's first error as one sentence."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower() or "fatal" in line.lower()), "")
    reason = first or (lines[0] if lines else "it gave no reason")
    return EngineError(f"{compiler} cannot compile {source.name} for {architecture}: {reason}")


def nvrtc() -> Compiler | None:
    """NVIDIA's compiler as a library, or None where none can be loaded."""
    library = next(filter(None, map(_library, _nvrtc_paths())), None)
    if library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    name = f"nvrtc {major.value}.{minor.value}"

    def compile_(source: Path, architecture: str) -> bytes:
        options = [f"--gpu-architecture={architecture}", *OPTIONS, f"--include-path={source.parent}"]
        program = ctypes.c_void_p()
        text = source.read_bytes()
        library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if library.nvrtcCompileProgram(program, len(options), arguments) != 0:
                said = _nvrtc_bytes(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise _refusal(name, source, architecture, said or f"unknown architecture {architecture}")
            return _nvrtc_bytes(library, program, "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(name, (major.value, minor.value), compile_)


def _library(path: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(path)
        if Path(path).is_absolute():
            # NVRTC opens these by name when it compiles, and the loader does not look into Python's packages.
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))
        return library
    except OSError:
        return None


def _nvrtc_paths() -> Iterator[str]:
    """Names that the loader knows, then the places where the toolkit and NVIDIA's Python packages put the library."""
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
    for folder in (Path("/usr/local/cuda/lib64"), *(Path(entry) for entry in sys.path)):
        for pattern in ("libnvrtc.so.*", "nvidia/*/lib/libnvrtc.so.*"):
            yield from map(str, sorted(folder.glob(pattern), reverse=True))


def _nvrtc_bytes(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw
