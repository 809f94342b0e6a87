"""Compiles CUDA kernels to machine code, with nvcc or NVRTC, and caches the result on disk.

Kernels are compiled for one architecture ("sm_87") into a cubin, never into PTX, because PTX from a newer compiler does
not run on an older driver. A cache entry's name contains a digest of everything it depends on: a changed source,
architecture or compiler misses the cache, and no entry goes stale.
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

from adedge.errors import EngineError, reason
from adedge.files import write_whole
from adedge.user_cache import user_cache

log = logging.getLogger(__name__)

KERNELS = Path(__file__).parents[1] / "kernels"
"""Folder of the sources: one .cu per family of kernels, and their headers."""

OPTIONS = ("--std=c++17",)

COMPILE_SECONDS = 300
"""A compiler that takes longer is considered to hang."""


@dataclass(frozen=True)
class Compiler:
    """A CUDA compiler.

    name      "nvcc 13.0.88"; part of the cache key
    version   (major, minor) of its CUDA toolkit: a driver runs code of its own and older major versions
    compile   (source file, architecture "sm_87") -> cubin; raises `EngineError` if compilation fails
    """

    name: str
    version: tuple[int, int]
    compile: Callable[[Path, str], bytes]


@cache
def find_compiler() -> Compiler:
    """Find this machine's compiler: nvcc on PATH or in /usr/local/cuda, else the NVRTC library.

    Raises `EngineError` if there is neither.
    """
    compiler = nvcc() or nvrtc()
    if compiler is None:
        raise EngineError(
            "compiling the CUDA kernels needs nvcc or libnvrtc, and this machine has neither: install the CUDA toolkit "
            "(on a Jetson 'sudo apt install nvidia-jetpack'), or 'pip install nvidia-cuda-nvrtc'"
        )
    return compiler


def cache_folder() -> Path | None:
    """Folder of the cache: $ADEDGE_CACHE/kernels, or adedge/kernels in the user's cache folder; None without either."""
    folder = os.environ.get("ADEDGE_CACHE")
    if folder:
        return Path(folder) / "kernels"
    caches = user_cache()
    return None if caches is None else caches / "adedge" / "kernels"


def kernel_image(
    source: Path, architecture: str, compiler: Compiler | None = None, folder: Path | None = None
) -> bytes:
    """Load the cubin of one source file for one architecture from the cache, or compile it.

    A damaged entry is recompiled and replaced; if the folder is not writable, kernels are compiled at every start. Both
    are logged as warnings. Raises `EngineError` if compilation fails.
    """
    compiler = compiler or find_compiler()
    folder = folder or cache_folder()
    entry = None
    if folder is not None:
        entry = folder / f"{source.stem}-{architecture}-{_key(source, architecture, compiler)[:24]}.cubin"
        cached = _read(entry)
        if cached is not None:
            return cached
    log.info("compiling %s for %s with %s: once for this source and GPU", source.name, architecture, compiler.name)
    image = compiler.compile(source, architecture)
    if entry is None:
        log.warning("this user has no home folder: kernels are compiled at every start; set ADEDGE_CACHE to a folder")
    else:
        _write(entry, image)
    return image


def _key(source: Path, architecture: str, compiler: Compiler) -> str:
    """A digest of everything that the cubin depends on, including all headers that the source may include."""
    digest = hashlib.sha256("\0".join((architecture, compiler.name, *OPTIONS)).encode())
    for path in (source, *sorted(source.parent.glob("*.cuh"))):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _read(entry: Path) -> bytes | None:
    """Read an entry: the image's sha256 in hexadecimal, a line feed, and the image. None if missing or damaged."""
    try:
        stored = entry.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the kernel cache entry %s cannot be read (%s): compiling again", entry, reason(error))
        return None
    digest, _, image = stored.partition(b"\n")
    if hashlib.sha256(image).hexdigest().encode() != digest:
        log.warning("the kernel cache entry %s is damaged: compiling again", entry)
        return None
    return image


def _write(entry: Path, image: bytes) -> None:
    """Write an entry atomically: readers and other writers see a complete entry or none."""
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(entry, hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
    except OSError as error:
        log.warning(
            "the kernel cache %s cannot be written (%s): kernels are compiled at every start; "
            "set ADEDGE_CACHE to a writable folder",
            entry.parent,
            reason(error),
        )


def nvcc() -> Compiler | None:
    """The CUDA toolkit's compiler, or None if this machine has none."""
    path = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if path is None:
        return None
    version = _run([path, "--version"]).stdout
    release = re.search(r"release (\d+)\.(\d+), V([\d.]+)", version)
    if release is None:
        return None

    def compile_(source: Path, architecture: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "kernels.cubin"
            result = _run([path, "-cubin", f"-arch={architecture}", *OPTIONS, "-o", str(image), str(source)])
            if result.returncode != 0:
                raise _compile_error(f"nvcc {release[3]}", source, architecture, result.stderr or result.stdout)
            return image.read_bytes()

    return Compiler(f"nvcc {release[3]}", (int(release[1]), int(release[2])), compile_)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]} does not run ({error}): check the CUDA toolkit's installation") from error


def _compile_error(compiler: str, source: Path, architecture: str, output: str) -> EngineError:
    """The first error in a compiler's output, as one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower() or "fatal" in line.lower()), "")
    reason = first or (lines[0] if lines else "it gave no reason")
    return EngineError(f"{compiler} cannot compile {source.name} for {architecture}: {reason}")


def nvrtc() -> Compiler | None:
    """The NVRTC library as a compiler, or None if it cannot be loaded."""
    library = next(filter(None, map(_load_nvrtc, _nvrtc_paths())), None)
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
                output = _nvrtc_bytes(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise _compile_error(name, source, architecture, output or f"unknown architecture {architecture}")
            return _nvrtc_bytes(library, program, "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(name, (major.value, minor.value), compile_)


def _load_nvrtc(path: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(path)
        if Path(path).is_absolute():
            # NVRTC opens these by name when it compiles, but the loader does not search Python packages.
            for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))
        return library
    except OSError:
        return None


def _nvrtc_paths() -> Iterator[str]:
    """Names known to the loader, then the folders in which the toolkit and NVIDIA's Python packages install NVRTC."""
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
    for folder in (Path("/usr/local/cuda/lib64"), *(Path(entry) for entry in sys.path)):
        for pattern in ("libnvrtc.so.*", "nvidia/*/lib/libnvrtc.so.*"):
            yield from map(str, sorted(folder.glob(pattern), reverse=True))


def _nvrtc_bytes(library: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{kind}")(program, buffer)
    return buffer.raw
