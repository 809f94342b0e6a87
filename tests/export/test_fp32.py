"""The exported FP32 graph: same numbers, same bytes, dynamic batch, nothing about this machine in it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from adedge.errors import EngineError
from adedge.export.fp32 import graph_from_module, output_names
from adedge.specs import Dssim, InputSpec, ReadyMap, ScoreSpec

SPEC = InputSpec(height=16, width=24, channels=3, color="rgb")


class Two(nn.Module):
    """The input itself, and what layers make of it that exporters treat specially."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.005),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.ConvTranspose2d(4, 3, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.layers(x)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def graph(module: nn.Module) -> bytes:
    return graph_from_module(module, SPEC, ("image_a", "image_b"))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_gives_what_pytorch_gives_for_any_batch(module: nn.Module, graph: bytes, batch: int) -> None:
    frames = np.random.default_rng(batch).random((batch, *SPEC.shape), dtype=np.float32)
    found = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(
        ["image_a", "image_b"], {"frame": frames}
    )
    with torch.inference_mode():
        expected = module(torch.from_numpy(frames))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)


def test_same_module_same_bytes_and_no_trace_of_the_machine(module: nn.Module, graph: bytes) -> None:
    assert graph_from_module(module, SPEC, ("image_a", "image_b")) == graph
    for trace in (__file__.encode(), b"test_fp32", b".py", b"stack_trace", b"site-packages"):
        assert trace not in graph
    model = onnx.load_model_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.op_type for node in model.graph.node} & {"BatchNormalization"} == set()
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_another_number_of_outputs_is_refused(module: nn.Module) -> None:
    with pytest.raises(EngineError, match="2 outputs, and map are expected"):
        graph_from_module(module, SPEC, ("map",))


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(EngineError, match="cannot export this network"):
        graph_from_module(Branch(), SPEC, ("map",))


def test_output_names() -> None:
    assert output_names(ScoreSpec(comparison=Dssim())) == ("image_a", "image_b")
    assert output_names(ScoreSpec(comparison=ReadyMap())) == ("map",)
