"""What is asked of an ONNX graph, on one small enough to count everything by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from adedge.calibration.onnx_model import (
    consumers,
    convert_opset,
    initializers,
    load,
    lower_opset,
    multiply_accumulates,
    opset_of,
    parse,
    producers,
    serialise,
    shapes,
    with_prefix,
)
from adedge.errors import BundleError, EngineError
from adedge.onnx_data import refuse_external

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)


def model(batch: object = "n", opset: int = 17) -> onnx.ModelProto:
    """frame (n, 3, 8, 6) -> conv, of stride 2 -> features (n, 4, 4, 3) -> features + relu(features)."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["frame", "w"], ["features"], name="conv", strides=[2, 2], pads=[1] * 4),
            helper.make_node("Relu", ["features"], ["positive"], name="relu"),
            helper.make_node("Add", ["features", "positive"], ["map"], name="add"),
        ],
        "small",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, [batch, 3, 8, 6])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 4, 4, 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(graph: onnx.ModelProto | bytes, frames: np.ndarray) -> np.ndarray:
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: frames})[0]
    return result


FRAMES = np.random.default_rng(1).random((2, 3, 8, 6), dtype=np.float32)


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a readable ONNX file: export it again"):
        parse(b"PK not a graph")
    (tmp_path / "m.onnx").write_bytes(b"PK not a graph")
    for name in ("m.onnx", "absent.onnx"):
        with pytest.raises(EngineError, match=rf"{name} cannot be read as ONNX .*: export it again, weights included"):
            load(tmp_path / name)


def test_weights_beside_the_file_are_read_and_missed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(numpy_helper.to_array(load(path).graph.initializer[0]), WEIGHTS)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineError, match=r"m.onnx cannot be read as ONNX \(.*weights.bin"):
        load(path)


def external(path: Path, **entries: str) -> Path:
    """`model` with its weights where ``entries`` say."""
    one = model()
    tensor = one.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(one.SerializeToString())
    return path


def test_weights_are_read_from_their_offset(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.bin").write_bytes(b"0123" + WEIGHTS.tobytes() + b"rest")
    path = external(tmp_path / "m.onnx", location="sub/w.bin", offset="4", length=str(WEIGHTS.nbytes))
    loaded = load(path)
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), WEIGHTS)
    refuse_external(loaded.SerializeToString(), "m.onnx")


@pytest.mark.fault("a graph that keeps weights in other files")
def test_weights_are_read_from_the_models_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "w.bin"
    outside.write_bytes(WEIGHTS.tobytes())
    (folder / "link.bin").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    for location in ("../w.bin", "sub/../../w.bin", str(outside), "link.bin", "pipe", ".", "", "/dev/zero", "a\0b"):
        with pytest.raises(EngineError, match=r"m.onnx cannot be read as ONNX \(its weights are in .*: copy "):
            load(external(folder / "m.onnx", location=location, length="8"))


@pytest.mark.parametrize(
    "entries",
    [
        {"length": "9999"},
        {"offset": "9999"},
        {"offset": "-1"},
        {"length": "-1"},
        {"length": "9" * 5000},
        {"offset": "x"},
    ],
    ids=["too long", "behind the end", "before the start", "negative", "thousands of digits", "no number"],
)
def test_a_part_that_the_file_of_weights_lacks_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(EngineError, match=r"its weights are in 'w.bin'.* copy .* weights included"):
        load(external(tmp_path / "m.onnx", location="w.bin", **entries))


def test_more_weights_than_one_file_holds_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(3_000_000_000)  # a sparse file: it takes no space
    with pytest.raises(EngineError, match=r"has 3.0 GB with its weights, .* at most 2.1 GB: export"):
        load(external(tmp_path / "m.onnx", location="w.bin"))


def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(EngineError, match=r"m.onnx has 3 GB, and at most 2 are accepted"):
        load(tmp_path / "m.onnx")


@pytest.mark.fault("something else in place of an ONNX file")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer.*'git lfs pull'"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not a model.*download it again"),
        (b"\n <HTML lang='en'>", "is a web page, not a model"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page, not a model"),
        (b"", "m.onnx is empty: export or copy it again"),
    ],
)
def test_what_stands_in_for_a_model_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=sentence):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", [b"map", b"conv", b"frame", b"small"])
def test_names_that_are_not_utf8_are_refused(tmp_path: Path, name: bytes) -> None:
    damaged = model().SerializeToString().replace(name, b"\xed" + name[1:])
    (tmp_path / "m.onnx").write_bytes(damaged)
    with pytest.raises(EngineError, match="a name in it is not UTF-8"):
        load(tmp_path / "m.onnx")


@pytest.mark.fault("a pipe or a device in place of a file")
def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match=r"m.onnx is not a regular file"):
        load(tmp_path / "m.onnx")


def test_a_stored_graph_must_hold_its_weights(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx", location="w.bin")
    with pytest.raises(BundleError, match="keeps weights in other files"):
        parse(path.read_bytes())


def test_a_graph_without_opset_is_refused() -> None:
    one = model()
    del one.opset_import[:]
    with pytest.raises(EngineError, match="which version of ONNX's operators"):
        opset_of(one)


def test_the_same_model_gives_the_same_bytes_whatever_was_known_of_its_tensors() -> None:
    bare, inferred, stale = model(), onnx.shape_inference.infer_shapes(model()), model()
    assert inferred.graph.value_info
    stale.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1]))
    assert serialise(bare) == serialise(inferred) == serialise(stale)
    read = parse(serialise(bare))
    known = {value.name: value.type.tensor_type.elem_type for value in read.graph.value_info}
    assert known == {"features": TensorProto.FLOAT, "positive": TensorProto.FLOAT}
    np.testing.assert_array_equal(run(serialise(bare), FRAMES), run(bare, FRAMES))


