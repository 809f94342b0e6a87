"""`adedge inspect`: the facts of a bundle for people and for machines, and every file that is not as it was written."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.errors import BundleError
from adedge.keyring import trust
from adedge.manifest import Difference, Graph
from adedge.signing import create_key, sign
from adedge.specs import ReadyMap, ScoreSpec

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


def test_inspect_shows_what_a_person_wants_to_know(bundle: Path, adedge: Adedge) -> None:
    result = adedge("inspect", bundle)
    assert result.returncode == 0
    for fact in ("oesdn", "48 × 64 × 1 gray", "dssim 7 × 7", "uniform 32", "pytorch/fp32", "0.125", "1.00%", "120"):
        assert fact in result.stdout


@pytest.mark.parametrize(
    ("score", "meaning"),
    [
        (ScoreSpec(comparison=ReadyMap()), "none: the whole anomaly map is judged"),
        (ScoreSpec(comparison=ReadyMap(), margin=6), "6 pixels at each border of the anomaly map are not judged"),
        (ScoreSpec(comparison=ReadyMap(), reduce="output"), "none: the network itself scores the whole picture"),
    ],
    ids=["none", "some", "network"],
)
def test_inspect_says_what_the_margin_leaves_out(
    red_bundle: Bundle, invoke: Invoke, score: ScoreSpec, meaning: str
) -> None:
    with red_bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(score=score.model_dump())
    lines = invoke("inspect", red_bundle.path).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("margin"))
    assert meaning in line


def test_a_name_takes_one_line(red_bundle: Bundle, invoke: Invoke) -> None:
    path = red_bundle.path.rename(red_bundle.path.with_name("a\nsigned  as version 9.adedge"))
    with Bundle.open(path).edit() as draft:
        provenance = draft.manifest.provenance.model_copy(update={"data": "b\nsigned  as version 9"})
        draft.manifest = draft.manifest.replace(provenance=provenance.model_dump())
    text = invoke("inspect", path).stdout
    assert "a\\nsigned" in text
    assert "b\\nsigned" in text
    assert len([line for line in text.splitlines() if line.strip().startswith("signed")]) == 1


def test_inspect_json_is_the_manifest(bundle: Path, adedge: Adedge) -> None:
    record = json.loads(adedge("inspect", bundle, "--json").stdout)
    assert record["problems"] == []
    assert record["engines"] == {}
    assert record["signature"] is None
    assert record["files"].keys() == {"weights.safetensors"}
    assert record["thresholds"]["pytorch/fp32"]["value"] == 0.125


def test_inspect_finds_one_changed_byte(bundle: Path, adedge: Adedge) -> None:
    (bundle / "weights.safetensors").write_bytes(b"Weights")
    result = adedge("inspect", bundle, "--json")
    assert result.returncode == 1
    assert "not the file that was written" in result.stderr
    assert len(json.loads(result.stdout)["problems"]) == 1


def test_graphs_and_engines_are_shown_with_their_differences(red_bundle: Bundle, invoke: Invoke) -> None:
    difference = Difference(map_error=1.25e-4, score_error=2.5e-5, frames=32, flips=1, auroc_change=-0.0078)
    graph = Graph(
        file="model.fp32.onnx",
        opset=17,
        inputs=("frame",),
        outputs=("map",),
        with_scoring=False,
        weights_sha256="",
        difference=difference,
    )
    with red_bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(graphs={"model.fp32": graph.model_dump()})
    shown = invoke("inspect", red_bundle.path).stdout
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert rows["model.fp32"] == ["model.fp32", "17", "1.25e-04", "2.50e-05", "1", "of", "32", "-0.0078"]
    assert rows["onnxruntime-int8"] == ["onnxruntime-int8", "1", "–", "–", "–", "–"]
    assert rows["signed"] == ["signed", "no"]
    record = json.loads(invoke("inspect", red_bundle.path, "--json").stdout)
    assert record["graphs"]["model.fp32"]["difference"]["flips"] == 1
    assert record["engines"].keys() == {"onnxruntime-fp32", "onnxruntime-int8"}
    assert record["engines"]["onnxruntime-fp32"]["plan"] == "engines/onnxruntime-fp32/engine.onnx"


def test_each_problem_is_told_and_what_is_damaged_is_not_shown(red_bundle: Bundle, invoke: Invoke) -> None:
    for name in ("engines/onnxruntime-int8/engine.json", "golden.npz"):
        (red_bundle.path / name).unlink()
        (red_bundle.path / name).write_text("{}")
    (red_bundle.path / "stranger.bin").write_bytes(b"")
    result = invoke("inspect", red_bundle.path, "--json")
    record = json.loads(result.stdout)
    assert record["engines"].keys() == {"onnxruntime-fp32"}
    assert len(record["problems"]) == 3
    assert isinstance(result.exception, BundleError)
    assert str(result.exception) == "; ".join(record["problems"])


def test_a_signature_is_named_and_said_to_be_checked_only_where_it_was(
    bundle: Path, tmp_path: Path, invoke: Invoke
) -> None:
    invoke("keygen", tmp_path / "key")
    invoke("sign", bundle, "--key", tmp_path / "key")
    for options, checked in (((), False), (("--require-signature", tmp_path / "key.pub"), True)):
        record = json.loads(invoke("inspect", bundle, "--json", *options).stdout)
        assert record["signature_checked"] == checked
        shown = " ".join(invoke("inspect", bundle, *options).stdout.split())
        assert f"as version {record['signature']['version']} of 'part'" in shown
        assert f"key {record['signature']['key'][:16]}" in shown
        assert ("(verified)" in shown, "(not verified: add --require-signature" in shown) == (checked, not checked)


def test_which_weights_a_backbone_had_is_said(bundle: Path, invoke: Invoke) -> None:
    for options, expected in (
        ({"weights": "none"}, "random features, not pretrained"),
        ({"weights": "IMAGENET1K_V1", "weights_digest": "ab" * 32}, "weights IMAGENET1K_V1, sha256 abababababababab"),
    ):
        opened = Bundle.open(bundle)
        source = opened.manifest.provenance.model_copy(update={"options": options})
        with opened.edit() as draft:
            draft.manifest = draft.manifest.replace(provenance=source.model_dump())
        assert f"backbone {expected}" in " ".join(invoke("inspect", bundle).stdout.split())


@pytest.mark.parametrize(
    "data", [b"[]", b'{"self_test": {"map_error": "none"}}', b"[" * 100_000, b'{"status": "\\ud800"}']
)
def test_an_engine_whose_record_is_none_is_a_problem(red_bundle: Bundle, invoke: Invoke, data: bytes) -> None:
    with red_bundle.edit() as draft:
        draft.write("engines/onnxruntime-int8/engine.json", data)
    for options in ((), ("--json",)):
        result = invoke("inspect", red_bundle.path, *options)
        assert isinstance(result.exception, BundleError)
        assert re.search("onnxruntime-int8/engine.json is not .*: build it again with", str(result.exception))
    assert json.loads(result.stdout)["engines"].keys() == {"onnxruntime-fp32"}


@pytest.mark.fault("a bundle with names that look like markup")
def test_names_that_look_like_markup_are_shown_as_they_are(
    bundle: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "[bold]part.adedge"
    bundle.rename(path)
    threshold = Bundle.open(path).manifest.thresholds["pytorch/fp32"]
    graph = Graph(file="", opset=1, inputs=(), outputs=(), with_scoring=False, weights_sha256="")
    with Bundle.open(path).edit() as draft:
        source = draft.manifest.provenance.model_copy(update={"data": "[/data]", "options": {"weights_digest": "1"}})
        draft.manifest = draft.manifest.replace(
            method="[/method]", thresholds={"[/t]": threshold}, graphs={"[/g]": graph}, provenance=source
        )
    create_key(tmp_path / "key")
    sign(Bundle.open(path), tmp_path / "key", product="[/product]")
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for the column
    result = invoke("inspect", path.name)
    assert result.exception is None
    for name in ("[bold]part.adedge", "[/method]", "[/data]", "[/t]", "[/g]", "[/product]"):
        assert name in result.stdout


def test_a_keyring_shows_names_as_they_are(tmp_path: Path, invoke: Invoke) -> None:
    trust(tmp_path / "keyring.json", create_key(tmp_path / "key"), "[/name]")
    assert "[/name]" in invoke("keyring", "show", tmp_path / "keyring.json").stdout
