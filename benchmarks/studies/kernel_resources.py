"""Lists the registers, shared memory and stack of the CUDA kernels for each architecture; requires no GPU.

    python -m adedge.benchmarks.studies.kernel_resources [--architectures sm_87,sm_90,sm_110]

Compiles every kernel with this machine's nvcc or NVRTC and reads the figures from the machine code. A stack means that
values spill from registers to memory; the command then exits with 1, as it does if a kernel does not compile. "blocks"
is the number of blocks of 256 threads that one multiprocessor holds at once.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adedge.errors import EngineError
from adedge.runtime.cuda.kernel_cache import KERNELS, Compiler, find_compiler

ARCHITECTURES = ("sm_87", "sm_90", "sm_110")
"""Jetson Orin, Hopper (data centre), Jetson Thor."""

REGISTERS_PER_MULTIPROCESSOR = 65536
SHARED_BYTES_PER_MULTIPROCESSOR = {"sm_87": 164 << 10, "sm_90": 228 << 10, "sm_110": 228 << 10}
SHARED_BYTES_RESERVED = 1 << 10  # by CUDA for each block; from sm_90 on the machine code includes them
THREADS_PER_BLOCK = 256
ROW = "{:24} {:8} {:>9} {:>7} {:>6} {:>6}\n"
THREADS_PER_MULTIPROCESSOR = {"sm_87": 1536, "sm_90": 2048, "sm_110": 2048}


@dataclass(frozen=True)
class KernelResources:
    """Resources of one kernel: registers per thread, static shared memory per block, stack per thread (bytes)."""

    kernel: str
    registers: int
    shared_bytes: int
    stack_bytes: int

    def blocks(self, architecture: str) -> int | None:
        """Blocks of 256 threads that one multiprocessor holds at once; None for an unknown architecture."""
        if architecture not in SHARED_BYTES_PER_MULTIPROCESSOR:
            return None
        # Registers are allocated to warps in units of 256.
        warp = -(-self.registers * 32 // 256) * 256
        reserved = SHARED_BYTES_RESERVED if architecture == "sm_87" else 0
        limits = (
            REGISTERS_PER_MULTIPROCESSOR // (warp * THREADS_PER_BLOCK // 32),
            SHARED_BYTES_PER_MULTIPROCESSOR[architecture] // max(1, self.shared_bytes + reserved),
            THREADS_PER_MULTIPROCESSOR[architecture] // THREADS_PER_BLOCK,
        )
        return min(limits)


@dataclass(frozen=True)
class _Section:
    name: str
    data: bytes
    size: int


def resources(image: bytes) -> list[KernelResources]:
    """The kernels of a cubin, sorted by name. Raises `EngineError` if ``image`` is not a cubin.

    A cubin is an ELF file. The size of section ".nv.shared.k" is the static shared memory of kernel k; the attributes
    in ".nv.info" give, per kernel symbol, the registers (attribute 0x2f) and the stack frame (0x11).
    """
    if image[:6] != b"\x7fELF\x02\x01":
        raise EngineError("this is not GPU machine code: an ELF file was expected")
    sections = _sections(image)
    symbols = _symbols(sections)
    registers: dict[str, int] = {}
    stack: dict[str, int] = {}
    for attribute, payload in _attributes(sections[".nv.info"].data):
        if attribute in (0x2F, 0x11):
            symbol, value = struct.unpack("<II", payload[:8])
            (registers if attribute == 0x2F else stack)[symbols[symbol]] = value
    kernels = sorted(name.removeprefix(".nv.info.") for name in sections if name.startswith(".nv.info."))
    return [
        KernelResources(
            kernel,
            registers[kernel],
            sections[f".nv.shared.{kernel}"].size if f".nv.shared.{kernel}" in sections else 0,
            stack.get(kernel, 0),
        )
        for kernel in kernels
    ]


def _sections(image: bytes) -> dict[str, _Section]:
    (table,) = struct.unpack_from("<Q", image, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
    entries = [struct.unpack_from("<IIQQQQIIQQ", image, table + index * entry_size) for index in range(count)]
    names = _contents(image, entries[names_index])
    sections = {}
    for entry in entries:
        name = _text(names, entry[0])
        sections[name] = _Section(name, _contents(image, entry), entry[5])
    return sections


def _contents(image: bytes, entry: Sequence[int]) -> bytes:
    """The bytes of a section; shared memory (type 8, "no bits") has none in the file."""
    return b"" if entry[1] == 8 else image[entry[4] : entry[4] + entry[5]]


def _symbols(sections: dict[str, _Section]) -> list[str]:
    names = sections[".strtab"].data
    return [_text(names, entry[0]) for entry in struct.iter_unpack("<IBBHQQ", sections[".symtab"].data)]


def _text(names: bytes, offset: int) -> str:
    return names[offset : names.index(b"\0", offset)].decode()


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, payload) of format 4; attributes of other formats store their value in the size field instead."""
    offset = 0
    while offset + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, offset)
        offset += 4
        if form == 4:
            yield attribute, data[offset : offset + size]
            offset += size


def compiled(compiler: Compiler, architecture: str, folder: Path = KERNELS) -> dict[str, list[KernelResources]]:
    """The kernels of each source file. Raises `EngineError` if one does not compile."""
    return {source.name: resources(compiler.compile(source, architecture)) for source in sorted(folder.glob("*.cu"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a kernel does not compile or needs a stack."""
    parser = argparse.ArgumentParser(prog="python -m adedge.benchmarks.studies.kernel_resources", description=__doc__)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="comma-separated architectures")
    architectures = parser.parse_args(arguments).architectures.split(",")
    failed = False
    try:
        compiler = find_compiler()
        sys.stdout.write(f"compiled by {compiler.name}; registers per thread, bytes of shared memory per block\n")
        sys.stdout.write(ROW.format("kernel", "arch", "registers", "shared", "stack", "blocks"))
        for architecture in architectures:
            for kernels in compiled(compiler, architecture).values():
                for kernel in kernels:
                    failed = failed or kernel.stack_bytes > 0
                    figures = (kernel.registers, kernel.shared_bytes, kernel.stack_bytes)
                    sys.stdout.write(
                        ROW.format(kernel.kernel, architecture, *figures, kernel.blocks(architecture) or "")
                    )
    except EngineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
