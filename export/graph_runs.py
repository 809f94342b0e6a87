"""Running graphs of users with ONNX Runtime, each run under a deadline, and simplifying them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.calibration.onnx_model import ModelProto, load
from adedge.errors import EngineError, MissingDependency
from adedge.processors import physical_cores

_FATAL = 4  # ONNX Runtime's log level: errors come as exceptions, so that it need not print them as well


def run_graph(
    path: Path, graph: bytes, x: NDArray[np.float32], *, batch: int, timeout_s: float, unoptimised: bool = False
) -> list[list[NDArray[Any]]]:
    """The outputs of each run on ``batch`` of the frames (N, C, H, W); an incomplete last batch is skipped.

    ``path`` is only named in messages. ONNX Runtime computes constants while it loads a graph, where nothing can end
    it; ``unoptimised`` leaves them to the first run. Raises `EngineError` if ONNX Runtime cannot run the graph, or if
    one run takes longer than ``timeout_s``.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = _FATAL
    try:
        session = ort.InferenceSession(
            graph,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"] if unoptimised else None,
        )
        name = session.get_inputs()[0].name
        starts = range(0, len(x) - batch + 1, batch)
        return [_run_once(session, {name: x[start : start + batch]}, timeout_s) for start in starts]
    except TimeoutError as error:
        frames = "one frame" if batch == 1 else f"{batch} frames"
        raise EngineError(
            f"{path} takes longer than {timeout_s:g} s for {frames}: if it is that slow, raise --timeout; if a loop in "
            "it never ends, export it again"
        ) from error
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise EngineError(f"ONNX Runtime cannot run {path}: {_first_line(error)}") from error


def _run_once(session: Any, inputs: Mapping[str, NDArray[np.float32]], timeout_s: float) -> list[NDArray[Any]]:
    """The outputs of one run. Raises `TimeoutError` if ``timeout_s`` pass, else ONNX Runtime's exceptions."""
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = _FATAL
    expired = threading.Event()

    def terminate() -> None:
        expired.set()
        options.terminate = True  # ends the run before its next node, also inside a loop

    timer = threading.Timer(timeout_s, terminate)
    timer.start()
    try:
        outputs: list[NDArray[Any]] = session.run(None, inputs, options)
    except Exception as error:
        if expired.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
        timer.join()
    return outputs


def simplify(model: ModelProto) -> ModelProto:
    """Apply ONNX Runtime's basic optimisations: fold constants, merge batch normalisation into convolutions.

    Raises `EngineError` if ONNX Runtime cannot load the graph.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = _FATAL
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise EngineError(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error
        simplified = load(target)
    domains = {"", "ai.onnx", *(node.domain for node in simplified.graph.node)}
    opsets = [entry for entry in simplified.opset_import if entry.domain in domains]
    del simplified.opset_import[:]
    simplified.opset_import.extend(opsets)
    return simplified


def import_onnxruntime() -> Any:
    """ONNX Runtime's module. Raises `MissingDependency`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "export", "running an imported graph") from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
