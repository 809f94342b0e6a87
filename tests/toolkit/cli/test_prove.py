"""`adedge prove`: on a device without training packages, its sentences, its gates and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.cli.prove import summary_of
from adedge.data.datasets import Sample
from adedge.errors import BundleError, EngineError, GateError, OutputError
from adedge.export.proof import Proof, pictures_with_scores, stored_scores
from adedge.manifest import Threshold
from adedge.signing import create_key, require, sign

Invoke = Callable[..., Result]


@pytest.fixture
def bundle(red_bundle: Bundle) -> Bundle:
    return red_bundle


@pytest.fixture
def pictures(red_pictures: Path) -> Path:
    return red_pictures


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command on a device: none of the packages that training and exporting need."""
    absent = ("torch", "torchvision", "safetensors", "onnx", "scipy", "skimage", "matplotlib")
    script = f"import sys; sys.modules.update(dict.fromkeys({absent})); from adedge.cli import main; main()"
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_a_device_needs_neither_pytorch_nor_onnx(bundle: Bundle, pictures: Path) -> None:
    fitted = adedge("calibrate", bundle.path, pictures, "--thresholds-only", "--false-alarm-rate", 0.2)
    assert fitted.returncode == 0, fitted.stderr
    proved = adedge("prove", bundle.path, pictures, "--json", "--max-flips", 0)
    assert proved.returncode == 0, proved.stderr
    assert {one["engine"]: one["flips"] for one in json.loads(proved.stdout)["proofs"]} == {
        "onnxruntime/fp32": 0,
        "onnxruntime/int8": 0,
    }
    assert "on all 25 pictures" in proved.stderr


def test_gates_and_what_cannot_run_have_exit_codes(
    bundle: Bundle, pictures: Path, red_samples: tuple[Sample, ...]
) -> None:
    pictures_with_scores(bundle, red_samples)
    flips = adedge("prove", bundle.path, pictures, "--max-flips", 0)
    assert flips.returncode == 1
    assert "onnxruntime/int8 differs from the model on 1 of 25 pictures" in flips.stderr
    assert adedge("prove", bundle.path, pictures, "--max-flips", 1).returncode == 0
    nothing = adedge("prove", bundle.path, "--target", "tensorrt")
    assert nothing.returncode == 1
    assert "run 'adedge build-engine" in nothing.stderr


def test_the_golden_frames_alone_are_a_proof_of_four_pictures(bundle: Bundle, invoke: Invoke) -> None:
    result = invoke("prove", bundle.path, "--json")
    assert result.exit_code == 0, result.exception
    record = json.loads(result.stdout)
    assert record["bundle"] == str(bundle.path)
    assert [(one["engine"], one["pictures"], one["flips"]) for one in record["proofs"]] == [
        ("onnxruntime/fp32", 4, 0),
        ("onnxruntime/int8", 4, 0),
    ]
    assert record["proofs"][1]["golden"]["score_error"] == pytest.approx(0.08 * 240 / 255, abs=1e-6)
    # 4 pictures without a flip leave 1 - 0.05 ** (1 / 4).
    assert "on at most 52.71% of such pictures" in result.stderr
    table = invoke("prove", bundle.path).stdout
    assert [line.split()[0] for line in table.splitlines()] == ["engine", "onnxruntime/fp32", "onnxruntime/int8"]
    assert "0 of 4" in table


@pytest.mark.parametrize(
    ("flips", "words"),
    [(0, "agrees with the model on all 250 pictures"), (3, "agrees with the model on all but 3 of 250 pictures")],
)
def test_a_proof_in_words(flips: int, words: str) -> None:
    proof = Proof(engine="tensorrt/int8", pictures=250, flips=flips, flip_rate=0.03064)
    assert summary_of(proof) == (
        f"tensorrt/int8 {words}: with 95% confidence, it differs on at most 3.06% of such pictures"
    )


@pytest.mark.parametrize(
    ("threshold", "verdict", "missing"), [(2.0, "accepts", "defective"), (-1.0, "rejects", "good")]
)
def test_agreement_on_one_verdict_for_all_is_no_proof(
    bundle: Bundle, pictures: Path, invoke: Invoke, threshold: float, verdict: str, missing: str
) -> None:
    """Scores are levels / 255: none exceeds 2, and all exceed -1."""
    fitted = Threshold(value=threshold, false_alarm_rate=0.1, pictures=9, data_digest="")
    with bundle.edit() as draft:
        thresholds = {name: fitted.model_dump() for name in draft.manifest.thresholds}
        draft.manifest = draft.manifest.replace(thresholds=thresholds)
    for data, count in (((), 4), ((pictures,), 25)):
        result = invoke("prove", bundle.path, *data)
        assert result.exit_code == 0, result.exception
        for engine in ("onnxruntime/fp32", "onnxruntime/int8"):
            assert (
                f"warning: {engine} {verdict} all {count} pictures, as the model does, which proves nothing: compare "
                f"them on {missing} pictures too"
            ) in result.stderr
        assert "with 95% confidence" not in result.stderr


def test_without_thresholds_there_are_no_verdicts_and_no_gate_of_them(bundle: Bundle, invoke: Invoke) -> None:
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={})
    result = invoke("prove", bundle.path)
    assert result.exit_code == 0, result.exception
    assert "onnxruntime/int8: no verdicts to compare; fit its threshold with" in result.stderr
    refused = invoke("prove", bundle.path, "--max-flips", 0).exception
    assert isinstance(refused, GateError)
    assert str(refused).startswith("--max-flips cannot be checked: onnxruntime/fp32 has no threshold")


