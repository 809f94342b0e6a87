"""bundle.json: which names of files it may list, what is written into it, and what is read back from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from adedge.errors import BundleError
from adedge.manifest import FileRecord, Graph, Manifest, Normalisation, Provenance, Threshold, check_name
from adedge.specs import Dssim, EngineKey, Gaussian, InputSpec, ReadyMap, ScoreSpec

PROVENANCE = Provenance(
    created="2026-01-01T00:00:00Z",
    data="parts/größe",
    data_digest="0" * 64,
    seed=3,
    budget="quick",
    device="cpu",
    versions={"python": "3.10"},
    options={"iterations": 100, "rate": 0.5, "loss": "mse", "flip": True},
)
THRESHOLD = Threshold(value=0.25, false_alarm_rate=0.01, pictures=100, data_digest="1" * 64)
MANIFEST = Manifest(
    method="oesdn",
    variant="oe-sdn",
    network={"channels": 1, "bias": False, "slope": 0.1, "act": "relu"},
    input=InputSpec(height=32, width=48, channels=1, color="gray"),
    score=ScoreSpec(comparison=Dssim(window=9), filters=(Gaussian(sigma=2),)),
    normalisation=Normalisation(mean=0.1, std=0.2, pictures=100),
    thresholds={"pytorch/fp32": THRESHOLD, "tensorrt/int8": THRESHOLD},
    graphs={
        "model.int8": Graph(
            file="model.int8.onnx",
            opset=17,
            inputs=("frame",),
            outputs=("map",),
            with_scoring=False,
            weights_sha256="2" * 64,
            ranges_sha256="3" * 64,
            notes=("a note",),
        )
    },
    provenance=PROVENANCE,
    files={"engines/tensorrt-int8/engine.plan": FileRecord(sha256="4" * 64, bytes=4)},
)
IMPORTED = MANIFEST.replace(method="imported", score=ScoreSpec(comparison=ReadyMap()))


@pytest.mark.parametrize("name", ["golden.npz", "engines/a/engine.plan", ".hidden", "a..b", "...", "größe.onnx", "a b"])
def test_names_inside_the_bundle_are_accepted_as_they_are(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "outside the bundle") for name in ("", ".", "..", "/etc/passwd", "//a", "../../etc/passwd")),
        *((name, "outside the bundle") for name in ("a/../b", "a/..", "a//b", "a/", "./a", "a/./b")),
        *((name, "a backslash or a control character") for name in ("a\\b", "..\\b", "a\nb", "a\u001b[2J", "a\0")),
        *((name, "a backslash or a control character") for name in ("a\u202eb", "a\udcff")),
        *((name, "written by adedge itself") for name in ("bundle.json", "bundle.sig")),
    ],
)
def test_names_that_lie_elsewhere_or_deceive_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_name(name)


@pytest.mark.parametrize("manifest", [MANIFEST, IMPORTED], ids=["trained", "imported"])
def test_what_was_written_is_read_back(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.encode(), "bundle.json") == manifest


def test_it_is_written_as_indented_json_with_sorted_keys() -> None:
    text = MANIFEST.encode().decode("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    record = json.loads(text)
    assert record["schema_version"] == 1
    assert record["thresholds"]["tensorrt/int8"]["value"] == 0.25
    assert record["provenance"]["options"] == {"iterations": 100, "rate": 0.5, "loss": "mse", "flip": True}
    assert record["files"] == {"engines/tensorrt-int8/engine.plan": {"sha256": "4" * 64, "bytes": 4}}


def test_options_keep_their_types() -> None:
    network = Manifest.parse(MANIFEST.encode(), "bundle.json").network
    assert [(name, type(value)) for name, value in sorted(network.items())] == [
        ("act", str),
        ("bias", bool),
        ("channels", int),
        ("slope", float),
    ]


def record() -> dict[str, Any]:
    value = json.loads(MANIFEST.encode())
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "schema_version": 99}, "schema version 99; this adedge reads 1: use the adedge version that"),
        (lambda m: {k: v for k, v in m.items() if k != "schema_version"}, "schema version None"),
        (lambda m: {**m, "colour": 1}, "damaged at 'colour'"),
        (lambda m: {**m, "input": {**m["input"], "height": -1}}, "damaged at 'input.height'"),
        (lambda m: {**m, "files": {"a": {"sha256": "xyz", "bytes": 1}}}, "damaged at 'files.a.sha256'"),
        (lambda m: {**m, "files": {"a": {"sha256": "0" * 64, "bytes": -1}}}, "damaged at 'files.a.bytes'"),
        (lambda m: {k: v for k, v in m.items() if k != "method"}, "damaged at 'method'"),
        (lambda m: [m], "not valid JSON .it holds an array where an object is expected"),
    ],
    ids=["version", "no version", "unknown key", "bad value", "no digest", "bad size", "missing key", "not an object"],
)
def test_a_damaged_manifest_is_one_sentence_that_names_it(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message) as refused:
        Manifest.parse(json.dumps(change(record())).encode(), "part.adedge/bundle.json")
    assert str(refused.value).startswith("part.adedge/bundle.json ")
    assert "\n" not in str(refused.value)


def test_a_truncated_manifest_is_to_be_restored() -> None:
    with pytest.raises(BundleError, match="bundle.json is not valid JSON .*: restore the bundle from a copy"):
        Manifest.parse(MANIFEST.encode()[:100], "bundle.json")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a//b", "a\u001b[2J", "bundle.json", "a\\b"])
def test_a_manifest_that_lists_a_file_outside_is_refused(name: str) -> None:
    files = {name: {"sha256": "0" * 64, "bytes": 1}}
    with pytest.raises(BundleError, match="damaged at 'files|contains control characters"):
        Manifest.parse(json.dumps({**record(), "files": files}).encode(), "bundle.json")


def test_a_change_is_validated_and_leaves_the_original_as_it_was() -> None:
    assert MANIFEST.replace(variant="ae").variant == "ae"
    assert MANIFEST.variant == "oe-sdn"
    with pytest.raises(ValidationError, match="files"):
        MANIFEST.replace(files={"../a": {"sha256": "0" * 64, "bytes": 1}})


def test_an_imported_detector_has_no_pytorch_model() -> None:
    assert (MANIFEST.weights, MANIFEST.reference) == ("weights.safetensors", "pytorch/fp32")
    assert (IMPORTED.weights, IMPORTED.reference) == ("imported.onnx", "onnxruntime/fp32")


def test_a_threshold_belongs_to_one_engine() -> None:
    assert MANIFEST.threshold(EngineKey("tensorrt", "int8")) == 0.25
    assert MANIFEST.threshold("pytorch/fp32") == 0.25
    assert MANIFEST.threshold(EngineKey("tensorrt", "fp16")) is None
