"""What all tests share: Ctrl-C, a GPU (pycuda on tests/host_cuda, a libcuda that runs kernels here), and a detector
made by hand, whose maps and scores are known.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import hashlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle, create
from adedge.data.datasets import Sample, load_dataset
from adedge.manifest import Manifest, Provenance, Threshold
from adedge.runtime.cuda.kernel_cache import Compiler
from adedge.runtime.engines import EngineRecord, Tensor
from adedge.specs import InputSpec, Precision, ReadyMap, ScoreSpec


def pytest_configure() -> None:
    """Let Ctrl-C interrupt even in the background, where shells ignore SIGINT and every child inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note in the report which faults a test injects: .ci/reliability makes a table of them."""
    for marker in item.iter_markers("fault"):
        item.user_properties += [("fault", marker.args[0]), *marker.kwargs.items()]


HOST_CUDA = Path(__file__).resolve().parent / "host_cuda"

OUT_OF_MEMORY, LAUNCH_FAILED, INVALID_VALUE = 2, 719, 1
LIVE = ("allocations", "host_allocations", "streams", "events", "modules", "graphs", "executables")


class HostDriver:
    """The stand-in's own questions and settings: see driver.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.host_driver_count.restype = ctypes.c_long
        library.host_driver_device.argtypes = (ctypes.c_size_t, *[ctypes.c_int] * 4)

    def enable(self, on: bool) -> None:
        self._library.host_driver_enable(int(on))

    def reset(self) -> None:
        """Nothing was counted, nothing is broken, and the device is an Orin with 1 GiB."""
        self._library.host_driver_reset()
        self.device()

    def device(
        self, *, size: int = 1 << 30, capability: tuple[int, int] = (8, 7), integrated: bool = False, cuda: int = 13000
    ) -> None:
        self._library.host_driver_device(size, *capability, int(integrated), cuda)

    def count(self, what: str) -> int:
        return int(self._library.host_driver_count(what.encode()))

    def counts(self, *names: str) -> dict[str, int]:
        return {name: self.count(name) for name in names}

    def live(self) -> dict[str, int]:
        """What was made and not given back; {} where there is nothing."""
        return {name: number for name in LIVE if (number := self.count(f"live_{name}"))}

    def fail(self, what: str, result: int, *, after: int = 0, times: int = 1) -> None:
        """Let calls fail: "cuMemAlloc_v2", "launch NAME", "execute NAME". pycuda asks twice for device memory."""
        self._library.host_driver_fail(what.encode(), after, result, times)


def _missing(reason: str) -> None:
    """Skip, or fail where continuous integration says that nothing may be missing."""
    if os.environ.get("ADEDGE_REQUIRE_PYCUDA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def pycuda() -> None:
    """For tests that need pycuda."""
    if importlib.util.find_spec("pycuda") is None:
        _missing("pycuda is not installed: pip install $(.ci/build-pycuda PYTHON)")


@pytest.fixture(scope="session")
def loaded_driver(tmp_path_factory: pytest.TempPathFactory) -> HostDriver:
    """The stand-in, compiled, and loaded before pycuda, which then finds no other libcuda."""
    if shutil.which("g++") is None:
        _missing("g++, which compiles the stand-in for libcuda, is not installed")
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        pytest.skip("NVIDIA's driver is loaded in this process: benchmarks/gpu.py tests the kernels on the GPU")
    library = _compiled("driver.cpp", tmp_path_factory.mktemp("driver") / "libcuda.so.1")
    return HostDriver(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))