def test_a_graph_that_breaks_a_rule_of_onnx_is_refused_in_one_line() -> None:
    for break_it in (
        lambda graph: graph.node[1].input.__setitem__(0, "nowhere"),
        lambda graph: graph.node.reverse(),
        lambda graph: graph.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5),
    ):
        broken = model()
        break_it(broken.graph)
        with pytest.raises(EngineError, match="the graph is not valid ONNX: ") as caught:
            serialise(broken)
        assert "\n" not in str(caught.value)


# --- questions -------------------------------------------------------------------------------------------------------


def test_who_writes_and_who_reads_a_tensor() -> None:
    graph = model().graph
    assert {name: node.name for name, node in producers(graph).items()} == {
        "features": "conv",
        "positive": "relu",
        "map": "add",
    }
    assert {name: [node.name for node in nodes] for name, nodes in consumers(graph).items()} == {
        "frame": ["conv"],
        "w": ["conv"],
        "features": ["relu", "add"],
        "positive": ["add"],
    }
    assert set(initializers(graph)) == {"w"}


def test_optional_inputs_and_outputs_that_are_left_out_are_no_tensors() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize")
    dropout = helper.make_node("Dropout", ["y"], ["z", ""], name="dropout")
    graph = helper.make_graph([node, dropout], "g", [], [])
    assert set(consumers(graph)) == {"x", "scales", "y"}
    assert set(producers(graph)) == {"y", "z"}


def test_shapes_count_a_batch_without_number_as_one() -> None:
    expected = {
        "w": (4, 3, 3, 3),
        "frame": (1, 3, 8, 6),
        "features": (1, 4, 4, 3),
        "positive": (1, 4, 4, 3),
        "map": (1, 4, 4, 3),
    }
    assert shapes(parse(serialise(model()))) == expected
    assert shapes(parse(serialise(model(batch=2))))["features"] == (2, 4, 4, 3)


def test_multiply_accumulates_are_counted_as_by_hand_and_by_pytorch() -> None:
    whole = parse(serialise(model()))
    found = multiply_accumulates(whole, whole.graph.node[:1])
    assert found == (4 * 4 * 3) * (3 * 3 * 3)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(torch.zeros(1, 3, 8, 6), torch.from_numpy(WEIGHTS), stride=2, padding=1)
    assert found == counter.get_total_flops() / 2
    assert multiply_accumulates(whole, []) == 0


def test_a_transposed_convolution_is_counted_by_its_input() -> None:
    weights = np.ones((3, 5, 2, 2), np.float32)
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["frame", "w"], ["map"], strides=[2, 2])],
        "upsampling",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["n", 3, 8, 6])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 5, 16, 12])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv_transpose2d(torch.zeros(1, 3, 8, 6), torch.from_numpy(weights), stride=2)
    # Each of 8 x 6 values of 3 channels meets 2 x 2 weights of 5 channels.
    assert multiply_accumulates(parse(serialise(made)), made.graph.node) == 8 * 6 * 3 * 2 * 2 * 5
    assert counter.get_total_flops() == 2 * 8 * 6 * 3 * 2 * 2 * 5


# --- other forms -----------------------------------------------------------------------------------------------------


def test_renaming_reaches_every_tensor_and_node_and_changes_no_result() -> None:
    own = model()
    new = with_prefix(own, "own/")
    names = {name for node in new.graph.node for name in (node.name, *node.input, *node.output)}
    assert names == {f"own/{name}" for name in ("conv", "relu", "add", "frame", "w", "features", "positive", "map")}
    np.testing.assert_array_equal(run(new, FRAMES), run(own, FRAMES))
    assert own.graph.node[0].name == "conv"  # a copy was renamed


def test_a_newer_opset_computes_the_same_under_the_same_names() -> None:
    old = model(opset=13)
    new = convert_opset(old, 19)
    assert (opset_of(old), opset_of(new)) == (13, 19)
    assert [node.name for node in new.graph.node] == [node.name for node in old.graph.node]
    np.testing.assert_array_equal(run(serialise(new), FRAMES), run(old, FRAMES))


def test_an_opset_is_lowered_only_if_it_is_meant() -> None:
    new = model(opset=19)
    assert convert_opset(new, 17) is new
    old = lower_opset(new, 17)
    assert (opset_of(new), opset_of(old)) == (19, 17)
    assert [node.name for node in old.graph.node] == [node.name for node in new.graph.node]
    np.testing.assert_array_equal(run(serialise(old), FRAMES), run(new, FRAMES))


def test_a_model_of_the_opset_is_returned_as_it_is() -> None:
    same = model(opset=19)
    assert convert_opset(same, 19) is same
    assert lower_opset(same, 19) is same


def test_what_has_no_newer_form_is_refused_in_one_line() -> None:
    unknown = model(opset=13)
    unknown.graph.node[1].op_type = "Frobnicate"
    for old, opset in ((unknown, 17), (model(), 999)):
        with pytest.raises(EngineError, match=f"the graph cannot be converted to opset {opset}: ") as caught:
            convert_opset(old, opset)
        assert "\n" not in str(caught.value)


def test_without_onnx_the_extra_is_named() -> None:
    code = "import sys; sys.modules['onnx'] = None; import adedge.calibration.onnx_model"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "reading and writing ONNX graphs needs the package 'onnx': " in done.stderr
    assert "pip install -e '.[export]'" in done.stderr
