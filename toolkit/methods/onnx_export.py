"""PyTorch -> ONNX, as torch.onnx writes it; `adedge.export.fp32` makes the graph of a bundle of it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TypeAlias

import torch
from torch import nn

from adedge.errors import EngineError, MissingDependency

Network: TypeAlias = nn.Module  # for rooms that pass one on and import no torch


def onnx_from_network(
    network: Network, shape: tuple[int, int, int], *, input_name: str, output_names: Sequence[str], opset: int
) -> bytes:
    """An ONNX file of a network in eval mode: x (N, *shape) float32 -> a tensor or a tuple of them, N dynamic.

    Batch normalisation is folded into the convolution before it. Raises `EngineError` where PyTorch cannot express the
    network, `MissingDependency`.
    """
    try:
        import onnxscript  # noqa: F401 - what torch.onnx.export translates with
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "onnxscript", "export", "exporting a network to ONNX") from error
    # Traced with a batch of two: PyTorch takes a dimension of one for a constant.
    example = torch.zeros(2, *shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's exceptions have no common class
        raise EngineError(f"PyTorch {torch.__version__} cannot export this network: {_first_line(error)}") from error
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own progress off the terminal; what goes wrong is raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|copyreg)(\..*)?$")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
