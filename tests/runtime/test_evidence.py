"""Evidence survives restarts, and goes before the disk is full; nothing else is ever deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adedge.runtime.disk import DiskFull
from adedge.runtime.evidence import EvidenceFolder, Retention, evidence_stem
from adedge.runtime.verdict import Verdict

RUNS = ("20260131T081502Z-4f2a", "20260201T000000Z-0000")
FREE = Retention(keep_free_bytes=0)


def verdict(index: int, name: str = "part.png", camera: int | None = None) -> Verdict:
    return Verdict(
        frame_id=index,
        name=name,
        captured_at_ns=0,
        decided_at_ns=0,
        score=1.0,
        threshold=0.5,
        anomalous=True,
        camera=camera,
        timings_ms={},
    )


def keep(folder: EvidenceFolder, index: int, size: int = 100, run: str = RUNS[0]) -> None:
    folder.write(
        evidence_stem(run, verdict(index)), {".png": bytes(size // 2), ".overlay.jpg": bytes(size - size // 2)}
    )


def numbers(path: Path) -> list[int]:
    """The frames whose evidence is there, in whole."""
    pictures = {p.name.removesuffix(".png") for p in path.glob("*_part.png")}
    assert pictures == {p.name.removesuffix(".overlay.jpg") for p in path.glob("*_part.overlay.jpg")}
    return sorted(int(name.split("_")[1]) for name in pictures)


def opened(path: Path, **limits: int) -> EvidenceFolder:
    return EvidenceFolder(path, (".png", ".overlay.jpg"), Retention(**{"keep_free_bytes": 0, **limits}))


def test_two_runs_keep_all(tmp_path: Path) -> None:
    for run in RUNS:
        keep(opened(tmp_path), 0, run=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{run}_000000_part.{suffix}" for run in RUNS for suffix in ("overlay.jpg", "png")
    ]


def test_the_oldest_go_first_also_those_of_an_earlier_run(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for index in (5, 3):  # in this order
        keep(folder, index)
        for path in tmp_path.glob(f"*_{index:06d}_*"):
            os.utime(path, (10 - index, 10 - index))
    later = opened(tmp_path, folder_bytes=300)
    for index in (8, 1, 2):
        keep(later, index, run=RUNS[1])
    assert numbers(tmp_path) == [1, 2, 8]
    keep(opened(tmp_path, folder_bytes=250), 9)
    assert len(numbers(tmp_path)) == 2
    assert 9 in numbers(tmp_path)


@pytest.mark.fault("foreign files, links and folders among the evidence")
def test_nothing_that_another_program_wrote_is_deleted(tmp_path: Path) -> None:
    stem = f"{RUNS[0]}_000000_part"
    foreign = [
        "holiday.png",
        "000012_part.png",  # an earlier version of adedge
        f"{stem}.npy",  # a map, in the folder of rejects
        f"{stem}.png.bak",
        f"copy of {stem}.png",
        f"{RUNS[0][:-1]}g_000000_part.png",
        f"{RUNS[0]}_12_part.png",
        f".{stem}.txt.part",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(bytes(1000))
    (tmp_path / f"{stem}.png").mkdir()
    link = tmp_path / f"{RUNS[0]}_000001_link.png"
    link.symlink_to(tmp_path / "holiday.png")
    folder = opened(tmp_path, folder_bytes=100)
    for index in range(1, 4):
        keep(folder, index)
    kept = {f"{RUNS[0]}_000003_part.png", f"{RUNS[0]}_000003_part.overlay.jpg", f"{stem}.png", link.name}
    assert {path.name for path in tmp_path.iterdir()} == {*foreign, *kept}


@pytest.mark.fault("the disk fills up with rejects and maps")
def test_space_is_kept_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = 2000  # bytes; what is free is what the folder's files leave
    other = 0

    def usage(path: Path) -> object:
        used = other + sum(file.stat().st_size for file in tmp_path.iterdir())
        return shutil._ntuple_diskusage(disk, used, disk - used)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = opened(tmp_path, keep_free_bytes=1500)
    for index in range(8):
        keep(folder, index)
    assert numbers(tmp_path) == [3, 4, 5, 6, 7]
    other = 250  # another program's
    keep(folder, 8)
    assert numbers(tmp_path) == [7, 8]
    other = 1000  # even without all evidence less than 1500 would be free: deleting it would not help
    with pytest.raises(DiskFull, match="--keep-free"):
        keep(folder, 9)
    assert numbers(tmp_path) == [7, 8]
    other = 0
    keep(folder, 10)
    assert numbers(tmp_path) == [7, 8, 10]


@pytest.mark.fault("the disk fills up with rejects and maps")
def test_a_disk_that_is_full_at_the_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, os.strerror(28))

    path = tmp_path / "new" / "rejects"
    monkeypatch.setattr(Path, "mkdir", full)
    folder = opened(path)
    with pytest.raises(DiskFull):
        keep(folder, 0)
    monkeypatch.undo()
    keep(folder, 1)
    assert numbers(path) == [1]


def test_one_percent_of_the_disk_stays_free_at_most_half_a_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, kept in ((10_000_000_000, 100_000_000), (1_000_000_000_000, 500_000_000)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, t=total: shutil._ntuple_diskusage(t, t, 0))  # type: ignore[attr-defined]
        assert Retention().missing_bytes(Path()) == kept


def test_a_reject_larger_than_the_folder_may_be_deletes_nothing(tmp_path: Path) -> None:
    folder = opened(tmp_path, folder_bytes=250)
    keep(folder, 0)
    with pytest.raises(DiskFull, match="--evidence-size"):
        keep(folder, 1, size=251)
    assert numbers(tmp_path) == [0]


def test_parts_that_a_power_cut_left_are_removed_after_a_while(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{run}_000000_part.png.part" for run in RUNS)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


@given(st.binary(max_size=300).map(os.fsdecode), st.none() | st.integers(0, 10**4), st.integers(0, 10**9))
def test_every_name_becomes_a_file_name_of_ours(
    tmp_path_factory: pytest.TempPathFactory, name: str, camera: int | None, index: int
) -> None:
    path = tmp_path_factory.mktemp("evidence", numbered=True)
    stem = evidence_stem(RUNS[0], verdict(index, name, camera))
    EvidenceFolder(path, (".overlay.jpg",), FREE).write(stem, {".overlay.jpg": b"1"})
    assert [p.name for p in path.iterdir()] == [f"{stem}.overlay.jpg"]
    EvidenceFolder(path, (".overlay.jpg",), Retention(keep_free_bytes=0, folder_bytes=1)).write(
        "x", {".overlay.jpg": b"2"}
    )
    assert [p.name for p in path.iterdir()] == ["x.overlay.jpg"]


def test_the_name_fits_into_that_of_a_file_and_sorts_by_run_camera_and_frame() -> None:
    stem = evidence_stem(RUNS[0], verdict(1, "😀" * 100 + ".png"))
    assert len(f".{stem}.overlay.jpg.part".encode()) < 255
    assert evidence_stem(RUNS[0], verdict(12, "Größe 中文.png", camera=1)) == f"{RUNS[0]}_camera1_000012_Größe_中文"
