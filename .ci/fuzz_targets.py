"""What `.ci/fuzz` feeds: for each reader its valid inputs, how to mutate them, and a function that reads one.

Each function of `TARGETS` gets an empty folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from mutations import mutate_bytes, mutate_json, mutate_picture, mutate_text, mutate_zip

LIMIT_S = 20.0  # for one input
ENGINE = "engines/onnxruntime-fp32/engine.json"

Mutate = Callable[[bytes, Random], bytes]


class Target(NamedTuple):
    """A reader: its valid inputs, how to mutate them, and the function that reads one."""

    valid: Sequence[bytes]
    mutate: Mutate
    read: Callable[[bytes], object]


def _detector() -> bytes:
    """An ONNX graph: frame (n, 3, 8, 8) -> map (n, 1, 8, 8), the red channel."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    info = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["frame", "w"], ["map"])],
        "red",
        [info("frame", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [info("map", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _pictures(folder: Path) -> Path:
    """A folder of six small pictures."""
    import cv2
    import numpy as np

    folder.mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), 30 * number, np.uint8))
    return folder


def _bundle(folder: Path) -> Path:
    """An imported detector with thresholds and an engine of ONNX Runtime, the same bytes each time."""
    from adedge.bundle import Bundle
    from adedge.data.datasets import load_dataset
    from adedge.export.build import build_engine
    from adedge.export.graphs import export_graphs
    from adedge.export.imported import Description, import_model
    from adedge.manifest import Threshold
    from adedge.runtime.engines import read_record
    from adedge.specs import EngineKey

    (folder / "model.onnx").write_bytes(_detector())
    pictures = load_dataset(str(_pictures(folder / "pictures")))
    path = folder / "b.adedge"
    bundle, _ = import_model(folder / "model.onnx", Description(), pictures, output=path)
    key = EngineKey("onnxruntime", "fp32")
    bundle = build_engine(export_graphs(bundle, ("fp32",))[0], key)
    threshold = Threshold(value=0.5, false_alarm_rate=0.1, pictures=9, data_digest="")
    record = read_record(bundle, key).model_copy(update={"built": "", "build_seconds": 0.0})
    with bundle.edit() as draft:
        draft.write(ENGINE, record.model_dump_json(indent=2))
        draft.manifest = draft.manifest.replace(
            thresholds={str(key): threshold.model_dump()},
            provenance={**draft.manifest.provenance.model_dump(), "created": ""},
        )
    return Bundle.open(path).path


def _use(path: Path) -> None:
    """Print what is in a bundle, read its golden frames, and judge a picture."""
    import numpy as np
    from typer.testing import CliRunner

    from adedge import open_bundle, open_inspector
    from adedge.cli import app, inspect
    from adedge.golden import read_golden

    assert inspect  # adds its command to `app`
    for options in ((), ("--json",)):
        shown = CliRunner().invoke(app, ["inspect", str(path), *options])
        if shown.exception is not None and not isinstance(shown.exception, SystemExit):
            raise shown.exception
    bundle = open_bundle(path)
    read_golden(bundle)
    with open_inspector(bundle, threads=1, notify=lambda text: None) as inspector:
        inspector.judge(np.zeros((20, 30, 3), np.uint8))


def manifest_target(folder: Path) -> Target:
    """bundle.json, as somebody without the key could change it."""
    path = _bundle(folder)

    def read(data: bytes) -> None:
        (path / "bundle.json").write_bytes(data)
        _use(path)

    return Target([(path / "bundle.json").read_bytes()], mutate_json, read)


def _file_target(folder: Path, name: str, mutate: Mutate) -> Target:
    """A file of a bundle, listed with the right digest."""
    from adedge.bundle import Bundle

    path = _bundle(folder)

    def read(data: bytes) -> None:
        with Bundle.open(path).edit() as draft:
            draft.write(name, data)
        _use(path)

    return Target([(path / name).read_bytes()], mutate, read)


def engine_target(folder: Path) -> Target:
    """engine.json."""
    return _file_target(folder, ENGINE, mutate_json)


def golden_target(folder: Path) -> Target:
    """golden.npz."""
    return _file_target(folder, "golden.npz", mutate_zip)


def signature_target(folder: Path) -> Target:
    """bundle.sig, and the statement inside it."""
    from adedge.bundle import Bundle, open_bundle
    from adedge.errors import AdedgeError
    from adedge.signing import create_key, sign

    path = _bundle(folder)
    public = create_key(folder / "key")
    sign(Bundle.open(path), folder / "key")

    def mutate(data: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return mutate_json(data, random)
        record = json.loads(data)
        payload = mutate_json(base64.b64decode(record["payload"]), random)
        return json.dumps({**record, "payload": base64.b64encode(payload).decode()}).encode()

    def read(data: bytes) -> None:
        (path / "bundle.sig").write_bytes(data)
        with contextlib.suppress(AdedgeError):
            open_bundle(path, public)
        _use(path)

    return Target([(path / "bundle.sig").read_bytes()], mutate, read)


def external_target(folder: Path) -> Target:
    """ONNX files: whether they refer to other files, found without parsing them."""
    from adedge.onnx_data import refuse_external

    return Target([_detector()], mutate_bytes, lambda data: refuse_external(data, "m.onnx"))


def import_target(folder: Path) -> Target:
    """ONNX files to import."""
    from adedge.data.datasets import load_dataset
    from adedge.export.imported import Description, detector_from_onnx

    pictures = load_dataset(str(_pictures(folder / "pictures")))
    path = folder / "model.onnx"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        detector_from_onnx(path, Description(), pictures, timeout_s=LIMIT_S / 4)

    return Target([_detector()], mutate_bytes, read)


def csv_target(folder: Path) -> Target:
    """A CSV manifest of pictures."""
    from adedge import load_dataset

    _pictures(folder / "pictures")
    table = folder / "parts.csv"
    rows = [f"pictures/{number}.png,{'train' if number < 4 else 'test'},good,,\n" for number in range(6)]

    def read(data: bytes) -> None:
        table.write_bytes(data)
        load_dataset(str(table))

    return Target([("path,split,label,mask,kind\n" + "".join(rows)).encode()], mutate_text, read)


def picture_target(folder: Path) -> Target:
    """Picture files of every format."""
    import cv2
    import numpy as np

    from adedge.data.pictures import read_picture

    random = np.random.default_rng(0)
    valid = []
    for channels, dtype in ((3, np.uint8), (1, np.uint8), (4, np.uint8), (3, np.uint16)):
        picture = random.integers(0, np.iinfo(dtype).max, (24, 32, channels), dtype)
        suffixes = [".png", ".tiff", *((".bmp", ".webp") if dtype == np.uint8 and channels != 1 else ())]
        if channels != 4:
            suffixes += [".pnm", *((".jpg",) if dtype == np.uint8 else ())]
        valid += [cv2.imencode(suffix, picture)[1].tobytes() for suffix in suffixes]
    path = folder / "picture"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_picture(path)

    return Target(valid, mutate_picture, read)


class _Errors(logging.Handler):
    """Keeps the exceptions that a server logs instead of raising."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, OSError):  # a client that goes away is none
            self.errors.append(error)


def page_target(folder: Path) -> Target:
    """HTTP requests to the live page, which must go on answering."""
    import numpy as np

    from adedge.runtime import page as page_module
    from adedge.runtime.sources import Frame
    from adedge.runtime.verdict import Verdict

    errors = _Errors()
    logger = logging.getLogger(page_module.__name__)
    logger.addHandler(errors)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    page = page_module.PageSink(("127.0.0.1", 0), ["line"], {"bundle": "b"})
    verdict = Verdict(
        frame_id=0,
        name="a.png",
        captured_at_ns=time.monotonic_ns(),
        decided_at_ns=time.monotonic_ns(),
        score=2.0,
        threshold=1.0,
        anomalous=True,
        map=np.zeros((8, 8), np.float32),
        timings_ms=dict.fromkeys(page_module.LATENCIES, 1.0),
    )
    page.take(verdict, Frame(0, 0, np.zeros((8, 8, 3), np.uint8), "a.png"))
    port = int(re.findall(r":(\d+)/", page.url)[0])

    def ask(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            with contextlib.suppress(OSError):  # refused before it was complete
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):  # closed with some of the request unread
                while block := connection.recv(1 << 16):
                    answer += block
            return answer

    def read(data: bytes) -> None:
        ask(data)
        answer = ask(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        if errors.errors:
            raise errors.errors.pop()
        if b" 200 " not in answer[:20]:
            raise RuntimeError(f"after this request, the page answers the next one with {answer[:200]!r}")

    headers = "Host: localhost\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    paths = ("/", "/state.json", "/metrics", "/camera/0.jpg?t=1", "/reject/1.jpg", "/nothing")
    requests = [f"{method} {path} HTTP/1.1\r\n{headers}".encode() for method in ("GET", "HEAD") for path in paths]
    return Target(requests, mutate_text, read)


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "manifest": manifest_target,
    "engine": engine_target,
    "golden": golden_target,
    "signature": signature_target,
    "external": external_target,
    "import": import_target,
    "csv": csv_target,
    "picture": picture_target,
    "page": page_target,
}


# What must be noticed; tests/fuzz checks that it is.


def _planted(fault: Callable[[], object]) -> Callable[[Path], Target]:
    def read(data: bytes) -> None:
        if data != b"valid":
            fault()

    return lambda folder: Target([b"valid"], mutate_bytes, read)


PLANTED: Mapping[str, Callable[[Path], Target]] = {
    "planted-exception": _planted(lambda: {}["missing"]),
    "planted-hang": _planted(lambda: time.sleep(3600)),
    "planted-memory": _planted(lambda: bytearray(64 << 30)),
    "planted-crash": _planted(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
}
