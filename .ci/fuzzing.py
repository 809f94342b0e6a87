"""Feeds mutated files and requests to everything that reads them; `.ci/fuzz` is the command.

Each target has valid inputs and a function that reads one. An input follows from (target, seed, number), so anyone can
make it again. A child process reads the inputs under a memory limit and, for each input, a time limit; success and
`AdedgeError` are the only outcomes allowed. Everything else is a failure: its input is stored under the name
<target>.<seed>.<number>, and `.ci/fuzz --replay FILE` reads that file again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TextIO

SECONDS = 60  # for all targets together
LIMIT_S = 20.0  # for one input
MEMORY_BYTES = 2 << 30  # beyond what the child has mapped before the first input: a picture may have 200 megapixels

Mutate = Callable[[bytes, Random], bytes]


class Target(NamedTuple):
    """A reader: its valid inputs, how to mutate them, and the function that reads one."""

    valid: Sequence[bytes]
    mutate: Mutate
    read: Callable[[bytes], object]


class Failure(NamedTuple):
    """What went wrong, where, and the stored input."""

    outcome: str
    file: Path


# --- mutations --------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip bits; cut off, delete, repeat, move or overwrite chunks."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(result) + 1)
        end = min(len(result), start + random.choice((1, 2, 4, 16, 64, 1024)))
        match random.randrange(7):
            case 0 if start < len(result):
                result[start] ^= 1 << random.randrange(8)
            case 1 if start < len(result):
                result[start:end] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
            case 2:
                del result[start:]
            case 3:
                del result[start:end]
            case 4:
                result[start:start] = result[start:end] * random.choice((1, 2, 1000))
            case 5:
                other = random.randrange(len(result) + 1)
                result[other:other] = result[start:end]
            case _:
                result[start:end] = random.randbytes(random.choice((1, 4, 64)))
    return bytes(result)


_WORDS = (b"9" * 5000, b"-1", b"1e999", b"NaN", b"\x1b[2J", b"../../etc/passwd", b"\xff\xfe", b"%00", b"," * 300, b"\0")


def mutate_text(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or replace a word by an odd one, or delete, repeat or swap lines."""
    if random.random() < 0.3:
        return mutate_bytes(data, random)
    lines = data.splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2, 4))):
        index = random.choice((0, random.randrange(len(lines)))) if lines else 0
        match random.randrange(4):
            case 0:
                del lines[index : index + 1]
            case 1:
                lines[index:index] = lines[index : index + 1] * random.choice((1, 2, 2000))
            case 2:
                lines.insert(random.randrange(len(lines) + 1), lines.pop(index) if lines else b"")
            case _:
                words = re.split(rb"(\W+)", lines[index]) if lines else [b""]
                words[random.randrange(len(words))] = random.choice(_WORDS)
                lines[index : index + 1] = [b"".join(words)]
    return b"".join(lines)


_VALUES: tuple[object, ...] = (None, True, False, 0, -1, 0.5, 1e308, 1 << 63, 10**15, "", "x" * 100_000, [], {}, [[]])
_VALUES += ({"a": 1}, [1, 2], float("nan"), float("inf"), "\x1b[2J", "\0", "\ud800", "../../etc/passwd", "\u202e", "1")
_RAW = {"@deep": "[" * 5000 + "]" * 5000, "@deeper": '{"a":' * 100_000, "@digits": "9" * 10_000, "@exponent": "1e999"}


