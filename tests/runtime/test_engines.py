"""Preflight: everything that can be wrong with an engine is said in one sentence before its plan is opened."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from adedge.bundle import Bundle, create
from adedge.errors import AdedgeError, BundleError, EngineError
from adedge.manifest import Manifest, Provenance
from adedge.runtime.backends import MachineInfo
from adedge.runtime.engines import (
    EngineRecord,
    Tensor,
    check_bundle,
    check_machine,
    engines_in,
    load_engine,
    read_record,
    runs_on_version,
    version_tuple,
)
from adedge.specs import Dssim, EngineKey, InputSpec, ScoreSpec

FOLDER = "engines/onnxruntime-fp32"


def graph() -> bytes:
    shape = ("N", 3, 8, 8)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["frame"], ["image_a"]), helper.make_node("Identity", ["frame"], ["image_b"])],
            "test",
            [helper.make_tensor_value_info("frame", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image_a", "image_b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model.SerializeToString()


def record(**changes: Any) -> EngineRecord:
    plan = hashlib.sha256(graph()).hexdigest()
    values = {
        "target": "onnxruntime",
        "precision": "fp32",
        "plan": f"{FOLDER}/engine.onnx",
        "plan_sha256": plan,
        "graph": "model.fp32.onnx",
        "graph_sha256": plan,
        "batch": (1, 1, 2),
        "input": Tensor(name="frame", shape=(3, 8, 8)),
        "outputs": (Tensor(name="image_a", shape=(3, 8, 8)), Tensor(name="image_b", shape=(3, 8, 8))),
        "library_version": "1.0",
        "path": "the graph itself",
        "build_seconds": 0.0,
        "built": "2026-01-01T00:00:00+00:00",
        "status": "self-test passed",
    }
    return EngineRecord.model_validate({**values, **changes})


def plan_record(**changes: Any) -> EngineRecord:
    """The record of a TensorRT plan built on an Orin."""
    return record(
        **{
            "target": "tensorrt",
            "library_version": "10.3.0.30",
            "compute_capabilities": ("8.7",),
            "machine": "aarch64",
            **changes,
        }
    )


ORIN = {"library_version": "10.3.0.30", "machine": "aarch64", "gpu": "Orin", "compute_capability": "8.7"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    path = tmp_path / "part.adedge"
    manifest = Manifest(
        method="oesdn",
        variant="sdn",
        network={},
        input=InputSpec(height=8, width=8, channels=3, color="rgb"),
        score=ScoreSpec(comparison=Dssim()),
        provenance=Provenance(
            created="2026-01-01", data="test", data_digest="", seed=0, budget="quick", device="cpu", versions={}
        ),
    )
    with create(path, manifest) as draft:
        draft.write("model.fp32.onnx", graph())
        draft.write(f"{FOLDER}/engine.onnx", graph())
        draft.write(f"{FOLDER}/engine.json", record().model_dump_json())
    return Bundle.open(path)


def replaced(bundle: Bundle, **files: bytes | str) -> Bundle:
    """The bundle with some files written anew, digests included."""
    names = {"graph": "model.fp32.onnx", "plan": f"{FOLDER}/engine.onnx", "record": f"{FOLDER}/engine.json"}
    with bundle.edit() as draft:
        for key, data in files.items():
            draft.write(names[key], data)
    return Bundle.open(bundle.path)


def test_a_sound_engine_loads_and_runs(bundle: Bundle) -> None:
    assert engines_in(bundle) == [("onnxruntime", "fp32")]
    backend = load_engine(bundle, EngineKey("onnxruntime", "fp32"), threads=1)
    backend.input[:] = np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)
    backend.run(2)
    assert backend.batch == 2
    np.testing.assert_array_equal(backend.outputs[0][:, 0, 0, 0], [0, -1])
    backend.close()


def test_an_absent_engine_says_which_there_are(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no tensorrt/int8 engine \(it has: onnxruntime/fp32\).*build-engine"):
        load_engine(bundle, EngineKey("tensorrt", "int8"))


def test_one_byte_changed_in_a_plan_is_refused_before_it_is_opened(bundle: Bundle) -> None:
    path = bundle.path / FOLDER / "engine.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="sha256 differs"):
        load_engine(bundle, EngineKey("onnxruntime", "fp32"))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"graph": b"another graph"}, EngineError, r"is stale: model.fp32.onnx changed since; build it again"),
        ({"plan": b"another plan"}, BundleError, "is not the plan that engine.json describes"),
        ({"record": record(precision="int8").model_dump_json()}, EngineError, "describes the onnxruntime/int8 engine"),
        ({"record": '{"target": "onnxruntime"}'}, EngineError, "not an engine record of this adedge"),
        (
            {"record": record(input=Tensor(name="frame", shape=(3, 16, 8))).model_dump_json()},
            EngineError,
            "takes frames of 16 x 8 x 3, the bundle's detector of 8 x 8 x 3",
        ),
        (
            {"record": record(outputs=(Tensor(name="map", shape=(8, 8)),)).model_dump_json()},
            EngineError,
            "engine.json says",
        ),
    ],
    ids=["stale graph", "swapped plan", "other precision", "half a record", "other input", "other outputs"],
)
def test_what_does_not_belong_together_is_refused(
    bundle: Bundle, files: dict[str, bytes | str], error: type[AdedgeError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_engine(replaced(bundle, **files), EngineKey("onnxruntime", "fp32"), threads=1)
    assert "\n" not in str(caught.value)


def test_a_record_survives_its_json(bundle: Bundle) -> None:
    assert read_record(bundle, EngineKey("onnxruntime", "fp32")) == record()
    assert record().machine == platform.machine()


@pytest.mark.parametrize(
    ("change", "here", "message"),
    [
        ({}, {"library_version": "10.13.3.9"}, "built by version 10.3.0.30 and this machine has 10.13.3.9"),
        ({}, {"machine": "x86_64"}, "built for aarch64 and this machine is x86_64"),
        ({}, {"gpu": "Thor", "compute_capability": "11.0"}, "compute capability 8.7 and this machine's Thor has 11.0"),
        ({}, {"gpu": None, "compute_capability": None}, "this machine has none: use --target onnxruntime"),
        (
            {"flags": {"hardware_compatibility": "ampere-plus"}},
            {"gpu": "Turing", "compute_capability": "7.5"},
            "Turing has 7.5",
        ),
    ],
    ids=["version", "processor", "gpu", "no gpu", "older than ampere"],
)
def test_a_plan_for_another_machine_is_refused(change: dict[str, Any], here: dict[str, Any], message: str) -> None:
    check_machine(plan_record(), MachineInfo(**ORIN))
    with pytest.raises(EngineError, match=message):
        check_machine(plan_record(**change), MachineInfo(**{**ORIN, **here}))


def test_a_plan_built_for_ampere_and_later_runs_on_all_of_them() -> None:
    portable = plan_record(flags={"hardware_compatibility": "ampere-plus"})
    for capability in ("8.0", "8.9", "10.0", "12.1"):
        check_machine(portable, MachineInfo(**{**ORIN, "compute_capability": capability}))


@pytest.mark.parametrize(
    ("built", "here", "compatible", "opens"),
    [
        ("10.3.0.30", "10.3.0.26", False, True),
        ("10.3.0", "10.13.0", False, False),
        ("10.3.0", "10.13.3.9", True, True),
        ("8.6.1", "10.3.0", True, True),
        ("10.16.1", "11.4.0", True, True),
        ("8.6.1", "11.4.0", True, False),
        ("11.4.0", "10.16.1", True, False),
    ],
)
def test_versions_that_open_each_others_plans(built: str, here: str, compatible: bool, opens: bool) -> None:
    plan = plan_record(library_version=built, flags={"version_compatible": compatible})
    assert runs_on_version(plan, here) is opens


def test_versions_are_numbers_not_text() -> None:
    assert version_tuple("10.13.3.9") > version_tuple("10.3.0") > version_tuple("8.6.1")
    assert version_tuple("1.7.1.116+cu13") == (1, 7, 1, 116)
    with pytest.raises(EngineError, match="'unknown' is not a version"):
        version_tuple("unknown")


def test_an_unlisted_target_folder_is_ignored(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("engines/openvino-fp32/engine.json", "{}")
    assert engines_in(Bundle.open(bundle.path)) == [("onnxruntime", "fp32")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", r"engine.json is not valid JSON \(it holds an array .*\): build it again with 'adedge build-engine"),
        (b'{"batch": NaN}', "NaN is not a number in JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"target": "onnxruntime"}', r"is not an engine record of this adedge \('precision': .*build it again"),
    ],
    ids=["array", "nan", "deep", "incomplete"],
)
def test_a_damaged_record_is_named_with_its_remedy(bundle: Bundle, data: bytes, message: str) -> None:
    with bundle.edit() as draft:
        draft.write("engines/onnxruntime-fp32/engine.json", data)
    with pytest.raises(EngineError, match=message):
        read_record(Bundle.open(bundle.path), EngineKey("onnxruntime", "fp32"))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": (0, 1, 1)},
        {"batch": (2, 1, 4)},
        {"batch": (1, 1, 10**12)},
        {"input": Tensor(name="frame", shape=(3, 8, 8)).model_dump() | {"shape": (3, -8, 8)}},
        {"library_version": "9" * 5000},
        {"flags": {"dla_core": "first"}},
        {"flags": {"dla_core": -1}},
        {"flags": {"dla_core": 0.5}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_records_refuse_what_no_builder_writes(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**changes)
    assert record(flags={"dla_core": 1}).flags == {"dla_core": 1}


def test_an_input_of_another_rank_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="takes frames of 8 x 3, the bundle's detector of 8 x 8 x 3"):
        check_bundle(record(input=Tensor(name="frame", shape=(3, 8))), bundle)


def test_records_refuse_unknown_keys() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        record(nonsense=1)
