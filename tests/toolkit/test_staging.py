"""A writer killed before any of its steps leaves the old bundle or the new one, and the next writer is not hindered."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
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


def killed_before(step: int, action: Callable[[], None]) -> bool:
    """Do ``action`` in a child process that kills itself before step number ``step``; False if it takes fewer steps."""
    child = os.fork()
    if child == 0:
        remaining = step

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal remaining
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in STEPS or writes:
                if remaining == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                remaining -= 1

        try:
            sys.addaudithook(count)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def write(path: Path, variant: str) -> None:
    with create(path, manifest().replace(variant=variant), overwrite=True) as draft:
        draft.write("weights.safetensors", variant)
        draft.write("engines/onnxruntime-fp32/engine.onnx", variant)


def edit(path: Path) -> None:
    with Bundle.open(path).edit() as draft:
        draft.write("weights.safetensors", "new")
        draft.write("golden.npz", "new")
        draft.remove("engines")
        draft.manifest = draft.manifest.replace(variant="new")


@pytest.mark.fault("a writer of a bundle is killed before any of its steps")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("action", ["create", "overwrite", "edit", "sign"])
def test_killed_at_every_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
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
        killed = killed_before(step, lambda path=path: act[action](path))  # type: ignore[misc]
        recover(path)
        states.add(check(path, action))
        if not killed:
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
