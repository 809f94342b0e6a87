"""The TensorRT builder's decisions, driven through a stand-in that has exactly the members of each real version.

The stand-in's members come from tensorrt_api.json, which was read from NVIDIA's bindings; calling or setting anything
else raises AttributeError, as the real module would. No plan is executable here and nothing needs a GPU.
"""

from __future__ import annotations

import _thread
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from onnx import ModelProto, TensorProto

from adedge.errors import EngineError, MissingDependency
from adedge.export.builders import BuildOptions, Source
from adedge.export.builders.tensorrt import build
from adedge.specs import Precision

API: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = list(API)
SHAPE = (3, 32, 32)


def graph_named(name: str) -> bytes:
    """A graph with nothing in it but the name of its producer."""
    return bytes(ModelProto(producer_name=name).SerializeToString())


GRAPHS = {name: graph_named(name) for name in ("model.fp32", "model.fp16", "model.int8", "model.int8-fp16")}


class FakeTensorRT:
    """Makes the module of one version. ``refuse`` names (graph, strong) that do not build, ``garbled`` graphs that do
    not parse; ``seen`` lists what each attempt was configured with."""

    def __init__(self, version: str) -> None:
        self.members = API[version]
        self.refuse: set[tuple[str, bool]] = set()
        self.garbled: set[str] = set()
        self.nothing_from: set[str] = set()
        self.dla_cores = 0
        self.cache_is_foreign = False
        self.output_shape: tuple[int, ...] = (-1, *SHAPE)
        self.seen: list[dict[str, Any]] = []
        self.stop_at_interrupt = False
        self.answers: list[bool] = []
        self.module = self._module(version)

    def _class(self, name: str, body: dict[str, Any]) -> type:
        """A class with those members of ``body`` that this version has, and a refusal to set any other."""
        allowed = set(self.members.get(name, []))

        def set_known(instance: Any, key: str, value: Any) -> None:
            if key not in allowed and not key.startswith("_"):
                raise AttributeError(f"{name} has no {key}")
            object.__setattr__(instance, key, value)

        kept = {key: value for key, value in body.items() if key in allowed or key.startswith("_")}
        return type(name, (), {**kept, "__setattr__": set_known})

    def _module(self, version: str) -> ModuleType:
        fake = self
        module: Any = ModuleType("tensorrt")
        module.__version__ = version

        def enum(name: str) -> None:
            if name in self.members["top"]:
                setattr(module, name, self._class(name, {m: i for i, m in enumerate(self.members[name])})())

        for name in (
            "BuilderFlag",
            "NetworkDefinitionCreationFlag",
            "MemoryPoolType",
            "DeviceType",
            "DataType",
            "ProfilingVerbosity",
        ):
            enum(name)
        enum("HardwareCompatibilityLevel")
        module.ILogger = type(
            "ILogger", (), {"__init__": lambda self: None, **{m: m for m in self.members["ILogger"] if m != "log"}}
        )
        if "IProgressMonitor" in self.members["top"]:
            module.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

        class Tensor:
            def __init__(self, name: str, shape: tuple[int, ...]) -> None:
                self.name, self.shape, self.dtype = name, shape, module.DataType.FLOAT

        def parse(parser: Any, data: bytes) -> bool:
            parser._network._graph = ModelProto.FromString(data).producer_name
            return parser._network._graph not in fake.garbled

        parser_error = self._class(
            "ParserError",
            {
                "desc": lambda self: "unsupported\n  operator",
                "node": lambda self: 7,
                "node_name": lambda self: "encoder/conv",
                "node_operator": lambda self: "Conv",
            },
        )
        module.OnnxParser = self._class(
            "OnnxParser",
            {
                "__init__": lambda self, network, logger: setattr(self, "_network", network),
                "parse": parse,
                "num_errors": 1,
                "get_error": lambda self, index: parser_error(),
            },
        )
        network_class = self._class(
            "INetworkDefinition",
            {
                "num_inputs": 1,
                "num_outputs": 2,
                "get_input": lambda self, i: Tensor("frame", (-1, *SHAPE)),
                "get_output": lambda self, i: Tensor(f"image_{'ab'[i]}", fake.output_shape),
            },
        )
        profile_class = self._class(
            "IOptimizationProfile",
            {"set_shape": lambda self, name, *shapes: setattr(self, "_shapes", (name, *shapes))},
        )
        cache_class = self._class("ITimingCache", {"serialize": lambda self: self._data + b"+timings"})

        def create_timing_cache(config: Any, data: bytes) -> Any:
            cache = cache_class()
            cache._data = data
            return cache

        def set_timing_cache(config: Any, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            config._cache = cache
            return not fake.cache_is_foreign

        def add_profile(config: Any, profile: Any) -> int:
            config._profile = profile._shapes
            return 0

        config_class = self._class(
            "IBuilderConfig",
            {
                "__init__": lambda self: self.__dict__.update(_flags={module.BuilderFlag.TF32}, _pools={}),
                "set_flag": lambda self, flag: self._flags.add(flag),
                "clear_flag": lambda self, flag: self._flags.discard(flag),
                "set_memory_pool_limit": lambda self, pool, size: self._pools.update({pool: size}),
                "add_optimization_profile": add_profile,
                "create_timing_cache": create_timing_cache,
                "set_timing_cache": set_timing_cache,
                "get_timing_cache": lambda self: self._cache,
                "builder_optimization_level": None,
                "hardware_compatibility_level": None,
                "default_device_type": None,
                "DLA_core": -1,
                "progress_monitor": None,
            },
        )

        def create_network(builder: Any, flags: int) -> Any:
            network = network_class()
            strong = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            network._strong = strong is not None and flags == 1 << strong
            if not network._strong:
                assert flags == 1 << module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
            return network

        def serialise(builder: Any, network: Any, config: Any) -> bytes | None:
            names = [name for name in self.members["BuilderFlag"] if getattr(module.BuilderFlag, name) in config._flags]
            # NVIDIA's rule: a strongly typed network takes no precision flags.
            assert not (network._strong and {"FP16", "INT8"} & set(names))
            self.seen.append(
                {
                    "graph": network._graph,
                    "strong": network._strong,
                    "flags": names,
                    "pools": config._pools,
                    "profile": config._profile,
                    "config": config,
                }
            )
            builder._logger.log(module.ILogger.WARNING, "Layer up\ncannot run on DLA")
            if fake.stop_at_interrupt:
                return fake._until_interrupted(config)
            if (network._graph, network._strong) in fake.refuse:
                builder._logger.log(module.ILogger.ERROR, "Could not infer output types\nfor operation: dequantize")
                return None
            return f"plan of {network._graph}".encode()

        def none_or(name: str, call: Any) -> Any:
            return lambda *a: None if name in fake.nothing_from else call(*a)

        module.Builder = self._class(
            "Builder",
            {
                "__init__": lambda self, logger: setattr(self, "_logger", logger),
                "create_network": none_or("create_network", create_network),
                "create_builder_config": none_or("create_builder_config", lambda self: config_class()),
                "create_optimization_profile": lambda self: profile_class(),
                "build_serialized_network": serialise,
                "num_DLA_cores": property(lambda self: fake.dla_cores),
            },
        )
        return module  # type: ignore[no-any-return]

    def _until_interrupted(self, config: Any) -> None:
        """What a long build does: report steps until the monitor answers False."""
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 1000)
        _thread.interrupt_main()
        for step in range(1000):
            self.answers.append(monitor.step_complete("Building engine", step))
            if not self.answers[-1]:
                return
            time.sleep(0.01)


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeTensorRT) -> FakeTensorRT:
    """Put the stand-in and a GPU's facts where `import` finds them."""

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 1

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def name(self) -> str:
            return "Orin"

    cuda: Any = ModuleType("pycuda.driver")
    cuda.Error, cuda.init, cuda.Device = RuntimeError, lambda: None, Device
    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = cuda
    for name, module in (("tensorrt", fake.module), ("pycuda", pycuda), ("pycuda.driver", cuda)):
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def source(precision: Precision = "fp32", batch: tuple[int, int, int] = (1, 2, 4), **graphs: bytes) -> Source:
    return Source(graphs=graphs or GRAPHS, precision=precision, shape=SHAPE, batch=batch)


