"""ONNX Runtime's plan is the exported graph itself, loaded once to see that it can be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import onnx
import onnxruntime
import pytest

from adedge.errors import EngineError, MissingDependency
from adedge.export.builders import BuildOptions, Source, builder_of
from adedge.export.builders.onnxruntime import build
from adedge.processors import physical_cores
from adedge.specs import PRECISIONS, Precision


@pytest.fixture
def source(graph_that_shows_red: Callable[[float], bytes]) -> Callable[[Precision], Source]:
    """Makes a source whose graphs differ, each under the stem of its precision."""
    graphs = {f"model.{precision}": graph_that_shows_red(gain) for gain, precision in enumerate(PRECISIONS, 1)}

    def make(precision: Precision, batch: tuple[int, int, int] = (1, 2, 4)) -> Source:
        return Source(graphs=graphs, precision=precision, shape=(3, 8, 8), batch=batch)

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_is_the_graph_of_its_precision(source: Callable[[Precision], Source], precision: Precision) -> None:
    built = build(source(precision), BuildOptions())
    assert built.graph == f"model.{precision}"
    assert built.plan == source(precision).graphs[f"model.{precision}"]
    assert (built.input.name, built.input.shape) == ("frame", (3, 8, 8))
    assert [(tensor.name, tensor.shape) for tensor in built.outputs] == [("map", (1, 8, 8))]
    assert built.library_version == onnxruntime.__version__
    assert built.flags == {"threads": physical_cores()}
    assert (built.gpu, built.compute_capabilities, built.attempts) == (None, (), ())


def test_fp16_is_said_to_be_computed_in_fp32(source: Callable[[Precision], Source]) -> None:
    paths = {precision: build(source(precision), BuildOptions()).path for precision in PRECISIONS}
    assert [precision for precision, path in paths.items() if "computed in FP32" in path] == ["fp16"]


def test_it_is_the_builder_of_its_target() -> None:
    assert builder_of("onnxruntime") is build


def test_a_graph_that_onnx_runtime_refuses_is_named_in_one_line() -> None:
    broken = Source(graphs={"model.fp32": b"no graph"}, precision="fp32", shape=(3, 8, 8), batch=(1, 1, 1))
    with pytest.raises(EngineError, match="cannot load the graph") as caught:
        build(broken, BuildOptions())
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_one_frame_is_refused_for_more(graph_that_shows_red: Callable[[float], bytes]) -> None:
    model = onnx.load_from_string(graph_that_shows_red(1.0))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    one = Source(graphs={"model.fp32": model.SerializeToString()}, precision="fp32", shape=(3, 8, 8), batch=(1, 1, 1))
    assert build(one, BuildOptions()).graph == "model.fp32"
    with pytest.raises(EngineError, match=r"takes exactly 1 frame\(s\) at once"):
        build(replace(one, batch=(1, 1, 4)), BuildOptions())


def test_without_onnx_runtime_the_extra_is_named(
    source: Callable[[Precision], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source("fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[onnxruntime\]'"):
        build(made, BuildOptions())
