"""A writer killed before any of its steps leaves the old bundle or the new one, and the next writer is not hindered."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adedge import staging
from adedge.bundle import Bundle, create
from adedge.errors import BundleError
from adedge.manifest import Manifest, Provenance
from adedge.signing import create_key, sign
from adedge.specs import Dssim, InputSpec, ScoreSpec
from adedge.staging import recover, stage, staging_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

# What Python announces before it changes the file system, or calls a function of the C library.
STRUCK = 7  # exit code of a child that was struck and went on
STEPS = frozenset({"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "ctypes.call_function", "fcntl.flock"})


def manifest() -> Manifest:
    return Manifest(
        method="oesdn",
        variant="old",
        network={"channels": 1},
        input=InputSpec(height=32, width=32, channels=1, color="gray"),
        score=ScoreSpec(comparison=Dssim()),
        provenance=Provenance(created="", data="", data_digest="", seed=0, budget="", device="cpu", versions={}),
    )


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def struck_before(step: int, path: Path, action: Callable[[], object], strike: Callable[[], None]) -> bool:
    """Do ``action`` in a child process, and ``strike`` there before step number ``step``; False if it takes fewer.

    A child that is not killed must end with success, `KeyboardInterrupt` or `BundleError`, and can write ``path`` again
    at once.
    """
    child = os.fork()
    if child == 0:
        remaining, fsync = step, os.fsync
        steps = STEPS | {"os.fsync"} - {"ctypes.call_function"} if strike is fail else STEPS

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal remaining
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in steps or writes:
                remaining -= 1
                if remaining == -1:
                    strike()

        def announced_fsync(descriptor: int) -> None:
            sys.audit("os.fsync", descriptor)
            fsync(descriptor)

        try:
            os.fsync = announced_fsync
            sys.addaudithook(count)
            with suppress(*{interrupt: (KeyboardInterrupt,), fail: (BundleError,)}.get(strike, ())):
                action()
            struck, remaining = remaining < 0, -1  # from here on, no step is struck
            with stage(path):
                pass
            os._exit(STRUCK if struck else 0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, STRUCK)
    return code == STRUCK


def write(path: Path, variant: str) -> None:
    with create(path, manifest().replace(variant=variant), overwrite=True) as draft:
        draft.write("weights.safetensors", variant)
        draft.write("engines/tensorrt-fp16/engine.plan", variant)


def edit(path: Path) -> None:
    with Bundle.open(path).edit() as draft:
        draft.write("weights.safetensors", "new")
        draft.write("golden.npz", "new")
        draft.remove("engines")
        draft.manifest = draft.manifest.replace(variant="new")


KILL = pytest.mark.fault("a writer of a bundle is killed before any of its steps")
INTERRUPT = pytest.mark.fault("Ctrl-C before any step of a writer of a bundle")
FAIL = pytest.mark.fault("any step of a writer of a bundle fails with an I/O error")


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize(
    ("strike", "action"),
    [
        *(pytest.param(kill, action, marks=KILL) for action in ("create", "overwrite", "edit", "sign")),
        pytest.param(interrupt, "edit", marks=INTERRUPT),
        pytest.param(fail, "edit", marks=FAIL),
    ],
)
def test_struck_at_every_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    strike: Callable[[], None],
    action: str,
    exchange: bool,
) -> None:
    if not exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    create_key(tmp_path / "key")
    act: dict[str, Callable[[Path], object]] = {
        "create": lambda path: write(path, "new"),
        "overwrite": lambda path: write(path, "new"),
        "edit": edit,
        "sign": lambda path: sign(Bundle.open(path), tmp_path / "key"),
    }
    states = set()
    for step in range(200):
        path = tmp_path / f"{step}" / "part.adedge"
        path.parent.mkdir()
        if action != "create":
            write(path, "old")
        struck = struck_before(step, path, lambda path=path: act[action](path), strike)  # type: ignore[misc]
        recover(path)
        states.add(check(path, action))
        if not struck:
            break
    else:
        pytest.fail("the action never ended")
    assert step > 10
    record_property("tries", step)
    assert len(states) == 2


def check(path: Path, action: str) -> str:
    """The state that a kill has left: "none", or the variant of a whole bundle, and whether it is signed."""
    state = "none"
    if action != "create" or path.exists():
        bundle = Bundle.open(path)
        assert bundle.verify() == []
        assert bundle.read("weights.safetensors").decode() == bundle.manifest.variant
        state = f"{bundle.manifest.variant}{', signed' if bundle.signature else ''}"
    write(path, "next")
    assert Bundle.open(path).read("weights.safetensors") == b"next"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return state


def test_a_folder_of_the_user_is_never_removed(tmp_path: Path) -> None:
    home = staging_folder(tmp_path / "part.adedge")
    home.mkdir()
    (home / "new").mkdir()
    (home / "photograph.png").write_bytes(b"mine")
    with pytest.raises(BundleError, match="is in the way and was not made by adedge"), stage(tmp_path / "part.adedge"):
        pass
    assert sorted(one.name for one in home.iterdir()) == ["new", "photograph.png"]


def test_neighbours_whose_names_end_in_numbers_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "part.adedge"
    neighbours = [
        tmp_path / name for name in (".part.adedge.1.backup", ".part.adedge.999999.x", ".part.adedge.previous")
    ]
    for neighbour in neighbours:
        neighbour.mkdir()
    write(path, "new")
    edit(path)
    assert all(neighbour.is_dir() for neighbour in neighbours)


def test_a_link_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    staging_folder(tmp_path / "part.adedge").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is in the way"), stage(tmp_path / "part.adedge"):
        pass


def test_a_writer_waits_for_nobody_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "part.adedge"
    with stage(path), pytest.raises(BundleError, match="another adedge command is writing .*part.adedge"), stage(path):
        pass
    with stage(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_reader_finds_the_bundle_while_it_is_being_exchanged_without_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old bundle has been moved away by a writer that is alive: the reader waits, and then says who is at work."""
    path = tmp_path / "part.adedge"
    write(path, "old")
    monkeypatch.setattr(staging, "WAIT_S", 0.05)
    with stage(path):
        path.rename(staging_folder(path) / "old")
        with pytest.raises(BundleError, match="another adedge command is writing"):
            Bundle.open(path)
    assert Bundle.open(path).manifest.variant == "old"