WAYS = {
    "strong": {
        "fp32": "strongly typed FP32",
        "fp16": "strongly typed FP16",
        "int8": "strongly typed INT8, FP16 scales",
    },
    "weak": {"fp32": "weakly typed FP32", "fp16": "weakly typed FP16", "int8": "weakly typed INT8"},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_every_precision(
    version: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(monkeypatch, FakeTensorRT(version))
    built = build(source(precision), BuildOptions())
    assert built.path == WAYS["weak" if version.startswith("8.") else "strong"][precision]
    assert built.plan == f"plan of {built.graph}".encode()
    assert (built.library_version, built.gpu, built.compute_capabilities) == (version, "Orin", ("8.7",))
    assert [tensor.name for tensor in (built.input, *built.outputs)] == ["frame", "image_a", "image_b"]
    assert fake.seen[0]["profile"] == ("frame", (1, *SHAPE), (2, *SHAPE), (4, *SHAPE))
    assert fake.seen[0]["pools"] == {fake.module.MemoryPoolType.WORKSPACE: 1 << 30}
    assert "TF32" not in fake.seen[0]["flags"]
    assert built.attempts == ()
    assert built.warnings == ("Layer up cannot run on DLA",)


@pytest.mark.parametrize(
    ("version", "refused", "path"),
    [
        ("10.16.1", [("model.int8-fp16", True)], "strongly typed INT8, FP32 scales"),
        ("10.3.0", [("model.int8-fp16", True), ("model.int8", True)], "weakly typed INT8"),
        ("11.4.0", [("model.int8-fp16", True)], "strongly typed INT8, FP32 scales"),
    ],
)
def test_int8_falls_back_in_order_and_says_why(
    version: str, refused: list[tuple[str, bool]], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(monkeypatch, FakeTensorRT(version))
    fake.refuse = set(refused)
    built = build(source("int8"), BuildOptions())
    assert built.path == path
    assert len(built.attempts) == len(refused)
    assert "Could not infer output types for operation: dequantize" in built.attempts[0]


def test_fp16_falls_back_to_weak_typing_with_the_fp32_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("10.3.0"))
    fake.refuse = {("model.fp16", True)}
    assert build(source("fp16"), BuildOptions()).graph == "model.fp32"
    assert "FP16" in fake.seen[1]["flags"]


def test_when_every_way_fails_each_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("11.4.0"))
    fake.refuse = {("model.int8", True)}
    with pytest.raises(EngineError) as caught:
        build(source("int8", **{"model.int8": graph_named("model.int8")}), BuildOptions())
    text = str(caught.value)
    assert "has no model.int8-fp16.onnx" in text
    assert "strongly typed INT8, FP32 scales: TensorRT 11.4.0 cannot build model.int8.onnx: Could not infer" in text
    assert "\n" not in text


@pytest.mark.parametrize(("version", "where"), [("8.6.1", "node 7:"), ("10.3.0", "node 'encoder/conv' (Conv):")])
def test_the_parsers_errors_name_the_node(version: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT(version))
    fake.garbled = set(GRAPHS)
    with pytest.raises(EngineError, match="cannot parse") as caught:
        build(source("fp32"), BuildOptions())
    assert f"{where} unsupported operator" in str(caught.value)


def test_a_graph_with_weights_in_other_files_does_not_reach_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("10.3.0"))
    graph = ModelProto.FromString(GRAPHS["model.fp32"])
    graph.graph.initializer.add(name="w", data_location=TensorProto.EXTERNAL)
    with pytest.raises(EngineError, match=r"model.fp32.onnx keeps weights in other files"):
        build(source("fp32", **{"model.fp32": graph.SerializeToString()}), BuildOptions())
    assert fake.seen == []


