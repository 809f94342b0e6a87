"""Pictures and videos: order, names, numbers, damaged files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.errors import DataError, SourceError
from adedge.runtime.sources import FolderSource, Frame, VideoSource, open_source

WriteVideo = Callable[..., Path]
Trim = Callable[..., None]


def picture(level: int, shape: tuple[int, ...] = (24, 32, 3)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of three sizes, one of them grey and one in a sub-folder, and a file that is none."""
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "b.png"), picture(2, (10, 20, 3)))
    cv2.imwrite(str(tmp_path / "a.png"), picture(1, (30, 40)))
    cv2.imwrite(str(tmp_path / "sub" / "c.png"), picture(3))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy frames whose mean level is ten times their number and 20, Motion JPEG, 12 frames per second."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("video") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (64, 48))
    for number in range(20):
        writer.write(rng.integers(10 * number, 10 * number + 41, (48, 64, 3), np.uint8))
    writer.release()
    return path


def test_folder_gives_its_pictures_in_order_with_their_own_sizes(folder: Path) -> None:
    source = open_source(str(folder))
    frames = list(source)
    assert [frame.name for frame in frames] == ["a.png", "b.png", "sub/c.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.image.shape[:2] for frame in frames] == [(30, 40), (10, 20), (24, 32)]
    assert [int(frame.image.flat[0]) for frame in frames] == [1, 2, 3]
    assert [frame.captured_at_ns for frame in frames] == sorted(frame.captured_at_ns for frame in frames)
    assert (source.total, source.live, source.skipped) == (3, False, 0)


def test_one_picture_is_a_source(folder: Path) -> None:
    assert [frame.name for frame in open_source(str(folder / "b.png"))] == ["b.png"]


def test_unreadable_picture_is_named_skipped_and_counted(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    notices: list[str] = []
    source = open_source(str(folder), notify=notices.append)
    assert [frame.index for frame in source] == [0, 2, 3], "the number of a skipped picture is left out"
    assert source.skipped == 1
    assert len(notices) == 1
    assert "aa.png" in notices[0]


def test_strict_refuses_an_unreadable_picture(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(DataError, match=r"aa\.png"):
        list(open_source(str(folder), strict=True))


def test_folder_of_unreadable_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="none of the 1 picture"):
        list(open_source(str(tmp_path)))


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_source(str(tmp_path))


def test_closing_ends_the_iteration(folder: Path) -> None:
    source = FolderSource(folder)
    source.open()
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []


def test_video_gives_every_frame_in_order(video: Path) -> None:
    source = open_source(str(video))
    levels = [float(frame.image.mean()) for frame in source]
    np.testing.assert_allclose(levels, [10 * number + 20 for number in range(20)], atol=3)
    assert (source.total, source.live) == (20, False)
    assert source.fps == pytest.approx(12)
    source.close()


def test_cut_off_video_gives_the_frames_before_the_cut_and_a_warning(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    notices: list[str] = []
    frames = list(open_source(str(cut), notify=notices.append))
    assert 3 < len(frames) < 17
    np.testing.assert_allclose(frames[2].image.mean(), 40, atol=3)
    assert len(notices) == 1
    assert f"after {len(frames)} of about 20 frames" in notices[0]


def test_whole_video_gives_no_warning(video: Path) -> None:
    notices: list[str] = []
    list(open_source(str(video), notify=notices.append))
    assert notices == []


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100], ids=["empty", "text"])
def test_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"film\.mp4 cannot be opened as a video"):
        open_source(str(path))


def test_closed_video_ends_without_a_warning(video: Path) -> None:
    notices: list[str] = []
    source = VideoSource(video, notify=notices.append)
    source.open()
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []
    assert notices == []