@pytest.mark.fault("eight processes write one bundle at once")
def test_many_writers_at_once_write_one_after_another_or_are_refused(tmp_path: Path) -> None:
    """Eight processes add one to a number in the bundle until each has done so five times: none is lost."""
    path = tmp_path / "part.adedge"
    with create(path, manifest()) as draft:
        draft.write("weights.safetensors", "0")
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            done = 0
            try:
                while done < 5:
                    try:
                        bundle = Bundle.open(path)
                        with bundle.edit() as draft:
                            draft.write("weights.safetensors", str(int(bundle.read("weights.safetensors")) + 1))
                        done += 1
                    except BundleError:
                        continue
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {0}
    assert Bundle.open(path).read("weights.safetensors") == b"40"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def leave(home: Path, name: str) -> None:
    """Leave a staging folder that holds the marker and ``name``, in which nobody may write."""
    (home / name / "engines").mkdir(parents=True)
    (home / name / "engines" / "engine.onnx").write_text("left")
    (home / name / "engines").chmod(0o555)
    (home / "lock").touch()


@pytest.mark.fault("something odd in the place of a staging folder")
@pytest.mark.parametrize(
    "leftover",
    [
        lambda home: leave(home, "new"),
        lambda home: leave(home, "old"),
        lambda home: (home.mkdir(), (home / "lock").touch(), (home / "new").write_text("a file")),
        lambda home: (home.mkdir(), (home / "lock").touch(), (home / "new").symlink_to("/tmp")),
        lambda home: (home.mkdir(), (home / "lock").touch(), (home / "old").symlink_to("nowhere")),
        lambda home: home.mkdir(),
    ],
    ids=["read-only new", "read-only old", "file", "link", "link to nowhere", "empty"],
)
def test_what_is_left_in_a_staging_folder_is_swept(tmp_path: Path, leftover: Callable[[Path], object]) -> None:
    path = tmp_path / "part.adedge"
    write(path, "old")
    leftover(staging_folder(path))
    edit(path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.fault("something odd in the place of a staging folder")
@pytest.mark.parametrize("obstacle", ["link to nowhere", "file", "lock is a folder", "lock is a link"])
def test_what_is_in_the_way_is_named_at_once(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "part.adedge"
    home = staging_folder(path)
    write(path, "old")
    if obstacle == "link to nowhere":
        home.symlink_to("nowhere")
    elif obstacle == "file":
        home.write_text("mine")
    else:
        home.mkdir()
        (home / "lock").mkdir() if obstacle == "lock is a folder" else (home / "lock").symlink_to("nowhere")
    with pytest.raises(BundleError, match=re.escape(str(home))):
        edit(path)
    assert Bundle.open(path).read("weights.safetensors") == b"old"


def as_nobody(action: Callable[[], object]) -> str:
    """The message of the error that ``action`` raises when done by a user without privileges, "" if none."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            action()
            os.write(send, b"")
        except BundleError as error:
            os.write(send, str(error).encode())
        except BaseException as error:
            os.write(send, f"a traceback of {type(error).__name__}".encode())
        os._exit(0)
    os.close(send)
    os.waitpid(child, 0)
    with os.fdopen(receive) as stream:
        return stream.read()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which every user may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o077 == 0:  # pytest's own, one more below with several processes
            folder.chmod(0o755)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    return tmp_path / "shared"


@pytest.mark.fault("a bundle, its folder or a leftover belongs to another user")
def test_what_belongs_to_another_user_is_one_sentence_before_any_work(shared: Path) -> None:
    def start_editing() -> None:
        with Bundle.open(path).edit():
            raise AssertionError("the work has begun")

    path = shared / "part.adedge"
    write(path, "old")
    assert "part.adedge cannot be written (Permission denied): get write permission" in as_nobody(start_editing)
    path.chmod(0o777)
    staging_folder(path).mkdir(mode=0o700)
    assert "part.adedge.staging belongs to another user" in as_nobody(start_editing)
    assert as_nobody(lambda: Bundle.open(path).verify()) == ""
    staging_folder(path).rmdir()
    shared.chmod(0o755)
    assert "get write permission for it and for the folder that holds it" in as_nobody(start_editing)
    assert as_nobody(lambda: Bundle.open(path).verify()) == ""
    shared.chmod(0o700)
    assert "part.adedge cannot be opened (Permission denied)" in as_nobody(lambda: Bundle.open(path))


@pytest.mark.fault("a bundle that is a mount point, or part of a container's image")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_what_cannot_be_replaced_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "part.adedge"
    write(path, "old")

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    with monkeypatch.context() as refusing, pytest.raises(BundleError, match="is a mount point or part of a container"):
        refusing.setattr(Path, "rename", refuse)
        edit(path)
    assert check(path, "edit") == "old"


@pytest.mark.fault("a bundle that is a mount point, or part of a container's image")
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_is_refused_before_any_work_and_can_be_read(tmp_path: Path, kind: str) -> None:
    source, path = tmp_path / "source.adedge", tmp_path / "part.adedge"
    write(source, "old")
    path.mkdir()
    command = ["--bind", str(source)] if kind == "bind" else ["-t", "tmpfs", "tmpfs"]
    if subprocess.run(["mount", *command, str(path)], check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        shutil.copytree(source, path, dirs_exist_ok=True) if kind == "tmpfs" else None
        with pytest.raises(BundleError, match="is a mount point .*mount the folder"), Bundle.open(path).edit():
            pytest.fail("the work has begun")
        assert Bundle.open(path).verify() == []
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert not staging_folder(path).exists()


@pytest.mark.fault("a file system without locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "part.adedge"
    write(path, "old")
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(BundleError, match="cannot be locked .*file system with file locks"):
        edit(path)
    assert Bundle.open(path).verify() == []


@pytest.mark.fault("the disk does not confirm a bundle that was just put in place")
def test_a_bundle_that_was_replaced_is_not_called_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.adedge"
    write(path, "old")
    flush, inode = staging.flush_directory, path.stat().st_ino

    def fail_afterwards(folder: Path) -> None:
        if path.stat().st_ino != inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(folder)

    monkeypatch.setattr(staging, "flush_directory", fail_afterwards)
    with pytest.raises(BundleError, match="was written, but the disk does not confirm it") as error:
        edit(path)
    assert "unchanged" not in str(error.value)
    monkeypatch.undo()
    assert Bundle.open(path).manifest.variant == "new"


def test_a_deleted_bundle_that_comes_back_is_refused_before_the_training(tmp_path: Path) -> None:
    """A kill left the old bundle aside, and the user has deleted the new one."""
    path = tmp_path / "part.adedge"
    write(path, "old")
    home = staging_folder(path)
    home.mkdir()
    (home / "lock").touch()
    path.rename(home / "old")
    with pytest.raises(BundleError, match="already holds a bundle"), create(path, manifest()):
        pytest.fail("the training has begun")


def test_the_permissions_of_a_bundle_outlive_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "part.adedge"
    write(path, "old")
    path.chmod(0o700)
    edit(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_bundle_that_root_edits_stays_its_owners(shared: Path) -> None:
    """On a Jetson, commands run as root in a container, on a bundle of the user who has mounted it."""
    path = shared / "part.adedge"
    assert as_nobody(lambda: write(path, "old")) == ""
    with Bundle.open(path).edit() as draft:
        draft.write("engines/tensorrt-fp16/engine.plan", "by root")
    assert {one.stat().st_uid for one in (path, *path.rglob("*"))} == {65534}
    assert as_nobody(lambda: edit(path)) == ""
    assert [one.name for one in shared.iterdir()] == [path.name]