def test_options_reach_the_builder_and_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("10.13.3"))
    options = BuildOptions(
        workspace_bytes=1 << 28,
        opt_level=5,
        version_compatible=True,
        hardware_compatibility="ampere-plus",
        tf32=True,
    )
    built = build(source("fp32"), options)
    seen = fake.seen[0]
    assert set(seen["flags"]) == {"TF32", "VERSION_COMPATIBLE"}
    assert seen["config"].builder_optimization_level == 5
    level = fake.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert seen["config"].hardware_compatibility_level == level
    assert built.flags == {
        "workspace_bytes": 1 << 28,
        "tf32": True,
        "version_compatible": True,
        "opt_level": 5,
        "hardware_compatibility": "ampere-plus",
    }


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8.5.2", BuildOptions(opt_level=3), "has no optimisation level"),
        ("8.5.2", BuildOptions(version_compatible=True), "has no --version-compatible"),
        ("8.5.2", BuildOptions(hardware_compatibility="ampere-plus"), "has no --hardware-compatibility"),
        ("10.3.0", BuildOptions(hardware_compatibility="same-compute-capability"), "has no --hardware-compatibility"),
        ("10.13.3", BuildOptions(dla_core=0), "10.7 was the last 10.x with one"),
        ("10.3.0", BuildOptions(dla_core=0), "one fixed batch"),
    ],
)
def test_what_a_version_lacks_is_refused(
    version: str, options: BuildOptions, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT(version))
    with pytest.raises(EngineError, match=message):
        build(source("fp16"), options)