def _compiled(source: str, library: Path) -> Path:
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-Wl,-soname,{library.name}",
    ]
    subprocess.run(["g++", *flags, "-o", str(library), str(HOST_CUDA / source), "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the kernels in stand_in.cpp; its image for the driver is "host:" and this path."""
    return _compiled("stand_in.cpp", tmp_path_factory.mktemp("kernels") / "stand_in.so")


@pytest.fixture
def driver(loaded_driver: HostDriver) -> Iterator[HostDriver]:
    """A machine with a GPU, for one test; afterwards nothing may be left of what the test allocated."""
    loaded_driver.reset()
    loaded_driver.enable(True)
    try:
        yield loaded_driver
        gc.collect()
        assert loaded_driver.live() == {}
        assert loaded_driver.count("overruns") == 0
    finally:
        loaded_driver.reset()
        loaded_driver.enable(False)


@pytest.fixture(scope="session")
def host_compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles the sources in runtime/kernels for the host; an image is the path of the library."""
    build = _module(HOST_CUDA / "build.py")
    folder = tmp_path_factory.getbasetemp().parent / "host_cuda"  # of all processes of a run
    folder.mkdir(exist_ok=True)

    def compile_(source: Path, architecture: str) -> bytes:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return f"host:{build.library(source, folder)}".encode() + b"\0"

    return Compiler("g++", (13, 0), compile_)


def _module(path: Path) -> Any:
    """A module beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- a detector made by hand: its map is the red of a picture, its score the brightest red ----------------------------

GAINS: dict[Precision, float] = {"fp32": 1.0, "int8": 0.92}  # what an engine makes of red
LEVELS = tuple(range(5, 255, 10))  # of red, in 25 flat pictures; blue is its opposite


def red_picture(level: int) -> np.ndarray:
    """8 x 8 RGB of one colour."""
    return np.full((8, 8, 3), (level, 0, 255 - level), np.uint8)


@pytest.fixture(scope="session")
def graph_that_shows_red() -> Callable[[float], bytes]:
    """Makes the graph: frame (n, 3, 8, 8) RGB -> map (n, 1, 8, 8), the red channel times a gain."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def make(gain: float) -> bytes:
        info = onnx.helper.make_tensor_value_info
        frame, out = (info(n, onnx.TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("frame", 3), ("map", 1)))
        weight = np.array([gain, 0, 0], np.float32).reshape(1, 3, 1, 1)
        node = onnx.helper.make_node("Conv", ["frame", "w"], ["map"])
        graph = onnx.helper.make_graph([node], "red", [frame], [out], [onnx.numpy_helper.from_array(weight, "w")])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())

    return make


@pytest.fixture(scope="session")
def red_record() -> Callable[[Precision, bytes], EngineRecord]:
    """Makes the engine.json of an ONNX Runtime engine whose plan is the graph."""

    def make(precision: Precision, graph: bytes) -> EngineRecord:
        digest = hashlib.sha256(graph).hexdigest()
        return EngineRecord(
            target="onnxruntime",
            precision=precision,
            plan=f"engines/onnxruntime-{precision}/engine.onnx",
            plan_sha256=digest,
            graph=f"model.{precision}.onnx",
            graph_sha256=digest,
            batch=(1, 4, 4),
            input=Tensor(name="frame", shape=(3, 8, 8)),
            outputs=(Tensor(name="map", shape=(1, 8, 8)),),
            library_version="1",
            path="as exported",
            build_seconds=0.0,
            built="",
            status="",
        )

    return make


@pytest.fixture
def red_bundle(
    tmp_path: Path,
    graph_that_shows_red: Callable[[float], bytes],
    red_record: Callable[[Precision, bytes], EngineRecord],
) -> Bundle:
    """An imported detector with four golden frames, and with thresholds of 0.5 and engines in FP32 and "INT8"."""
    frames = np.stack([red_picture(level) for level in (10, 60, 200, 240)])
    maps = frames[..., 0].astype(np.float32) / 255
    golden = io.BytesIO()
    np.savez(golden, frames=frames, labels=np.array([0, 0, 1, 1], np.int8), maps=maps, scores=maps.max((1, 2)))
    manifest = Manifest(
        method="imported",  # its reference is the graph that it came as
        variant="",
        network={},
        input=InputSpec(height=8, width=8, channels=3, color="rgb"),
        score=ScoreSpec(comparison=ReadyMap()),
        thresholds={
            f"onnxruntime/{p}": Threshold(value=0.5, false_alarm_rate=0.1, pictures=9, data_digest="") for p in GAINS
        },
        provenance=Provenance(created="", data="", data_digest="", seed=0, budget="", device="", versions={}),
    )
    with create(tmp_path / "red.adedge", manifest) as draft:
        draft.write("golden.npz", golden.getvalue())
        draft.write_json("training.json", {"pictures": []})
        draft.write("imported.onnx", graph_that_shows_red(1.0))
        for precision, gain in GAINS.items():
            graph = graph_that_shows_red(gain)
            record = red_record(precision, graph)
            draft.write(record.graph, graph)
            draft.write(record.plan, graph)
            draft.write(f"engines/onnxruntime-{precision}/engine.json", record.model_dump_json())
    return Bundle.open(tmp_path / "red.adedge")


@pytest.fixture
def red_pictures(tmp_path: Path) -> Path:
    """A folder of 25 flat pictures, 005.png to 245.png by their level of red."""
    folder = tmp_path / "pictures [25]"
    folder.mkdir()
    for level in LEVELS:
        cv2.imwrite(str(folder / f"{level:03}.png"), red_picture(level)[..., ::-1])
    return folder


@pytest.fixture
def red_samples(red_pictures: Path) -> tuple[Sample, ...]:
    """The pictures by rising level of red."""
    dataset = load_dataset(str(red_pictures))
    return tuple(sorted((*dataset.train, *dataset.calibration), key=lambda sample: str(sample.path)))
