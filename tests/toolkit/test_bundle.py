"""The bundle keeps its promises: whole or not at all, and nothing is read that is not what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adedge.bundle import MANIFEST, Bundle, Manifest, Provenance, create
from adedge.errors import BundleError
from adedge.specs import Dssim, InputSpec, ScoreSpec


def manifest() -> Manifest:
    return Manifest(
        method="oesdn",
        variant="oe-sdn",
        network={"channels": 1},
        input=InputSpec(height=32, width=32, channels=1, color="gray"),
        score=ScoreSpec(comparison=Dssim()),
        provenance=Provenance(
            created="2026-01-01T00:00:00Z",
            data="parts",
            data_digest="0" * 64,
            seed=0,
            budget="quick",
            device="cpu",
            versions={},
        ),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    path = tmp_path / "part.adedge"
    with create(path, manifest()) as draft:
        draft.write("weights.safetensors", b"weights")
        draft.write("engines/onnxruntime-fp32/engine.plan", b"plan")
    return Bundle.open(path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(bundle: Bundle) -> list[str]:
    return [p.name for p in bundle.path.parent.iterdir() if p != bundle.path]


def test_created_bundle_records_the_digest_of_every_file(bundle: Bundle) -> None:
    record = bundle.manifest.files["engines/onnxruntime-fp32/engine.plan"]
    assert record.sha256 == hashlib.sha256(b"plan").hexdigest()
    assert record.bytes == 4
    assert bundle.file("weights.safetensors").read_bytes() == b"weights"
    assert bundle.verify() == []
    assert leftovers(bundle) == []


def test_edit_changes_files_and_manifest_together(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
        draft.remove("engines/onnxruntime-fp32")
        draft.manifest = draft.manifest.replace(variant="ae")
    edited = Bundle.open(bundle.path)
    assert edited.manifest.variant == "ae"
    assert set(edited.manifest.files) == {"weights.safetensors", "golden.npz"}
    assert edited.verify() == []
    assert leftovers(edited) == []


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_edit_that_raises_leaves_the_bundle_as_it_was(bundle: Bundle, failure: BaseException) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(type(failure)), bundle.edit() as draft:
        draft.write("weights.safetensors", b"other")
        draft.remove("engines")
        raise failure
    assert snapshot(bundle.path) == before
    assert leftovers(bundle) == []


def test_full_disk_is_one_sentence_and_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(BundleError, match="disk that holds .* is full"), bundle.edit() as draft:
        draft.write("weights.safetensors", b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert snapshot(bundle.path) == before


def test_killed_writer_leaves_the_bundle_and_its_leftovers_are_swept(bundle: Bundle) -> None:
    before = snapshot(bundle.path)
    script = (
        "import os, signal, sys; from adedge.bundle import Bundle\n"
        "with Bundle.open(sys.argv[1]).edit() as draft:\n"
        "    draft.write('weights.safetensors', b'other'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(bundle.path)], check=False)
    assert snapshot(bundle.path) == before
    assert leftovers(bundle) != []
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    assert leftovers(bundle) == []


def test_second_writer_is_refused(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
        with pytest.raises(BundleError, match="another adedge command is writing"), bundle.edit():
            pass


def test_bundle_that_changed_since_it_was_opened_is_refused(bundle: Bundle) -> None:
    stale = Bundle.open(bundle.path)
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(variant="ae")
    with pytest.raises(BundleError, match="changed while this command was running"), stale.edit():
        pass


def test_one_changed_byte_is_found(bundle: Bundle) -> None:
    path = bundle.path / "weights.safetensors"
    path.write_bytes(b"weightS")
    with pytest.raises(BundleError, match="not the file that was written"):
        bundle.file("weights.safetensors")
    assert len(bundle.verify()) == 1


def test_missing_unlisted_and_linked_files_are_found(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "weights.safetensors").unlink()
    (bundle.path / "stranger.bin").write_bytes(b"")
    outside = tmp_path / "outside"
    outside.write_bytes(b"plan")
    plan = bundle.path / "engines/onnxruntime-fp32/engine.plan"
    plan.unlink()
    plan.symlink_to(outside)
    problems = "\n".join(bundle.verify())
    assert "weights.safetensors is missing" in problems
    assert "stranger.bin is not listed" in problems
    assert "engine.plan is missing" in problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "schema_version": 99}, "schema version 99"),
        (lambda m: {**m, "colour": 1}, "damaged at 'colour'"),
        (lambda m: {**m, "input": {**m["input"], "height": -1}}, "damaged at 'input.height'"),
        (lambda m: [m], "schema version None"),
    ],
    ids=["version", "unknown key", "bad value", "not an object"],
)
def test_damaged_manifest_is_one_sentence(bundle: Bundle, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = bundle.path / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_truncated_manifest_is_one_sentence(bundle: Bundle) -> None:
    path = bundle.path / MANIFEST
    path.write_text(path.read_text()[:100])
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(bundle.path)


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path, bundle: Bundle) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(BundleError, match="is not a bundle"), create(folder, manifest(), overwrite=True):
        pass
    with pytest.raises(BundleError, match="already holds a bundle"), create(bundle.path, manifest()):
        pass
    with create(bundle.path, manifest(), overwrite=True) as draft:
        draft.write("weights.safetensors", b"new")
    assert set(Bundle.open(bundle.path).manifest.files) == {"weights.safetensors"}


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/../../escape"])
def test_files_cannot_be_written_outside(bundle: Bundle, name: str) -> None:
    with pytest.raises(BundleError, match="outside the bundle"), bundle.edit() as draft:
        draft.write(name, b"")


def test_a_link_to_a_bundle_stays_a_link(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle.path)
    with Bundle.open(link).edit() as draft:
        draft.write("new.txt", "new")
    assert link.is_symlink()
    assert Bundle.open(bundle.path).file("new.txt").read_text() == "new"
    assert leftovers(bundle) == ["current"]


def test_the_current_folder_may_be_the_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.path)
    with Bundle.open(".").edit() as draft:
        draft.write("new.txt", "new")
    monkeypatch.chdir(bundle.path)
    assert Bundle.open(".").file("new.txt").read_text() == "new"
    with pytest.raises(BundleError, match="give one, such as"), create(".", manifest(), overwrite=True):
        pass


def test_exchange_cut_off_between_two_renames_is_undone(bundle: Bundle) -> None:
    bundle.path.rename(bundle.path.with_name(f".{bundle.path.name}.previous"))
    assert Bundle.open(bundle.path).verify() == []
