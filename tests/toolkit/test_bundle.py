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

from adedge import bundle as bundle_module
from adedge.bundle import Bundle, create
from adedge.errors import BundleError
from adedge.limits import Limit
from adedge.manifest import MANIFEST, Manifest, Provenance
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
    assert bundle.read("weights.safetensors") == b"weights"
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


@pytest.mark.fault("the disk is full while a bundle is written")
@pytest.mark.parametrize("files_before", [0, 1, 2], ids=["the first file", "the second file", "the manifest"])
def test_full_disk_is_one_sentence_and_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, files_before: int
) -> None:
    before = snapshot(bundle.path)
    fsync, flushed = os.fsync, []

    def fill(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_file():
            if len(flushed) == files_before:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flushed.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(BundleError, match="disk that holds .* is full"), bundle.edit() as draft:
        draft.write("weights.safetensors", b"half")
        draft.write("golden.npz", b"half")
    assert snapshot(bundle.path) == before
    assert leftovers(bundle) == []


def test_errors_of_the_block_are_not_blamed_on_the_bundle(bundle: Bundle) -> None:
    with pytest.raises(BrokenPipeError), bundle.edit():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


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
        bundle.read("weights.safetensors")
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
    assert "stranger.bin does not belong to the bundle" in problems
    assert "engine.plan is missing" in problems


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
    assert Bundle.open(bundle.path).read("new.txt") == b"new"
    assert leftovers(bundle) == ["current"]


def test_the_current_folder_may_be_the_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.path)
    with Bundle.open(".").edit() as draft:
        draft.write("new.txt", "new")
    monkeypatch.chdir(bundle.path)
    assert Bundle.open(".").read("new.txt") == b"new"
    with pytest.raises(BundleError, match="give one, such as"), create(".", manifest(), overwrite=True):
        pass


def test_the_bundle_that_an_edit_gives_is_the_one_that_is_opened_later_in_the_same_order(bundle: Bundle) -> None:
    threshold = {"value": 0.5, "false_alarm_rate": 0.01, "pictures": 100, "data_digest": ""}
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={"pytorch/fp32": threshold, "onnxruntime/fp32": threshold})
    assert list(draft.bundle.manifest.thresholds) == list(Bundle.open(bundle.path).manifest.thresholds)
    assert draft.bundle == Bundle.open(bundle.path)


def test_an_edit_gives_the_new_bundle(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    assert draft.bundle.read("golden.npz") == b"golden"
    assert draft.bundle.manifest == Bundle.open(bundle.path).manifest
    with draft.bundle.edit() as second:
        second.remove("golden.npz")
    assert not second.bundle.has("golden.npz")


def plant_file(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "engines/tensorrt-int8").mkdir()
    (bundle.path / "engines/tensorrt-int8/engine.json").write_text("{}")


def plant_key(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "release.key").write_text("secret")


def plant_link(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "golden.npz").symlink_to(outside / "golden.npz")


def plant_linked_folder(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "reports").symlink_to(outside)


def replace_folder_by_link(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "engines").rename(outside / "engines")
    (bundle.path / "engines").symlink_to(outside / "engines")


def delete_file(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "weights.safetensors").unlink()


def change_file(bundle: Bundle, outside: Path) -> None:
    (bundle.path / "weights.safetensors").write_bytes(b"Weights")


@pytest.mark.fault("a foreign, changed, deleted or linked file in a bundle that is edited")
@pytest.mark.parametrize(
    "tamper",
    [plant_file, plant_key, plant_link, plant_linked_folder, replace_folder_by_link, delete_file, change_file],
)
def test_an_edit_refuses_what_verify_refuses(bundle: Bundle, tmp_path: Path, tamper) -> None:  # type: ignore[no-untyped-def]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "golden.npz").write_bytes(b"golden")
    tamper(bundle, outside)
    problems = bundle.verify()
    assert problems
    with pytest.raises(BundleError) as refused, bundle.edit():
        pass
    assert str(refused.value).startswith(problems[0])


def test_what_an_operating_system_leaves_in_every_folder_is_neither_a_problem_nor_taken_over(bundle: Bundle) -> None:
    for name in (".DS_Store", "engines/Thumbs.db", "._weights.safetensors"):
        (bundle.path / name).write_bytes(b"litter")
    assert bundle.verify() == []
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    assert not (bundle.path / ".DS_Store").exists()
    assert draft.bundle.verify() == []


@pytest.mark.fault("a file of a bundle is exchanged between check and use")
def test_a_file_that_is_swapped_after_the_check_is_not_recorded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit keeps the digest of a file that it did not write, whatever the file holds by then."""
    verify = Bundle.verify

    def verify_then_swap(self: Bundle) -> list[str]:
        problems = verify(self)
        path = self.path / "weights.safetensors"
        path.unlink()
        path.write_bytes(b"foreign")
        return problems

    monkeypatch.setattr(Bundle, "verify", verify_then_swap)
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    monkeypatch.undo()
    with pytest.raises(BundleError, match="not the file that was written"):
        draft.bundle.read("weights.safetensors")


def test_the_bytes_that_were_checked_are_the_bytes_that_are_used(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bundle.json and a file are each opened once: a swap at any other moment is too late, or is found."""
    opened: list[str] = []
    real_open = os.open

    def record(path, *arguments, **options) -> int:  # type: ignore[no-untyped-def]
        opened.append(Path(path).name)
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", record)
    Bundle.open(bundle.path).read("weights.safetensors")
    assert opened.count(MANIFEST) == 1
    assert opened.count("weights.safetensors") == 1


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k not in ("graphs", "thresholds")}),
        lambda text: json.dumps(json.loads(text)),
    ],
    ids=["CRLF", "without keys that have defaults", "one line"],
)
def test_a_manifest_in_another_form_can_be_edited(bundle: Bundle, rewrite) -> None:  # type: ignore[no-untyped-def]
    path = bundle.path / MANIFEST
    path.write_bytes(rewrite(path.read_text()).encode())
    with Bundle.open(bundle.path).edit() as draft:
        draft.write("golden.npz", b"golden")
    assert Bundle.open(bundle.path).verify() == []


