"""CUDA graphs and timing events for pycuda streams: pycuda supports neither stream capture nor events in a graph.

Calls a dozen driver functions through ctypes, with the integer ``stream.handle`` of pycuda, and checks every status.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from adedge.errors import EngineError

THREAD_LOCAL = 1  # cuStreamBeginCapture: calls of other threads neither enter the capture nor invalidate it
EXTERNAL = 1  # cuEventRecordWithFlags: in a capture, creates a node that records the time

_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuStreamBeginCapture_v2": (_POINTER, ctypes.c_int),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuEventCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventRecordWithFlags": (_POINTER, _POINTER, ctypes.c_uint),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cuEventDestroy_v2": (_POINTER,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


@cache
def _driver() -> ctypes.CDLL:
    """Load the driver library (pycuda already has) and declare the argument types."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as exc:
        raise EngineError(
            f"this NVIDIA driver cannot capture CUDA graphs ({exc}): update it to CUDA 11.4 or later"
        ) from exc
    return library


def _check(name: str, *arguments: object) -> None:
    result = getattr(_driver(), name)(*arguments)
    if result != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise EngineError(f"{name} failed: {(text.value or b'unknown error').decode()} ({result})")


class Graph:
    """Work captured from a stream, launched as a whole."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` submits to the stream (a ``stream.handle``), without running it.

        Raises the exceptions of ``enqueue``, and `EngineError` if it synchronises or allocates, which cannot be
        captured. The stream remains usable without a graph.
        """
        self._executable = _POINTER()
        _check("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        graph = _POINTER()
        try:
            enqueue()
        except BaseException:
            # End the capture; its status is ignored because the capture is known to have failed.
            _driver().cuStreamEndCapture(stream, ctypes.byref(graph))
            if graph:
                _driver().cuGraphDestroy(graph)
            raise
        _check("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            _check("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, 0)
        finally:
            _check("cuGraphDestroy", graph)

    def launch(self, stream: int) -> None:
        """Enqueue the graph on a stream. Raises `EngineError` if the driver refuses."""
        _check("cuGraphLaunch", self._executable, stream)

    def close(self) -> None:
        """Destroy the graph; a second call does nothing."""
        if self._executable:
            executable, self._executable = self._executable, _POINTER()
            _check("cuGraphExecDestroy", executable)


class TimingEvent:
    """A CUDA event that records the GPU's time, also inside a graph."""

    def __init__(self) -> None:
        """Raises `EngineError` if the driver cannot create an event."""
        self._event = _POINTER()
        _check("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self, stream: int, *, captured: bool = False) -> None:
        """Enqueue the event; set ``captured`` while the stream is being captured. Raises `EngineError` on failure."""
        if captured:
            _check("cuEventRecordWithFlags", self._event, stream, EXTERNAL)
        else:
            _check("cuEventRecord", self._event, stream)

    def ms_since(self, earlier: TimingEvent) -> float:
        """GPU time in ms from an earlier event to this one. Raises `EngineError` if either has not occurred yet."""
        elapsed = ctypes.c_float()
        _check("cuEventElapsedTime", ctypes.byref(elapsed), earlier._event, self._event)
        return elapsed.value

    def close(self) -> None:
        """Destroy the event; a second call does nothing."""
        if self._event:
            event, self._event = self._event, _POINTER()
            _check("cuEventDestroy_v2", event)
