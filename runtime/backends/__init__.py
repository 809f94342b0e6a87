"""The `Backend` interface: a loaded engine with fixed input and output buffers, `run` and `close`.

Also `MachineInfo`, which an engine is checked against before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from adedge.errors import EngineError

Array = NDArray[np.float32]
_B = TypeVar("_B", bound="FixedBuffers")


@dataclass(frozen=True, kw_only=True)
class MachineInfo:
    """What this machine executes plans with: library version, processor architecture, GPU."""

    library_version: str
    machine: str
    gpu: str | None = None
    compute_capability: str | None = None


class Backend(Protocol):
    """A loaded engine. The caller writes ``input[:n]``, calls ``run(n)`` and reads ``outputs[i][:n]``.

    The buffers never move, so a preprocessor can write directly into them and a scorer can read directly from them.
    Only one thread may use a backend at a time.
    """

    @property
    def batch(self) -> int:
        """The maximum number of frames per `run`."""

    @property
    def input(self) -> Array:
        """Preprocessed frames, float32 (batch, C, H, W), C-contiguous."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """The network's outputs in the graph's order, each float32 (batch, ...)."""

    def run(self, n: int) -> None:
        """Execute the network on ``input[:n]``, 1 <= n <= batch, and fill ``outputs[i][:n]``.

        Raises `EngineError` if n is out of range, if the backend is closed, or if the execution fails.
        """

    def close(self) -> None:
        """Release threads and device memory; a second call does nothing."""


class FixedBuffers:
    """Base of all backends: preallocated host buffers, the check of n, and use as a context manager."""

    def __init__(self, input_shape: Sequence[int], output_shapes: Sequence[Sequence[int]]) -> None:
        """``input_shape`` is (batch, C, H, W); each of ``output_shapes`` also starts with batch."""
        self.batch = int(input_shape[0])
        self.input = self._allocate(input_shape)
        self.outputs = tuple(self._allocate(shape) for shape in output_shapes)
        self._closed = False

    def _allocate(self, shape: Sequence[int]) -> Array:
        try:
            return np.zeros(tuple(shape), np.float32)
        except (MemoryError, ValueError) as error:
            sizes = " x ".join(map(str, shape))
            raise EngineError(
                f"there is not enough memory for a buffer of {sizes} numbers: build the engine with a smaller --batch"
            ) from error

    def _check(self, n: int) -> None:
        if self._closed:
            raise EngineError("this engine is closed: load it again")
        if not 1 <= n <= self.batch:
            raise EngineError(f"run({n}) is out of range: this engine takes 1 to {self.batch} frames at once")

    def close(self) -> None:
        """Refuse further runs."""
        self._closed = True

    def __enter__(self: _B) -> _B:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FunctionBackend(FixedBuffers):
    """A backend that calls a function: the model itself as a reference, or a stand-in for an engine in tests.

    ``function`` maps float32 (n, C, H, W) to a tuple of float32 arrays (n, ...). It is called once on zeros, for the
    outputs' shapes. ``calls`` lists the n of every `run`.

    >>> backend = FunctionBackend(lambda x: (x, 1 - x), shape=(3, 32, 32), batch=4)
    >>> backend.outputs[0].shape
    (4, 3, 32, 32)
    """

    def __init__(
        self, function: Callable[[Array], Sequence[Array]], shape: tuple[int, int, int], batch: int = 1
    ) -> None:
        examples = function(np.zeros((batch, *shape), np.float32))
        super().__init__((batch, *shape), [example.shape for example in examples])
        self.calls: list[int] = []
        self._function = function

    def run(self, n: int) -> None:
        """Call the function on ``input[:n]`` and copy its results into ``outputs``."""
        self._check(n)
        self.calls.append(n)
        for output, result in zip(self.outputs, self._function(self.input[:n]), strict=True):
            output[:n] = result