def test_a_pipe_in_place_of_a_file_is_refused_at_once(bundle: Bundle) -> None:
    for name in ("weights.safetensors", MANIFEST):
        (bundle.path / name).unlink()
        os.mkfifo(bundle.path / name)
    with pytest.raises(BundleError, match="not the file that was written"):
        bundle.read("weights.safetensors")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.open(bundle.path)


def test_everything_is_on_disk_before_a_new_bundle_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.adedge"
    flushed: set[int] = set()
    fsync, early = os.fsync, []

    def record(descriptor: int) -> None:
        if not path.exists():
            flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with create(path, manifest()) as draft:
        draft.write("engines/onnxruntime-fp32/engine.plan", b"plan")
        early = [p.stat().st_ino for p in tmp_path.rglob("engine.plan")]
    assert set(early) <= flushed
    everything = [path, *path.rglob("*")]
    assert {p.name for p in everything if p.stat().st_ino not in flushed} == set()


def test_a_second_training_into_one_place_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    path = tmp_path / "part.adedge"
    with create(path, manifest()) as draft:
        with pytest.raises(BundleError, match="another adedge command is writing"), create(path, manifest()):
            pass
        draft.write("weights.safetensors", b"first")
    assert Bundle.open(path).read("weights.safetensors") == b"first"


def test_an_edit_that_began_before_an_overwriting_training_does_not_undo_it(bundle: Bundle) -> None:
    with create(bundle.path, manifest(), overwrite=True) as draft:
        draft.write("weights.safetensors", b"new")
        with pytest.raises(BundleError, match="another adedge command is writing"), bundle.edit():
            pass
    with pytest.raises(BundleError, match="changed while this command was running"), bundle.edit():
        pass
    assert Bundle.open(bundle.path).read("weights.safetensors") == b"new"


def test_what_appears_during_a_training_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "part.adedge"
    with pytest.raises(BundleError, match="is not a bundle"), create(path, manifest()) as draft:
        draft.write("weights.safetensors", b"mine")
        path.mkdir()
        (path / "photograph.png").write_bytes(b"theirs")
    assert snapshot(path) == {"photograph.png": b"theirs"}


def test_without_hard_links_files_are_copied_and_flushed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
    assert draft.bundle.verify() == []
    assert leftovers(bundle) == []


@pytest.mark.parametrize("path", ["/", "..", "loop", "x" * 255, "x" * 256, "part.adedge/bundle.json", "absent/deep"])
def test_a_path_without_a_bundle_is_one_sentence(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError):
        Bundle.open(path)
    if path != "absent/deep":
        with pytest.raises(BundleError, match=": (give|choose)"), create(path, manifest(), overwrite=True):
            pass


def test_a_bundle_that_was_edited_while_it_is_read_is_not_called_damaged(bundle: Bundle) -> None:
    with Bundle.open(bundle.path).edit() as draft:
        draft.write("weights.safetensors", b"Weights")
        draft.remove("engines")
    for name in ("weights.safetensors", "engines/onnxruntime-fp32/engine.plan"):
        with pytest.raises(BundleError, match="changed while this command was running: run it again"):
            bundle.read(name)