def test_a_signed_bundle_stays_signed_unless_scores_are_to_be_stored(
    bundle: Bundle, pictures: Path, tmp_path: Path, invoke: Invoke
) -> None:
    key = create_key(tmp_path / "key")
    sign(bundle, tmp_path / "key")
    flips = {"onnxruntime/fp32": 0, "onnxruntime/int8": 1}
    file = tmp_path / "new" / "proof.json"
    result = invoke("prove", bundle.path, pictures, "-o", file)
    assert result.exit_code == 0, result.exception
    assert {one["engine"]: one["flips"] for one in json.loads(file.read_text())["proofs"]} == flips
    assert f"scores of 25 pictures were not stored in {bundle.path}, because it is signed: " in result.stderr
    require(Bundle.open(bundle.path), key)
    assert Bundle.open(bundle.path).manifest == bundle.manifest

    assert "not stored" not in invoke("prove", bundle.path, pictures, "--no-store").stderr
    require(Bundle.open(bundle.path), key)

    result = invoke("prove", bundle.path, pictures, "--store")
    assert result.exit_code == 0, result.exception
    assert "not stored" not in result.stderr
    assert len(stored_scores(Bundle.open(bundle.path))) == 25
    with pytest.raises(BundleError, match="is not signed"):
        require(Bundle.open(bundle.path), key)
    sign(Bundle.open(bundle.path), tmp_path / "key")
    assert "not stored" not in invoke("prove", bundle.path, pictures).stderr  # they are there already


def test_a_bundle_that_cannot_be_written_is_proved_all_the_same(
    bundle: Bundle, pictures: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    result = invoke("prove", bundle.path, pictures, "--json")
    assert result.exit_code == 0, result.exception
    assert [one["pictures"] for one in json.loads(result.stdout)["proofs"]] == [25, 25]
    assert f"not stored in {bundle.path}, because this user may not write it: " in result.stderr
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    refused = invoke("prove", bundle.path, pictures, "--store")
    assert isinstance(refused.exception, BundleError)
    assert str(refused.exception) == f"{bundle.path} cannot be written by this user: leave --store out"
    refused = invoke("prove", bundle.path, "-o", tmp_path / "proof.json")
    assert isinstance(refused.exception, OutputError)
    assert f"the proof cannot be written to {tmp_path} ({tmp_path} is not writable): choose another place" in str(
        refused.exception
    )
    for call in (("--store",), ("-o", tmp_path / "proof.json")):
        assert "prove: " not in invoke("prove", bundle.path, pictures, *call).stderr  # nothing was run for it


def test_a_proof_that_cannot_be_written_is_told(bundle: Bundle, tmp_path: Path, invoke: Invoke) -> None:
    refused = invoke("prove", bundle.path, "-o", tmp_path).exception
    assert isinstance(refused, OutputError)
    assert f"the proof cannot be written to {tmp_path}" in str(refused)


def test_an_engine_that_does_not_run_counts_where_it_was_asked_for(bundle: Bundle, invoke: Invoke) -> None:
    plan = bundle.path / "engines/onnxruntime-int8/engine.onnx"
    plan.unlink()
    plan.write_bytes(b"changed")
    rest = invoke("prove", bundle.path)
    assert rest.exit_code == 0, rest.exception
    assert "warning: onnxruntime/int8: " in rest.stderr
    assert "not run here" in rest.stdout
    asked = invoke("prove", bundle.path, "--target", "onnxruntime").exception
    assert isinstance(asked, GateError)
    assert str(asked) == "not proved: onnxruntime/int8 (see above)"
    alone = invoke("prove", bundle.path, "--precision", "int8").exception
    assert isinstance(alone, EngineError)
    assert "no engine of" in str(alone)


def test_an_engine_beyond_its_tolerance_is_not_proved(
    bundle: Bundle, graph_that_shows_red: Callable[[float], bytes], invoke: Invoke
) -> None:
    """Golden frames that are half as bright as the model's maps say."""
    record = bundle.json("engines/onnxruntime-fp32/engine.json")
    graph = graph_that_shows_red(0.5)
    with bundle.edit() as draft:
        digests = {draft.write(name, graph).sha256 for name in (record["graph"], record["plan"])}
        (digest,) = digests
        draft.write_json(
            "engines/onnxruntime-fp32/engine.json", {**record, "plan_sha256": digest, "graph_sha256": digest}
        )
    result = invoke("prove", bundle.path)
    assert isinstance(result.exception, GateError)
    assert str(result.exception) == "not proved: onnxruntime/fp32 (see above)"
    assert "onnxruntime/fp32 differs from the model by" in result.stderr


def test_pictures_that_were_trained_on_are_named(
    bundle: Bundle, pictures: Path, red_samples: tuple[Sample, ...], invoke: Invoke
) -> None:
    with bundle.edit() as draft:
        draft.write_json("training.json", {"pictures": [sample.digest for sample in red_samples[:5]], "history": []})
    (pictures / "renamed.png").write_bytes((pictures / "005.png").read_bytes())  # contents count, not names
    said = invoke("prove", bundle.path, pictures).stderr
    assert "the detector was trained on 6 of these 26 pictures (" in said
    assert "and 3 more" in said
    fitted = invoke("calibrate", bundle.path, pictures, "--thresholds-only").stderr
    assert "20 good pictures for thresholds; 5 training pictures left out (" in fitted
    assert "and 3 more)" in fitted


def test_a_name_with_control_characters_stays_on_one_line(bundle: Bundle, pictures: Path) -> None:
    (pictures / "a\n\x1b[31mb.png").touch()
    said = adedge("prove", bundle.path, pictures).stderr.splitlines()
    assert [line for line in said if "is empty (0 bytes)" in line] == [
        f"warning: {pictures}/a\\n\\x1b[31mb.png is empty (0 bytes): copy it again, or remove it"
    ]
    refused = adedge("prove", bundle.path, "no\nsuch")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
