"""CUDA graphs and time stamps on a pycuda stream: pycuda knows neither capture nor time stamps inside a graph.

A dozen functions of the driver through ctypes, on the integer that pycuda's ``stream.handle`` is. Every status is
checked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from adedge.errors import EngineError

THREAD_LOCAL = 1  # cuStreamBeginCapture: what other threads do meanwhile neither enters nor spoils the capture
EXTERNAL = 1  # cuEventRecordWithFlags: inside a capture, a node of the graph that takes the time

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
    """The driver's library, which pycuda has loaded before, with the types of what is called."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as exc:
        raise EngineError(
            f"this NVIDIA driver cannot capture CUDA graphs ({exc}): it needs CUDA 11.4 or later"
        ) from exc
    return library


def _check(name: str, *arguments: object) -> None:
    result = getattr(_driver(), name)(*arguments)
    if result != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise EngineError(f"{name} failed: {(text.value or b'unknown error').decode()} ({result})")


class Graph:
    """Work that was captured on a stream and is launched as a whole."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture what ``enqueue`` puts on the stream (a ``stream.handle``); nothing of it runs.

        Raises what ``enqueue`` raises, or `EngineError` where it does what cannot be captured: waiting, allocating.
        The stream is as it was before, and can be used without a graph.
        """
        self._executable = _POINTER()
        _check("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        graph = _POINTER()
        try:
            enqueue()
        except BaseException:
            # The capture has to be ended; that it was spoilt is known.
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
        """Enqueue all of it on a stream. Raises `EngineError`."""
        _check("cuGraphLaunch", self._executable, stream)

    def close(self) -> None:
        """Give the graph back; a second call does nothing."""
        if self._executable:
            executable, self._executable = self._executable, _POINTER()
            _check("cuGraphExecDestroy", executable)


class TimingEvent:
    """A time stamp that a stream takes when it gets there, also inside a graph."""

    def __init__(self) -> None:
        """Raises `EngineError` where the driver has none to give."""
        self._event = _POINTER()
        _check("cuEventCreate", ctypes.byref(self._event), 0)

    def record(self, stream: int, *, captured: bool = False) -> None:
        """Enqueue the stamp; ``captured`` says that the stream is being captured. Raises `EngineError`."""
        if captured:
            _check("cuEventRecordWithFlags", self._event, stream, EXTERNAL)
        else:
            _check("cuEventRecord", self._event, stream)

    def ms_since(self, earlier: TimingEvent) -> float:
        """GPU time in ms from an earlier stamp to this one, both taken. Raises `EngineError` where they are not."""
        elapsed = ctypes.c_float()
        _check("cuEventElapsedTime", ctypes.byref(elapsed), earlier._event, self._event)
        return elapsed.value

    def close(self) -> None:
        """Give the stamp back; a second call does nothing."""
        if self._event:
            event, self._event = self._event, _POINTER()
            _check("cuEventDestroy_v2", event)