def test_a_reader_sees_manifest_and_signature_of_one_state(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is signed anew between the reading of bundle.json and of bundle.sig."""
    read, edits = bundle_module._read_if_present, iter([b"first", b"second"])

    def read_and_edit(path: Path, *limit: Limit) -> bytes | None:
        data = read(path, *limit)
        if path.name == MANIFEST and (signature := next(edits, None)):
            monkeypatch.setattr(bundle_module, "_read_if_present", read)
            with Bundle.open(bundle.path).edit(sign=lambda data: signature + data) as draft:
                draft.write("weights.safetensors", signature)
            monkeypatch.setattr(bundle_module, "_read_if_present", read_and_edit)
        return data

    monkeypatch.setattr(bundle_module, "_read_if_present", read_and_edit)
    opened = Bundle.open(bundle.path)
    assert opened.signature == b"second" + opened.manifest_bytes


def test_a_large_json_file_and_an_endless_one_are_refused_unread(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("training.json", b" ")
    path = bundle.path / MANIFEST
    record = json.loads(path.read_text())
    for name, size in (("training.json", 65 << 20), ("weights.safetensors", 1 << 40)):
        record["files"][name]["bytes"] = size
        os.truncate(bundle.path / name, size)  # a sparse file, which takes no space
    path.write_text(json.dumps(record))
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="training.json has 65 MB, and at most 64 are accepted"):
        opened.json("training.json")
    with pytest.raises(BundleError, match="weights.safetensors has 1024 GB"):
        opened.read("weights.safetensors")
    assert any("weights.safetensors has 1024 GB" in problem for problem in opened.verify())


@pytest.mark.parametrize("name", ["weights.safetensors/inner", "engines", "engines/onnxruntime-fp32"])
def test_a_file_cannot_take_the_place_of_a_folder_nor_lie_in_a_file(bundle: Bundle, name: str) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(BundleError, match="cannot be written"), bundle.edit() as draft:
        draft.write(name, b"")
    assert snapshot(bundle.path) == before


def test_a_removed_file_or_folder_can_be_written_again_as_the_other(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.remove("engines")
        draft.write("engines", b"now a file")
        draft.remove("weights.safetensors")
        draft.write("weights.safetensors/part", b"now in a folder")
    assert draft.bundle.verify() == []
    assert draft.bundle.read("engines") == b"now a file"


def test_the_files_of_the_manifest_are_what_was_written_whatever_the_block_says(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        draft.write("golden.npz", b"golden")
        draft.manifest = draft.manifest.replace(files={})
    assert set(draft.bundle.manifest.files) == {
        "engines/onnxruntime-fp32/engine.plan",
        "golden.npz",
        "weights.safetensors",
    }


def test_an_edit_in_an_edit_is_refused_and_harms_nothing(bundle: Bundle) -> None:
    with bundle.edit() as draft:
        with pytest.raises(BundleError, match="another adedge command is writing"), draft_of(bundle):
            pass
        draft.write("golden.npz", b"golden")
    assert draft.bundle.verify() == []


def draft_of(bundle: Bundle):  # type: ignore[no-untyped-def]
    return Bundle.open(bundle.path).edit()


@pytest.mark.parametrize("failure", [ValueError("x"), OSError(errno.EIO, "x"), KeyboardInterrupt()])
def test_a_failure_to_sign_leaves_the_bundle_as_it_was(bundle: Bundle, failure: BaseException) -> None:
    def sign(manifest: bytes) -> bytes:
        raise failure

    before = snapshot(bundle.path)
    with pytest.raises((type(failure), BundleError)), bundle.edit(sign=sign):
        pass
    assert snapshot(bundle.path) == before
    assert leftovers(bundle) == []


def test_files_that_were_just_copied_are_flushed_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that was just copied from a USB stick is whole after a power cut once it is signed."""
    flushed, fsync = set(), os.fsync

    def record(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with bundle.edit() as draft:
        pass
    assert {(bundle.path / name).stat().st_ino for name in draft.bundle.manifest.files} <= flushed


def test_a_folder_in_place_of_a_file_is_one_sentence(bundle: Bundle) -> None:
    (bundle.path / "weights.safetensors").unlink()
    (bundle.path / "weights.safetensors").mkdir()
    with pytest.raises(BundleError, match="not the file that was written"):
        bundle.read("weights.safetensors")
    (bundle.path / MANIFEST).unlink()
    (bundle.path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read: Is a directory"):
        Bundle.open(bundle.path)
