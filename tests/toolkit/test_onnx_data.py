"""Graphs that keep weights in other files are refused wherever a tensor may hide, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TrainingInfoProto,
    helper,
    numpy_helper,
)

from adedge.errors import BundleError, EngineError
from adedge.onnx_data import _CHILDREN, refuse_external

MESSAGES = {
    "Model": ModelProto,
    "Graph": GraphProto,
    "Node": NodeProto,
    "Attribute": AttributeProto,
    "Tensor": TensorProto,
    "SparseTensor": SparseTensorProto,
    "Function": FunctionProto,
    "TrainingInfo": TrainingInfoProto,
}


def external() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def inside(tensor: TensorProto) -> TensorProto:
    """The same tensor with its own bytes."""
    return numpy_helper.from_array(np.zeros(2, np.float32), tensor.name)


def graph(**fields: object) -> GraphProto:
    return GraphProto(name="g", **fields)


def node(*attributes: AttributeProto) -> NodeProto:
    return NodeProto(op_type="If", input=["c"], output=["y"], attribute=attributes)


def sparse(tensor: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.array([0, 1])), dims=[4])


def model_with_graph(one: GraphProto) -> ModelProto:
    return ModelProto(ir_version=8, producer_name="a test", graph=one)


PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "initializer": lambda t: model_with_graph(graph(initializer=[inside(t), t])),
    "sparse initializer": lambda t: model_with_graph(graph(sparse_initializer=[sparse(t)])),
    "indices of a sparse initializer": lambda t: model_with_graph(
        graph(sparse_initializer=[SparseTensorProto(values=inside(t), indices=t, dims=[4])])
    ),
    "constant": lambda t: model_with_graph(graph(node=[node(AttributeProto(name="value", t=t))])),
    "one of several constants": lambda t: model_with_graph(graph(node=[node(AttributeProto(name="v", tensors=[t]))])),
    "sparse constant": lambda t: model_with_graph(
        graph(node=[node(AttributeProto(name="v", sparse_tensor=sparse(t)))])
    ),
    "sparse constants": lambda t: model_with_graph(
        graph(node=[node(AttributeProto(name="v", sparse_tensors=[sparse(t)]))])
    ),
    "branch": lambda t: model_with_graph(graph(node=[node(AttributeProto(name="then", g=graph(initializer=[t])))])),
    "branch of a branch": lambda t: model_with_graph(
        graph(node=[node(AttributeProto(name="a", g=graph(node=[node(AttributeProto(name="b", t=t))])))])
    ),
    "one of several subgraphs": lambda t: model_with_graph(
        graph(node=[node(AttributeProto(name="all", graphs=[graph(), graph(initializer=[t])]))])
    ),
    "function": lambda t: ModelProto(functions=[FunctionProto(name="f", node=[node(AttributeProto(name="v", t=t))])]),
    "default of a function's attribute": lambda t: ModelProto(
        functions=[FunctionProto(name="f", attribute_proto=[AttributeProto(name="v", t=t)])]
    ),
    "training": lambda t: ModelProto(training_info=[TrainingInfoProto(algorithm=graph(initializer=[t]))]),
    "initialisation of a training": lambda t: ModelProto(
        training_info=[TrainingInfoProto(initialization=graph(initializer=[t]))]
    ),
}


@pytest.mark.fault("a graph that keeps weights in other files")
@pytest.mark.parametrize("place", PLACES)
def test_external_weights_are_found_wherever_a_tensor_may_be(place: str) -> None:
    refuse_external(PLACES[place](inside(external())).SerializeToString(), "m.onnx")
    with pytest.raises(BundleError, match=r"m.onnx keeps weights in other files.*adedge import"):
        refuse_external(PLACES[place](external()).SerializeToString(), "m.onnx", BundleError)


def test_every_field_that_leads_to_a_tensor_is_followed() -> None:
    """Against onnx's own description of its messages, so that a new field cannot be overlooked."""
    names = {message.DESCRIPTOR.full_name: name for name, message in MESSAGES.items()}
    fields = {
        name: {
            field.number: names[field.message_type.full_name]
            for field in message.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in names
        }
        for name, message in MESSAGES.items()
    }
    assert fields == _CHILDREN

    # No other message contains one of these.
    seen = set()

    def types(descriptor: object) -> Iterator[object]:
        for field in descriptor.fields:  # type: ignore[attr-defined]
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                yield inner
                yield from types(inner)

    for descriptor in types(ModelProto.DESCRIPTOR):
        if descriptor.full_name not in names:  # type: ignore[attr-defined]
            inner = {field.message_type.full_name for field in descriptor.fields if field.message_type}  # type: ignore[attr-defined]
            assert not inner & set(names)


def test_a_location_that_protobuf_truncates_to_external_is_found() -> None:
    """Protobuf reads an enumeration as 32 bits: 2**32 + 1 is 1."""
    tensor = inside(external()).SerializeToString() + b"\x70" + b"\x81\x80\x80\x80\x10"
    assert TensorProto.FromString(tensor).data_location == TensorProto.EXTERNAL
    data = b"\x3a" + bytes([len(tensor) + 2]) + b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(EngineError, match="other files"):
        refuse_external(data, "m.onnx")


@pytest.mark.parametrize(
    "data",
    [b"no graph", b"\x18\x00\x00\x00ORTM" + bytes(8), b"\x0a\x06\x00\x00ORTM", b"\x3a", b"\x3a\x05abc", b"\xff" * 20],
    ids=["text", "ONNX Runtime's format", "that format disguised", "no length", "too short", "endless number"],
)
def test_what_is_not_onnx_is_refused(data: bytes) -> None:
    with pytest.raises(EngineError, match="m.onnx is not a readable ONNX file: export it again"):
        refuse_external(data, "m.onnx")


@pytest.mark.fault("a graph that keeps weights in other files", tries=300)
@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(sorted(PLACES)), flips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 7))))
def test_no_damaged_graph_hides_external_weights_from_it(place: str, flips: list[tuple[int, int]]) -> None:
    """Whatever onnx can parse and finds external, is refused; everything else is accepted or refused, no more."""
    data = bytearray(PLACES[place](external()).SerializeToString())
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    try:
        refuse_external(bytes(data), "m.onnx")
    except EngineError:
        return
    try:
        model = ModelProto.FromString(bytes(data))
    except Exception:  # the protobuf library's own exception class differs between its versions
        return
    assert "data_location: EXTERNAL" not in str(model)


def test_large_weights_are_skipped() -> None:
    """A hundred megabytes take no longer than their few fields."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[25_000_000], raw_data=bytes(100_000_000))
    one = graph(
        initializer=[weights],
        node=[helper.make_node("Conv", ["x", "w"], ["y"], name=str(number)) for number in range(1000)],
    )
    data = model_with_graph(one).SerializeToString()
    started = time.process_time()
    refuse_external(data, "m.onnx")
    assert time.process_time() - started < 1
