"""Compiles a .cu of runtime/kernels for the host: see README.md."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = ("-std=c++17", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
ENTRY = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(', re.MULTILINE)

EXPORTS = """
namespace {{
const host_cuda::Kernel KERNELS[] = {{
{kernels}
}};
const host_cuda::Kernel *find(const char *name) {{
  for (const host_cuda::Kernel &kernel : KERNELS)
    if (!strcmp(kernel.name, name)) return &kernel;
  return nullptr;
}}
}}
extern "C" {{
int host_has(const char *name) {{ return find(name) != nullptr; }}
int host_params(const char *name, int *sizes, int capacity) {{
  const host_cuda::Kernel *kernel = find(name);
  if (!kernel || static_cast<int>(kernel->sizes.size()) > capacity) return -1;
  for (int size : kernel->sizes) *sizes++ = size;
  return static_cast<int>(kernel->sizes.size());
}}
int host_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared, void **params) {{
  const host_cuda::Kernel *kernel = find(name);
  return !(kernel && shared == 0 && host_cuda::launch(*kernel, grid, block, params));
}}
void host_reverse(int on) {{ host_cuda::block.reverse = on; }}
}}
"""


def compiler() -> str | None:
    """Path of g++, None where there is none."""
    return shutil.which("g++")


def kernel_names(source: Path) -> list[str]:
    """The entry points that a .cu defines."""
    return ENTRY.findall(source.read_text())


def cache_folder() -> Path:
    """A folder of this user's that outlives a test run and is shared by tests that run side by side."""
    folder = Path(tempfile.gettempdir()) / f"adedge-host-cuda-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else: remove it")
    return folder


def library(source: Path, folder: Path | None = None, *, sanitize: bool = False) -> Path:
    """The library of one .cu, compiled unless it is in ``folder``, which is `cache_folder` unless given.

    Raises CalledProcessError where g++ fails.
    """
    folder = folder or cache_folder()
    flags = (*FLAGS, *(SANITIZERS if sanitize else ("-O2",)))
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in (source, *sorted(source.parent.glob("*.cuh")), *sorted(HERE.glob("*.h")), Path(__file__)):
        digest.update(path.read_bytes())
    target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    entries = "\n".join(f'    host_cuda::make_kernel<{name}>("{name}"),' for name in kernel_names(source))
    # Two test runs may compile the same source at once: each under names of its own, renamed when it is complete.
    unit = target.with_suffix(f".{os.getpid()}.cpp")
    unit.write_text(f'#include "{source}"\n' + EXPORTS.format(kernels=entries))
    unfinished = target.with_suffix(f".{os.getpid()}.part")
    forced = ("-include", str(HERE / "host_cuda.h"))
    try:
        subprocess.run(["g++", *flags, *forced, "-o", str(unfinished), str(unit)], check=True)
        return unfinished.rename(target)
    finally:
        unit.unlink()