def mutate_json(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or replace values by those of other types, by large and by deep ones, and keys by odd ones."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        places = list(_places(document))
        parent, key = random.choice(places)
        match random.randrange(5):
            case 0:
                parent.pop(key)
            case 1 if isinstance(parent, dict):
                parent[random.choice(("", "\x1b", "x" * 1000, "\ud800", *parent))] = parent.pop(key)
            case 2:
                other, there = random.choice(places)
                parent[key] = json.loads(json.dumps(other[there]))
            case 3:
                parent[key] = random.choice(tuple(_RAW))
            case _:
                parent[key] = random.choice(_VALUES)
        if not document:
            break
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    if random.random() < 0.1:  # a key that occurs twice
        text = text[:-1] + f",{text[1:]}" if text.startswith("{") else text
    return text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (container, key or index) in a document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def mutate_zip(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or change the members of the archive, so that their checksums are right."""
    if random.random() < 0.4:
        return mutate_bytes(data, random)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = random.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen:
                match random.randrange(5):
                    case 0:
                        continue
                    case 1:
                        member += bytes(20_000_000)
                    case 2:  # NumPy's header, as text
                        member = member[:10] + mutate_text(member[10:128], random)[:118].ljust(118) + member[128:]
                    case 3:
                        member = old.read(random.choice(names))
                    case _:
                        member = mutate_bytes(member, random)
            new.writestr(name, member)
    return stream.getvalue()


def mutate_picture(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`; half of all PNGs get the right checksums, without which no decoder reads on."""
    mutated = mutate_bytes(data, random)
    signature = b"\x89PNG\r\n\x1a\n"
    if not mutated.startswith(signature) or random.random() < 0.5:
        return mutated
    result, start = bytearray(mutated), len(signature)
    while start + 12 <= len(result):
        end = start + 8 + int.from_bytes(result[start : start + 4], "big")
        result[end : end + 4] = zlib.crc32(result[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(result)


# --- targets: each function gets an empty folder ----------------------------------------------------------------------


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
    """An imported detector with thresholds and an engine of ONNX Runtime."""
    from adedge.bundle import Bundle
    from adedge.data.datasets import load_dataset
    from adedge.export.build import build_engine
    from adedge.export.graphs import export_graphs
    from adedge.export.imported import Description, import_model
    from adedge.manifest import Threshold
    from adedge.specs import EngineKey

    (folder / "model.onnx").write_bytes(_detector())
    pictures = load_dataset(str(_pictures(folder / "pictures")))
    path = folder / "b.adedge"
    bundle, _ = import_model(folder / "model.onnx", Description(), pictures, output=path)
    bundle = build_engine(export_graphs(bundle, ("fp32",))[0], EngineKey("onnxruntime", "fp32"))
    threshold = Threshold(value=0.5, false_alarm_rate=0.1, pictures=9, data_digest="")
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={"onnxruntime/fp32": threshold.model_dump()})
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
    return _file_target(folder, "engines/onnxruntime-fp32/engine.json", mutate_json)


def golden_target(folder: Path) -> Target:
    """golden.npz."""
    return _file_target(folder, "golden.npz", mutate_zip)


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

    headers = f"Host: 127.0.0.1:{port}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    paths = ("/", "/state.json", "/metrics", "/camera/0.jpg?t=1", "/reject/1.jpg", "/nothing")
    requests = [f"{method} {path} HTTP/1.1\r\n{headers}".encode() for method in ("GET", "HEAD") for path in paths]
    return Target(requests, mutate_text, read)


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "manifest": manifest_target,
    "engine": engine_target,
    "golden": golden_target,
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

# --- the child: reads inputs ------------------------------------------------------------------------------------------


def input_of(target: Target, name: str, seed: str, number: int) -> bytes:
    """Input ``number`` of a target: one of the valid ones, mutated."""
    random = Random(f"{name}/{seed}/{number}")
    return target.mutate(random.choice(target.valid), random)


def read_inputs(
    target: Target, inputs: Iterator[tuple[str, bytes]], limit_s: float, output: Path, reports: TextIO
) -> None:
    """Read each input, stored under its name; writes a line of JSON to ``reports`` before it and after it."""
    from adedge.errors import AdedgeError

    def report(**values: str | None) -> None:
        reports.write(json.dumps(values) + "\n")
        reports.flush()

    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, wherever the process is
    for file, data in inputs:
        (output / file).write_bytes(data)  # so that it exists if this process dies
        report(started=file)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        outcome = None
        try:
            target.read(data)
        except AdedgeError:
            pass
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)!r:.300}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome is None:
            (output / file).unlink()
        report(done=file, outcome=outcome)


def child(name: str, seed: str, first: int, count: int, seconds: float, limit_s: float, output: Path) -> None:
    """Read inputs ``first`` to ``count``, for at most ``seconds``, in this process; the reports are its stdout."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    with tempfile.TemporaryDirectory() as folder:
        target = {**TARGETS, **PLANTED}[name](Path(folder))
        for data in target.valid:
            target.read(data)
        _limit_memory()
        deadline = time.monotonic() + seconds
        numbers = itertools.takewhile(lambda _: time.monotonic() < deadline, range(first, count))
        inputs = ((f"{name}.{seed}.{number}", input_of(target, name, seed, number)) for number in numbers)
        read_inputs(target, inputs, limit_s, output, reports)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# --- the parent -------------------------------------------------------------------------------------------------------


def fuzz(
    name: str, seed: str, output: Path, *, count: int = sys.maxsize, seconds: float = 1e9, limit_s: float = LIMIT_S
) -> tuple[int, list[Failure]]:
    """Read ``count`` inputs of a target, or as many as ``seconds`` allow; returns their number and the failures.

    Stores one input for each kind of failure in ``output``.
    """
    output.mkdir(parents=True, exist_ok=True)
    failures: dict[str, Failure] = {}
    done, deadline = 0, time.monotonic() + seconds
    returncode = 1
    while returncode:  # a child that dies is followed by another, from the next input on
        arguments = (name, seed, done, count, deadline - time.monotonic(), limit_s, output)
        command = [sys.executable, __file__, "--child", *map(str, arguments)]
        started = None
        with tempfile.TemporaryFile() as log:  # decoders are loud about damaged pictures
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    report = json.loads(line)
                    started = report.get("started")
                    if "done" in report:
                        done += 1
                        if report["outcome"] is not None:
                            _store(failures, Failure(report["outcome"], output / report["done"]))
            returncode = process.returncode
            log.seek(0)
            if returncode and started is None:
                raise SystemExit(f"{name}: a valid input is not read: {log.read()[-2000:].decode(errors='replace')}")
        if started is not None:
            done += 1
            how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
            outcome = f"took longer than {limit_s:g} s" if how == "SIGALRM" else f"ended the process by {how}"
            _store(failures, Failure(outcome, output / started))
    return done, list(failures.values())


def _store(failures: dict[str, Failure], failure: Failure) -> None:
    """Keep a failure unless there is one of the same exception at the same line."""
    kind = failure.outcome.partition(": ")[0]
    if kind in failures:
        failure.file.unlink()
    else:
        failures[kind] = failure


def replay(file: Path, limit_s: float) -> int:
    """Read a stored input again, in this process, with its traceback."""
    name = file.name.partition(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        target = {**TARGETS, **PLANTED}[name](Path(folder))
        _limit_memory()
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        target.read(file.read_bytes())
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Feed mutated files and requests to everything that reads them.")
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="for all targets together")
    parser.add_argument("--seed", default=None, help="repeat an earlier run; default: a new one")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="repeatable; default: all")
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"), help="folder for the inputs that fail")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read a stored input again")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, seed, first, count, seconds, limit_s, output = arguments.child
        child(name, seed, int(first), int(count), float(seconds), float(limit_s), Path(output))
        return 0
    if arguments.replay:
        return replay(arguments.replay, LIMIT_S)
    seed = arguments.seed or secrets.token_hex(4)
    names = arguments.target or list(TARGETS)
    _say(f"seed {seed}")
    failed = False
    for name in names:
        count, failures = fuzz(name, seed, arguments.output, seconds=arguments.seconds / len(names))
        _say(f"{name}: {count} inputs, {len(failures)} failures")
        for failure in failures:
            failed = True
            _say(f"  {failure.outcome}\n    .ci/fuzz --replay {failure.file}")
    if not failed:
        shutil.rmtree(arguments.output, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
