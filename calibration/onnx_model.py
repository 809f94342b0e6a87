"""Reading, writing and querying ONNX graphs, as bytes and as protobuf: the only module that imports onnx."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from adedge.errors import BundleError, EngineError, MissingDependency
from adedge.limits import GRAPH_BYTES, read_file
from adedge.onnx_data import refuse_external

try:
    import onnx
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise MissingDependency("onnx", "export", "reading and writing ONNX graphs") from error

__all__ = ["GraphProto", "ModelProto", "NodeProto", "TensorProto", "ValueInfoProto", "helper", "numpy_helper"]

# Opset 17 is the newest that the parsers of TensorRT 8.5 and 8.6 support; Q/DQ accepts FP16 scales since opset 19.
OPSET = 17
FP16_SCALES_OPSET = 19
ONNX_BYTES = (1 << 31) - 1  # what protobuf can serialise


def parse(graph: bytes) -> ModelProto:
    """Parse the bytes of an ONNX file. Raises `BundleError` if they are not valid ONNX, or lack some of the weights."""
    refuse_external(graph, "the graph", BundleError)
    try:
        return onnx.load_model_from_string(graph)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        raise BundleError("the graph is not a readable ONNX file: export it again") from exc


def load(path: Path) -> ModelProto:
    """Load an ONNX file, and the weights that it keeps in other files of its folder.

    Raises `EngineError` if a file is missing, lies elsewhere or is not ONNX, or if the weights exceed 2 GB together.
    """
    try:
        data = read_file(path, GRAPH_BYTES, EngineError)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise EngineError(f"{path} cannot be read as ONNX ({reason}): export it again, weights included") from exc
    if (problem := _other_content(data)) is not None:
        raise EngineError(f"{path} {problem}")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as exc:  # the protobuf library's own exception class differs between its versions
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise EngineError(f"{path} cannot be read as ONNX ({reason}): export it again, weights included") from exc
    if not _is_text_valid(model):
        raise EngineError(f"{path} cannot be read as ONNX (a name in it is not UTF-8): export it again")
    external = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    if external:
        _merge(path, len(data), external)
    return model


def _other_content(data: bytes) -> str | None:
    """What a file that is not ONNX is instead, with the remedy; None if its first bytes do not tell."""
    if not data:
        return "is empty: export or copy it again"
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the model itself: run 'git lfs pull' in its repository"
    if re.match(rb"\s*<(!doctype|html|\?xml)", data[:1000], re.IGNORECASE):
        return "is a web page, not a model: the download needed another address or a login; download it again"
    return None


def _is_text_valid(message: Any) -> bool:
    """Whether all text in a message, which protobuf does not check while it parses ONNX, is UTF-8."""
    try:
        for field, value in message.ListFields():
            parts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
            if field.message_type is not None:
                if not all(map(_is_text_valid, parts)):
                    return False
            elif field.type == field.TYPE_STRING and not all(isinstance(part, str) for part in parts):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor in a message: initialisers, sparse ones, and those in attributes, subgraphs and functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(part)


def _merge(path: Path, graph_bytes: int, tensors: Sequence[TensorProto]) -> None:
    """Read the weights of ``tensors`` from files in the folder of ``path`` into them. Raises `EngineError`."""
    folder = path.parent.resolve()
    places = [_place(path, folder, tensor) for tensor in tensors]
    total = graph_bytes + sum(length for _, _, length in places)
    if total > ONNX_BYTES:
        raise EngineError(
            f"{path} has {total / 1e9:.1f} GB with its weights, and one ONNX file holds at most "
            f"{ONNX_BYTES / 1e9:.1f} GB: export a smaller model, or its weights in FP16"
        )
    for tensor, (file, offset, length) in zip(tensors, places, strict=True):
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                tensor.raw_data = stream.read(length)
        except OSError as exc:
            raise EngineError(
                f"{path} cannot be read as ONNX (its weights are in {str(file)!r}: {exc}): check its permissions"
            ) from exc
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _place(path: Path, folder: Path, tensor: TensorProto) -> tuple[Path, int, int]:
    """The file that holds a tensor, and its offset and length there in bytes. Raises `EngineError`."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        file = (folder / location).resolve()
        size = file.stat().st_size
        regular = file.is_file()
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except (OSError, ValueError) as exc:
        raise EngineError(
            f"{path} cannot be read as ONNX (its weights are in {location!r}: {exc}): copy that file too, or export "
            "the model again, weights included"
        ) from exc
    if not regular or not file.is_relative_to(folder):
        raise EngineError(
            f"{path} cannot be read as ONNX (its weights are in {location!r}, which is not a file in its folder): copy "
            "the model and its weights into one folder, without links to other folders"
        )
    if offset < 0 or length < 0 or offset + length > size:
        raise EngineError(
            f"{path} cannot be read as ONNX (its weights are in {location!r}, which is too short): copy both again, or "
            "export the model again, weights included"
        )
    return file, offset, length


def with_prefix(model: ModelProto, prefix: str) -> ModelProto:
    """A copy with ``prefix`` added to every tensor and node name, including those in subgraphs."""
    return onnx.compose.add_prefix(model, prefix)


def serialise(model: ModelProto) -> bytes:
    """Infer all types and shapes, check the model, and serialise it deterministically. Changes ``model`` in place.

    Raises `EngineError` if the model is not valid ONNX.
    """
    del model.graph.value_info[:]
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise EngineError(f"the graph is not valid ONNX: {str(exc).strip().splitlines()[0]}") from exc
    data: bytes = inferred.SerializeToString(deterministic=True)
    return data


def opset_of(model: ModelProto) -> int:
    """The version of the default ONNX operator set that a model uses. Raises `EngineError` if it names none."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise EngineError("the graph does not say which version of ONNX's operators it uses: export it again")
    return versions[0]


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """The same model in a newer opset, node and tensor names unchanged. Raises `EngineError` if it cannot be converted.

    A model that already uses ``opset`` or a newer one is returned as it is.
    """
    return model if opset_of(model) >= opset else _converted(model, opset)


def lower_opset(model: ModelProto, opset: int) -> ModelProto:
    """As `convert_opset`, to an older opset; a model that uses ``opset`` or an older one is returned as it is."""
    return model if opset_of(model) <= opset else _converted(model, opset)


def _converted(model: ModelProto, opset: int) -> ModelProto:
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as exc:  # onnx raises C++ exceptions as RuntimeError, among others
        raise EngineError(f"the graph cannot be converted to opset {opset}: {str(exc).splitlines()[0]}") from exc


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Maps each tensor that a node writes to that node; inputs and initializers are absent."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Maps each tensor to the nodes that read it, in graph order."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name:
                readers.setdefault(name, []).append(node)
    return readers


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Maps each initializer's name to it."""
    return {tensor.name: tensor for tensor in graph.initializer}


def shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor whose rank is known; a symbolic dimension (the batch) counts as 1."""
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            sizes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return sizes


def multiply_accumulates(model: ModelProto, nodes: Iterable[NodeProto]) -> int:
    """Multiply-accumulates of convolutions on one frame: output values x weights of one output channel.

    A transposed convolution multiplies each input value with all weights of its input channel.
    """
    sizes = shapes(model)
    total = 0
    for node in nodes:
        values = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        total += math.prod(sizes[values]) * math.prod(sizes[node.input[1]][1:])
    return total
