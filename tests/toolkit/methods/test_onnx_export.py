"""Networks as ONNX files, executed by ONNX Runtime: names, batches, values, and what cannot be expressed."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from adedge.errors import EngineError, MissingDependency
from adedge.methods.onnx_export import onnx_from_network

torch.set_num_threads(1)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, y.amax((1, 2, 3))


def test_the_file_computes_what_the_network_does_for_any_number_of_frames() -> None:
    torch.manual_seed(0)
    network = TwoOutputs()
    graph = onnx_from_network(network, (3, 6, 8), input_name="frame", output_names=("map", "score"), opset=17)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["frame"]
    assert [one.name for one in session.get_outputs()] == ["map", "score"]
    for count in (1, 3):
        x = torch.randn(count, 3, 6, 8)
        with torch.no_grad():
            wanted = network(x)
        for found, tensor in zip(session.run(None, {"frame": x.numpy()}), wanted, strict=True):
            np.testing.assert_allclose(found, tensor.numpy(), atol=1e-5)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_has_no_graph_is_one_sentence() -> None:
    with pytest.raises(EngineError, match=r"PyTorch .* cannot export this network: \S"):
        onnx_from_network(Branching(), (1, 2, 2), input_name="frame", output_names=("map",), opset=17)


def test_without_onnxscript_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependency, match=r"'onnxscript': .*pip install -e '\.\[export\]'"):
        onnx_from_network(TwoOutputs(), (3, 6, 8), input_name="frame", output_names=("map", "score"), opset=17)
