"""What the tests of commands share: the command, and a bundle that was trained but for its networks."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adedge.bundle import create
from adedge.cli import COMMANDS, app
from adedge.console import output
from adedge.manifest import Manifest, Provenance, Threshold
from adedge.runtime.engines import EngineRecord, Tensor
from adedge.specs import Dssim, InputSpec, ReadyMap, ScoreSpec, Uniform


@pytest.fixture(scope="session")
def adedge() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `adedge ARGUMENTS` as a user does, in a terminal wide enough for every line."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adedge", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, env=environment
        )

    return run


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Result]:
    """Runs `adedge ARGUMENTS` in this process: quicker, and the result's ``exception`` is what the command raised."""
    for command in COMMANDS:
        importlib.import_module(f"adedge.cli.{command}")

    def run(*arguments: object) -> Result:
        with pytest.MonkeyPatch.context() as wide:
            wide.setattr(output, "_width", 300)  # it has read COLUMNS already; names and folders of tests are long
            return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    source = Provenance(
        created="2026-01-01",
        data="parts",
        data_digest="ab",
        seed=7,
        budget="quick",
        device="cpu",
        versions={"torch": "2"},
    )
    manifest = Manifest(
        method="oesdn",
        variant="oe-sdn",
        network={},
        input=InputSpec(height=64, width=48, channels=1, color="gray"),
        score=ScoreSpec(comparison=Dssim(), filters=(Uniform(size=32),)),
        thresholds={"pytorch/fp32": Threshold(value=0.125, false_alarm_rate=0.01, pictures=120, data_digest="cd")},
        provenance=source,
    )
    with create(tmp_path / "part.adedge", manifest) as draft:
        draft.write("weights.safetensors", b"weights")
    return tmp_path / "part.adedge"


@pytest.fixture(scope="session")
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector whose map is the frame itself, with an engine and thresholds for fp32 only."""
    pytest.importorskip("onnxruntime", reason="runs an engine with ONNX Runtime")
    pytest.importorskip("onnx", reason="makes the engine's graph with onnx")
    path = tmp_path_factory.mktemp("bundle") / "grey.adedge"
    graph = _identity_graph()
    record = EngineRecord(
        target="onnxruntime",
        precision="fp32",
        plan="engines/onnxruntime-fp32/engine.onnx",
        plan_sha256=hashlib.sha256(graph).hexdigest(),
        graph="model.fp32.onnx",
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        batch=(1, 4, 4),
        input=Tensor(name="frame", shape=(1, 16, 16)),
        outputs=(Tensor(name="map", shape=(1, 16, 16)),),
        library_version="1",
        path="as exported",
        build_seconds=0.0,
        built="2026-01-01T00:00:00Z",
        status="not tested",
    )
    with create(path, _grey_manifest()) as draft:
        draft.write("model.fp32.onnx", graph)
        draft.write(record.plan, graph)
        draft.write("engines/onnxruntime-fp32/engine.json", record.model_dump_json())
    return path


def _identity_graph() -> bytes:
    import onnx

    shape = ["n", 1, 16, 16]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("frame", "map")]
    node = onnx.helper.make_node("Identity", ["frame"], ["map"])
    graph = onnx.helper.make_graph([node], "identity", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _grey_manifest() -> Manifest:
    return Manifest(
        method="oesdn",
        variant="ae",
        network={},
        input=InputSpec(height=16, width=16, channels=1, color="gray"),
        score=ScoreSpec(comparison=ReadyMap()),
        thresholds={"onnxruntime/fp32": Threshold(value=0.5, false_alarm_rate=0.1, pictures=10, data_digest="0" * 64)},
        provenance=Provenance(
            created="2026-01-01", data="made", data_digest="0" * 64, seed=0, budget="none", device="cpu", versions={}
        ),
    )
