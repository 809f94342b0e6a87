"""PyTorch -> ONNX by torch.onnx; `adedge.export.fp32` turns the result into a bundle's graph."""

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

Network: TypeAlias = nn.Module  # for rooms that must not import torch


def onnx_from_network(
    network: Network, shape: tuple[int, int, int], *, input_name: str, output_names: Sequence[str], opset: int
) -> bytes:
    """Export a network in eval mode as an ONNX file: x (N, *shape) float32 -> a tensor or a tuple of them, N dynamic.

    Batch normalisation is folded into the convolution before it. Raises `EngineError` if PyTorch cannot export the
    network, `MissingDependency` without onnxscript.
    """
    try:
        import onnxscript  # noqa: F401 - required by torch.onnx.export
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "onnxscript", "export", "exporting a network to ONNX") from error
    # A batch of two, because PyTorch specialises a dimension of one as a constant.
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
    except Exception as error:  # the exporter's exceptions have no common base class
        raise EngineError(f"PyTorch {torch.__version__} cannot export this network: {_first_line(error)}") from error
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress messages and warnings; errors are still raised."""
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
