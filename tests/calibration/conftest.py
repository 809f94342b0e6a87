"""A network with all that INT8 has to tell apart, its graph, and the ranges of its tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
from torch import Tensor, manual_seed, nn, relu, sigmoid

from adedge.calibration.qdq import quantised_tensors
from adedge.calibration.ranges import Ranges, collect_ranges
from adedge.export.fp32 import graph_from_module
from adedge.specs import InputSpec

SPEC = InputSpec(height=16, width=16, channels=3, color="rgb")
FRAMES = np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)


class Network(nn.Module):
    """All that the placement has to tell apart: batch norm, residual, gate, transposed convolution, resize."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.tail = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.norm(self.head(x)), 0.01)
        x = x + self.second(relu(self.first(x)))
        low = relu(self.down(x))
        out: Tensor = self.tail(x * sigmoid(self.up(low)) + self.resize(low))
        return out


@pytest.fixture(scope="session")
def fp32() -> bytes:
    manual_seed(0)
    return graph_from_module(Network(), SPEC, ("map",))


@pytest.fixture(scope="session")
def ranges(fp32: bytes) -> Ranges:
    return collect_ranges(fp32, quantised_tensors(fp32), FRAMES, "minmax", data_digest="d")


@pytest.fixture(scope="session")
def run() -> Callable[..., np.ndarray]:
    """Runs a graph as it is written, nothing merged or left out, on frames (N, 3, 16, 16): its first output."""

    def make(graph: bytes, frames: np.ndarray = FRAMES) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        result: np.ndarray = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(
            None, {"frame": frames}
        )[0]
        return result

    return make