@pytest.mark.parametrize(
    ("version", "precision", "message"),
    [("10.3.0", "fp32", "FP16 or INT8 only"), ("10.3.0", "int8", "no Q/DQ graph"), ("8.6.1", "int8", "no Q/DQ graph")],
)
def test_what_a_dla_cannot_take_is_refused(
    version: str, precision: Precision, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeTensorRT(version)).dla_cores = 2
    with pytest.raises(EngineError, match=message):
        build(source(precision, batch=(1, 1, 1)), BuildOptions(dla_core=0))


@pytest.mark.parametrize(
    ("version", "precision", "strong"), [("8.6.1", "fp16", False), ("10.7.0", "fp16", False), ("11.4.0", "int8", True)]
)
def test_a_dla_is_used_with_the_gpu_as_fallback(
    version: str, precision: Precision, strong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(monkeypatch, FakeTensorRT(version))
    fake.dla_cores = 2
    built = build(source(precision, batch=(1, 1, 1)), BuildOptions(dla_core=1))
    config = fake.seen[0]["config"]
    assert (config.DLA_core, config.default_device_type) == (1, fake.module.DeviceType.DLA)
    assert "GPU_FALLBACK" in fake.seen[0]["flags"]
    assert fake.seen[0]["strong"] is strong
    assert built.flags["dla_core"] == 1


def test_a_dla_core_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0")).dla_cores = 1
    with pytest.raises(EngineError, match="this device has 1 DLA core"):
        build(source("fp16", batch=(1, 1, 1)), BuildOptions(dla_core=1))


def test_the_timing_cache_is_read_and_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0"))
    path = tmp_path / "timing.cache"
    for expected in (b"+timings", b"+timings+timings"):
        build(source(), BuildOptions(timing_cache=path))
        assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_a_foreign_timing_cache_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0")).cache_is_foreign = True
    path = tmp_path / "timing.cache"
    path.write_bytes(b"another GPU's")
    with pytest.raises(EngineError, match="another GPU or TensorRT version"):
        build(source(), BuildOptions(timing_cache=path))
    assert path.read_bytes() == b"another GPU's"


def test_an_unwritable_timing_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0"))
    with pytest.raises(EngineError, match="timing cache .* cannot be written: No such file"):
        build(source(), BuildOptions(timing_cache=tmp_path / "absent" / "timing.cache"))


@pytest.mark.parametrize("what", ["create_network", "create_builder_config"])
def test_nothing_returned_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0")).nothing_from = {what}
    with pytest.raises(EngineError, match="cannot create a"):
        build(source(), BuildOptions())


def test_a_graph_whose_size_is_dynamic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTensorRT("10.3.0")).output_shape = (-1, 3, -1, -1)
    with pytest.raises(EngineError, match="only the batch may be dynamic"):
        build(source(), BuildOptions())


def test_ctrl_c_stops_a_running_build(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("10.3.0"))
    fake.stop_at_interrupt = True
    steps: list[tuple[int, int, str]] = []
    with pytest.raises(KeyboardInterrupt):
        build(source(), BuildOptions(), lambda *step: steps.append(step))
    assert fake.answers[-1] is False
    assert steps[0] == (1, 1000, "Building engine")


def test_without_tensorrt_jetpack_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"JetPack.*pip install -e '\.\[tensorrt\]'"):
        build(source(), BuildOptions())


def test_a_tensorrt_older_than_supported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeTensorRT("8.6.1"))
    monkeypatch.setattr(fake.module, "__version__", "8.4.1")
    with pytest.raises(EngineError, match=r"TensorRT 8.4.1 is too old"):
        build(source(), BuildOptions())
