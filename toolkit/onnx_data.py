"""Whether a serialised ONNX graph keeps weights in other files, found without the onnx package.

ONNX Runtime and TensorRT read such files from the working directory while they load a graph. No signature covers them,
so a graph in a bundle must hold all its weights. This walks the protobuf messages that can contain a tensor and skips
everything else without copying it, so the time depends on the number of nodes, not on the size of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from adedge.errors import AdedgeError, EngineError

# Messages and the fields that lead to a tensor, by number, from onnx.proto (unchanged since these fields were added).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Tensor": {},
}
_DATA_LOCATION = 14  # of a Tensor: 0 for its own bytes, 1 for another file
_ORT_FORMAT = b"ORTM"  # at byte 4 of ONNX Runtime's own format, which it accepts in place of ONNX

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 20_000_000  # half a minute; only weights stored number by number need more, and no exporter does that


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    """The bytes are not a protobuf message."""


class _Field(NamedTuple):
    """A field of a message: its number, its wire type, and its value, or the span of its bytes."""

    number: int
    wire: int
    value: int
    end: int


def refuse_external(graph: bytes, name: str, error: type[AdedgeError] = EngineError) -> None:
    """Raise ``error`` if a graph keeps weights in other files, or if it is not ONNX; ``name`` begins the message.

    Covers initialisers, sparse initialisers, constants in attributes, subgraphs, functions and training graphs.

    >>> refuse_external(b"", "model.onnx")
    """
    try:
        external = _has_external(graph)
    except _Malformed:
        raise error(f"{name} is not a readable ONNX file: export it again") from None
    if external:
        raise error(
            f"{name} keeps weights in other files, which no digest or signature covers: "
            "import the model again with 'adedge import', which stores all weights in one file"
        )


def _has_external(graph: bytes) -> bool:
    if graph[4:8] == _ORT_FORMAT:
        raise _Malformed
    messages = [("Model", 0, len(graph))]
    fields = 0
    while messages:
        kind, start, end = messages.pop()
        children = _CHILDREN[kind]
        for field in _fields(graph, start, end):
            fields += 1
            if fields > _MAX_FIELDS:
                raise _Malformed
            if field.wire == _BYTES:
                child = children.get(field.number)
                if child is not None:
                    messages.append((child, field.value, field.end))
            elif kind == "Tensor" and field.number == _DATA_LOCATION and field.wire == _VARINT and field.value:
                return True
    return False


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message in ``data[start:end]``. Raises `_Malformed`."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if number == 0:
            raise _Malformed
        value = start
        if wire == _VARINT:
            value, start = _varint(data, start, end)
        elif wire == _BYTES:
            length, value = _varint(data, start, end)
            start = value + length
        elif wire in (_FIXED64, _FIXED32):
            start += 8 if wire == _FIXED64 else 4
        else:  # a group, which ONNX does not have
            raise _Malformed
        if start > end:
            raise _Malformed
        yield _Field(number, wire, value, start)


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """A number of 7 bits per byte, lowest first, and the position after it. Raises `_Malformed`."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise _Malformed
