"""Execute a graph with ONNX Runtime on a CPU: the backend for machines without an NVIDIA GPU."""

from __future__ import annotations

from typing import Any

from adedge.errors import EngineError, MissingDependency
from adedge.onnx_data import refuse_external
from adedge.processors import physical_cores
from adedge.runtime.backends import FixedBuffers


def library_version() -> str:
    """The installed ONNX Runtime's version. Raises `MissingDependency`."""
    return str(_onnxruntime().__version__)


class OnnxRuntimeBackend(FixedBuffers):
    """A graph executed by ONNX Runtime in float32 buffers that it reads and writes in place.

    ``graph`` is the serialised ONNX model: one float32 input (N, C, H, W) and float32 outputs (N, ...), with N dynamic,
    or 1 if ``batch`` is 1. ``or_fewer`` also accepts N = 1 with a larger ``batch``, which it reduces to 1. ``threads``
    defaults to `adedge.processors.physical_cores`. ``spin`` keeps threads busy-waiting between frames: this saves their
    wake-up (tens of microseconds), but takes the cores from preprocessing and scoring, so it is off by default. The
    constructor runs the graph once on zeros, to allocate ONNX Runtime's arena before the first frame.

    Raises `EngineError` if the graph cannot be loaded or run, or keeps weights in other files; `MissingDependency`
    without ONNX Runtime.
    """

    def __init__(
        self, graph: bytes, *, batch: int = 1, or_fewer: bool = False, threads: int | None = None, spin: bool = False
    ) -> None:
        if batch < 1:
            raise EngineError(f"a batch of {batch} is out of range: it must be at least 1")
        self.threads = physical_cores() if threads is None else threads
        self._session: Any = _session(graph, self.threads, spin)
        if or_fewer and self._session.get_inputs()[0].shape[0] == 1:
            batch = 1
        self.input_name, shape = _input_signature(self._session, batch)
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        super().__init__((batch, *shape), _output_shapes(self._session, batch, shape))
        self._bindings: dict[int, Any] = {}

    def run(self, n: int) -> None:
        """Execute the graph from ``input[:n]`` to ``outputs[i][:n]`` without copies."""
        self._check(n)
        binding = self._bindings.get(n) or self._bind(n)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as exc:
            raise EngineError(f"ONNX Runtime failed while running the graph: {_first_line(exc)}") from exc

    def close(self) -> None:
        """Release the session and its threads."""
        super().close()
        self._bindings.clear()
        self._session = None

    def _bind(self, n: int) -> Any:
        """Bind the first n frames of the buffers by address; this object keeps the buffers alive."""
        binding = self._session.io_binding()
        for bind, name, buffer in (
            (binding.bind_input, self.input_name, self.input),
            *((binding.bind_output, *pair) for pair in zip(self.output_names, self.outputs, strict=True)),
        ):
            bind(name, "cpu", 0, buffer.dtype.type, (n, *buffer.shape[1:]), buffer.ctypes.data)
        self._bindings[n] = binding
        return binding


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependency("onnxruntime", "onnxruntime", "executing an ONNX Runtime engine") from exc
    return onnxruntime


def _session(graph: bytes, threads: int, spin: bool) -> Any:
    ort = _onnxruntime()
    refusal = f"ONNX Runtime {ort.__version__} cannot load the graph: "
    refuse_external(graph, refusal + "it")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise EngineError(refusal + _first_line(exc)) from exc


def _input_signature(session: Any, batch: int) -> tuple[str, tuple[int, ...]]:
    """The name and (C, H, W) of the graph's only input. Raises `EngineError`."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise EngineError(f"the graph has {len(inputs)} inputs, but one (the frames) is expected: export it again")
    first = inputs[0]
    if first.type != "tensor(float)":
        raise EngineError(f"the graph's input '{first.name}' is {first.type}, not tensor(float): export it again")
    if len(first.shape) != 4 or not all(isinstance(size, int) for size in first.shape[1:]):
        raise EngineError(
            f"the graph's input '{first.name}' is {first.shape}, not (N, C, H, W) with fixed C, H and W: "
            "export it again"
        )
    if isinstance(first.shape[0], int) and not first.shape[0] == batch == 1:
        raise EngineError(f"the graph takes exactly {first.shape[0]} frame(s) at once: export it with a dynamic batch")
    return first.name, tuple(first.shape[1:])


def _output_shapes(session: Any, batch: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Each output's (batch, ...), from a run on zeros, since exporters leave sizes symbolic. Raises `EngineError`."""
    import numpy as np

    name = session.get_inputs()[0].name
    try:
        results = session.run(None, {name: np.zeros((batch, *shape), np.float32)})
    except Exception as exc:
        raise EngineError(f"ONNX Runtime failed while running the graph on zeros: {_first_line(exc)}") from exc
    for output, result in zip(session.get_outputs(), results, strict=True):
        if result.dtype != np.float32 or result.ndim < 1 or result.shape[0] != batch:
            raise EngineError(
                f"the graph's output '{output.name}' is {result.dtype} {result.shape}, not float32 ({batch}, ...): "
                "export it again"
            )
    return [result.shape for result in results]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