def damage(path: Path, *, start: float, stop: float) -> None:
    """Overwrite a part of the file, from one fraction of its length to another, as a bad disk does."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def shifts(frames: list[Frame]) -> list[int]:
    """By how many pixels each frame is shifted against the first."""
    first = frames[0].image.mean(2)
    return [
        int(np.argmin([np.abs(np.roll(first, 3 * n, 1) - frame.image.mean(2)).mean() for n in range(30)]))
        for frame in frames
    ]


@pytest.mark.fault("damaged packets anywhere in a video")
def test_frames_after_a_damaged_packet_are_given_under_their_own_numbers(
    tmp_path: Path, write_video: WriteVideo
) -> None:
    path = write_video(tmp_path / "a.mp4")
    damage(path, start=0.5, stop=0.6)
    notices: list[str] = []
    source = open_source(str(path), notify=notices.append)
    frames = list(source)
    numbers = [frame.index for frame in frames]
    assert (numbers[0], numbers[-1]) == (0, 29), "the last frame lies behind the damage"
    assert 1 <= source.skipped <= 10
    assert len(frames) + source.skipped == 30
    before = next(n for n, number in enumerate(numbers) if number != n)
    shown = dict(zip(numbers, shifts(frames), strict=True))
    # The decoder may patch up the frame at the edge of the damage; from the next key frame (24) on it needs nothing.
    for number in (*range(before - 1), *range(24, 30)):
        assert shown[number] == number
    (notice,) = notices
    assert f"{source.skipped} frame(s) from {before} on cannot be decoded" in notice


@pytest.mark.fault("damaged packets anywhere in a video")
def test_damage_that_hides_how_many_frames_it_took_is_counted_all_the_same(
    tmp_path: Path, write_video: WriteVideo
) -> None:
    path = write_video(tmp_path / "a.avi")
    damage(path, start=0.5, stop=0.6)
    notices: list[str] = []
    source = open_source(str(path), notify=notices.append)
    frames = list(source)
    assert 0 < source.skipped == 30 - len(frames) <= 10
    assert f"{source.skipped} of 30 frames cannot be decoded" in notices[-1]


@pytest.mark.fault("damaged packets anywhere in a video")
def test_the_last_packets_are_damaged(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "a.mp4")
    data = path.read_bytes()
    end = data.index(b"moov") / len(data)
    damage(path, start=end - 0.1, stop=end - 0.01)
    source = open_source(str(path))
    assert 0 < 30 - len(list(source)) == source.skipped


@pytest.mark.fault("damaged packets anywhere in a video")
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_strict_refuses_a_damaged_packet(tmp_path: Path, write_video: WriteVideo, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}")
    damage(path, start=0.5, stop=0.6)
    with pytest.raises(DataError, match=r"cannot be decoded.*leave out --strict"):
        list(open_source(str(path), strict=True))


def test_strict_refuses_a_cut_off_video(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(DataError, match="it is cut off"):
        list(open_source(str(cut), strict=True))


def test_a_trimmed_video_is_not_called_damaged(tmp_path: Path, write_video: WriteVideo, trim: Trim) -> None:
    path = write_video(tmp_path / "a.mp4")
    trim(path, first=0, frames=20)
    notices: list[str] = []
    source = open_source(str(path), strict=True, notify=notices.append)
    assert len(list(source)) < 30
    assert (source.skipped, notices) == (0, [])


def test_an_estimated_count_is_not_called_damage(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "a.webm")
    notices: list[str] = []
    source = open_source(str(path), strict=True, notify=notices.append)
    source.total = 45  # as of a video with a varying frame rate
    assert len(list(source)) == 30
    assert source.skipped == 0
    (notice,) = notices
    assert "30 frames, and its length suggests about 45: its frame rate varies" in notice
    assert "damaged" not in notice


@pytest.mark.fault("damaged packets anywhere in a video", tries=25)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv"])
def test_no_frame_is_lost_in_silence(tmp_path: Path, write_video: WriteVideo, suffix: str) -> None:
    """Damage anywhere: each frame is given, counted as skipped, or at least said to be missing."""
    path = write_video(tmp_path / f"a{suffix}")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for attempt in range(25):
        data = bytearray(whole)
        length = int(rng.integers(1, len(data) // 4))
        start = int(rng.integers(0, len(data) - length))
        data[start : start + length] = (
            bytes(length) if attempt % 2 else rng.integers(0, 256, length, np.uint8).tobytes()
        )
        path.write_bytes(data)
        notices: list[str] = []
        try:
            source = open_source(str(path), notify=notices.append)
            numbers = [frame.index for frame in source]
        except SourceError:
            continue  # of a video that cannot be opened at all
        assert numbers == sorted(set(numbers))
        # Where the number of frames is an estimate, one may be a matter of rounding.
        assert notices or len(numbers) >= (30 if suffix in (".mp4", ".avi") else 29)
        if suffix in (".mp4", ".avi"):
            assert len(numbers) + source.skipped == 30


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_what_a_folder_holds_besides_is_said_and_counted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("nas")
    cv2.imwrite(str(elsewhere / "d.png"), picture(4))
    (folder / "line1").symlink_to(elsewhere)
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "@eaDir").mkdir()
    notices: list[str] = []
    source = open_source(str(folder), notify=notices.append)
    assert [frame.name for frame in source] == ["a.png", "b.png", "line1/d.png", "sub/c.png"]
    assert (source.total, source.skipped) == (4, 1)
    assert len(notices) == 1
    assert "1 .heic" in notices[0]
    assert "@eaDir" in notices[0]
    with pytest.raises(DataError, match=r"1 \.heic"):
        open_source(str(folder), strict=True)


def test_strict_accepts_thumbnails_of_a_nas(folder: Path) -> None:
    (folder / "@eaDir").mkdir()
    assert len(list(open_source(str(folder), strict=True))) == 3


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_a_broken_link_to_a_folder_is_named_and_refused_by_strict(folder: Path) -> None:
    (folder / "line1").symlink_to("/mnt/is-not-mounted")
    notices: list[str] = []
    assert len(list(open_source(str(folder), notify=notices.append))) == 3
    assert "line1" in notices[0]
    with pytest.raises(DataError, match="line1"):
        open_source(str(folder), strict=True)


def test_a_jpeg_without_suffix_is_a_picture(folder: Path) -> None:
    (folder / "upload").write_bytes(cv2.imencode(".jpg", picture(9))[1].tobytes())
    (frame,) = open_source(str(folder / "upload"))
    assert (frame.name, int(frame.image[0, 0, 0])) == ("upload", 9)


@pytest.mark.fault("a pipe or a device in place of a file")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SourceError, match="none of the 1 picture"):
        list(open_source(str(tmp_path / "pipe.png")))


@pytest.mark.parametrize(("degrees", "quarters"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_a_video_is_turned_as_its_metadata_says(tmp_path: Path, degrees: int, quarters: int) -> None:
    """A phone stores the sensor's frames and, in the track header's matrix, the clockwise angle to show them at."""
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:32, :32] = 255
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (96, 64))
    for _ in range(5):
        writer.write(stored)
    writer.release()
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: behind times, track, duration, layer, group and volume
    assert struct.unpack_from(">9i", data, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    cos, sin = round(np.cos(np.radians(degrees))) << 16, round(np.sin(np.radians(degrees))) << 16
    struct.pack_into(">9i", data, matrix, cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(iter(open_source(str(path)))).image
    expected = np.rot90(stored, quarters)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 10
