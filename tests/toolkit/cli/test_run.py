"""`adedge run` as a user calls it: a process with a real ONNX Runtime engine, its output, its exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle
from adedge.runtime.verdict import RUN_ID

pytest.importorskip("onnxruntime", reason="runs an engine with ONNX Runtime")
pytest.importorskip("onnx", reason="makes the engine's graph with onnx")

LEVELS = [0, 51, 204, 255, 102]  # of the pictures; the map is the picture, so the score is its level / 255


@pytest.fixture(scope="module")
def bundle(grey_bundle: Path) -> Path:
    """A detector whose map is the frame itself, with an engine and thresholds for fp32 only."""
    return grey_bundle


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, level in enumerate(LEVELS):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 30), level, np.uint8))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=60, env=_environment())


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "adedge", "run", *map(str, arguments)]


def _names(folder: Path) -> list[str]:
    """The names of the files of evidence, which all begin with the same run, without it."""
    runs, names = zip(*(path.name.split("_", 1) for path in sorted(folder.iterdir())), strict=True)
    assert len(set(runs)) == 1
    assert re.fullmatch(RUN_ID, runs[0])
    return list(names)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}


def test_folder_to_verdicts_on_stdout(bundle: Path, pictures: Path) -> None:
    result = run(bundle, pictures, "--threads", 1, "--batch", 2)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["name"] for record in records] == [f"{number}.png" for number in range(5)]
    np.testing.assert_allclose([record["score"] for record in records], np.array(LEVELS) / 255, atol=1e-6)
    assert [record["anomalous"] for record in records] == [level > 127 for level in LEVELS]
    assert {record["threshold"] for record in records} == {0.5}
    assert "onnxruntime/fp32, threshold 0.5" in result.stderr
    assert "5 frames: 3 passed, 2 rejected; 0 dropped, 0 skipped" in result.stderr


def test_every_output_at_once(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    outputs = {"--jsonl": "v.jsonl", "--video": "v.webm", "--rejects": "rejects", "--maps": "maps"}
    options = [word for name, file in outputs.items() for word in (name, tmp_path / file)]
    result = run(bundle, pictures, *options, "--fail-on-reject", "--threshold", 0.9, "--max-frames", 4)
    assert result.returncode == 3, result.stderr
    assert result.stdout == ""
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 4
    assert _names(tmp_path / "rejects") == ["000003_3.overlay.jpg", "000003_3.png"]
    assert len(list((tmp_path / "maps").iterdir())) == 4
    reader = cv2.VideoCapture(str(tmp_path / "v.webm"))
    assert sum(1 for _ in iter(reader.grab, False)) == 4


def test_several_sources_share_the_engine(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes((pictures / "3.png").read_bytes())
    result = run(
        *(bundle, pictures, tmp_path / "one.png", "--wait-ms", 500),
        *("--rejects", tmp_path / "rejects", "--video", tmp_path / "v.webm"),
    )
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    of_camera = [[record["score"] for record in records if record["camera"] == camera] for camera in (0, 1)]
    np.testing.assert_allclose(of_camera[0], np.array(LEVELS) / 255, atol=1e-6)
    np.testing.assert_allclose(of_camera[1], [1.0], atol=1e-6)
    rejected = {name for name in _names(tmp_path / "rejects") if name.endswith(".png")}
    assert rejected == {"camera0_000002_2.png", "camera0_000003_3.png", "camera1_000000_one.png"}
    for camera, frames in ((0, 5), (1, 1)):
        reader = cv2.VideoCapture(str(tmp_path / f"v.camera{camera}.webm"))
        assert sum(1 for _ in iter(reader.grab, False)) == frames
    assert "camera 1, " in result.stderr
    assert "6 frames: 3 passed, 3 rejected; 0 dropped, 0 skipped" in result.stderr


def test_options_mean_the_same_with_several_sources(bundle: Path, pictures: Path) -> None:
    result = run(
        *(bundle, pictures, pictures, "--threads", 1, "--wait-ms", 2000),
        *("--policy", "every", "--batch", 4, "--max-frames", 6),
    )
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["camera"] for record in records] == [0, 0, 1, 1, 0, 1]
    assert [record["frame"] for record in records] == [0, 1, 0, 1, 2, 2]
    assert result.stderr.count(f"{pictures}, policy every") == 2
    assert "6 frames: 4 passed, 2 rejected; 0 dropped, 0 skipped" in result.stderr
    newest = run(bundle, pictures, pictures, "--policy", "latest", "--batch", 3)
    assert newest.returncode == 2
    assert "a batch of 3 frames from 2 source(s) needs the policy 'every'" in newest.stderr


def test_one_missing_source_of_several_is_named(bundle: Path, pictures: Path) -> None:
    missing = run(bundle, pictures, "nowhere.mp4")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert "nowhere.mp4" in missing.stderr


def test_a_source_is_named_as_it_is(bundle: Path) -> None:
    result = run(bundle, "synthetic:brick?frames=1", "synthetic:brick?frames=1")
    assert result.returncode == 0, result.stderr
    assert "camera 0, synthetic:brick: 1 frames" in result.stderr


def test_unreadable_picture_is_named_and_counted(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "[a] good.png").write_bytes((pictures / "0.png").read_bytes())
    (tmp_path / "[b] broken.png").write_bytes(b"no picture")
    result = run(bundle, tmp_path)
    assert result.returncode == 0
    assert "[b] broken.png" in result.stderr
    assert "1 frames: 1 passed, 0 rejected; 0 dropped, 1 skipped" in result.stderr
    strict = run(bundle, tmp_path, "--strict")
    assert strict.returncode == 1
    assert "[b] broken.png" in strict.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--precision", "int8"), 1, "adedge build-engine"),
        (("--target", "tensorrt"), 1, "adedge build-engine"),
        (("--batch", "9"), 2, "takes 1 to 4 frames at once"),
        (("--policy", "latest", "--batch", "2"), 2, "policy 'every'"),
        (("--video", "film.gif"), 2, "is not a supported kind of video"),
        (("--jsonl", "/dev/full"), 1, "the disk that holds /dev/full is full"),
        (("--precision", "int4"), 2, "int4"),
    ],
)
def test_wrong_calls_are_one_sentence(
    bundle: Path, pictures: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    result = run(bundle, pictures, *options)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "options",
    [("--batch", "9"), ("--policy", "latest", "--batch", "2"), ("--video", "film.gif")],
    ids=["batch", "policy", "video"],
)
def test_a_refused_call_leaves_the_file_of_verdicts_alone(
    bundle: Path, pictures: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text("an earlier run\n")
    for path in (old, new):
        result = run(bundle, pictures, "--jsonl", path, *options)
        assert result.returncode == 2, result.stderr
        assert "0 frames" not in result.stderr
    assert old.read_text() == "an earlier run\n"
    assert not new.exists()


def test_a_restart_keeps_what_the_last_run_wrote(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    verdicts, rejects, video = (tmp_path / name for name in ("v.jsonl", "rejects", "v.avi"))
    for _ in range(2):
        result = run(bundle, pictures, "--jsonl", verdicts, "--rejects", rejects, "--video", video)
        assert result.returncode == 0, result.stderr
        with verdicts.open("ab") as file:
            file.write(b'{"run": "power cu')
    records = [json.loads(line) for line in verdicts.read_text().splitlines()[:-1]]
    assert [record["name"] for record in records] == [f"{number}.png" for number in range(5)] * 2
    runs = list(dict.fromkeys(record["run"] for record in records))
    assert len(runs) == 2
    written = sorted(path.name for path in rejects.glob("*.png"))
    assert written == sorted(f"{run}_00000{number}_{number}.png" for run in runs for number in (2, 3))
    assert {path.name for path in tmp_path.glob("*.avi")} == {"v.avi", f"v.{runs[1]}.avi"}
    assert "partial line of 17 bytes" in result.stderr


def test_verdicts_are_rotated(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    verdicts = tmp_path / "v.jsonl"
    result = run(bundle, pictures, "--jsonl", verdicts, "--rotate-size", "1", "--rotate-age", "1d", "--keep-files", "2")
    assert result.returncode == 0, result.stderr
    kept = [*sorted(set(tmp_path.iterdir()) - {verdicts}), verdicts]
    assert sorted(json.loads(path.read_text())["frame"] for path in kept) == [2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rotate-size", "1MB"), "add --jsonl"),
        (("--jsonl", "v.jsonl", "--rotate-size", "5 apples"), "'5 apples' is no size"),
        (("--jsonl", "v.jsonl", "--rotate-age", "0d"), "'0d' is no age"),
        (("--jsonl", "v.jsonl", "--keep-files", "3"), "add --rotate-size or --rotate-age"),
        (("--evidence-size", "5GB"), "add --rejects DIR or --maps DIR"),
    ],
)
def test_a_size_or_an_age_that_is_none_is_a_wrong_call(
    bundle: Path, pictures: Path, options: tuple[str, ...], message: str
) -> None:
    result = run(bundle, pictures, *options)
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.fault("the disk fills up with rejects and maps")
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_the_inspection_outlives_its_evidence(bundle: Path, pictures: Path, tmp_path: Path, strict: bool) -> None:
    outputs = ("--rejects", tmp_path / "rejects", "--maps", tmp_path / "maps", "--video", tmp_path / "v.avi")
    result = run(bundle, pictures, *outputs, "--keep-free", "1000000TB", *["--strict"] * strict)
    assert result.returncode == int(strict), result.stderr
    assert len(result.stdout.splitlines()) == 5
    assert list(tmp_path.rglob("*.*")) == []
    for name, failures in (("rejects", 2), ("maps", 5), ("the video", 5)):
        assert f"warning: {name}: incomplete, {failures} could not be written" in result.stderr
    assert result.stderr.count("--keep-free") == 2  # once for rejects, once for maps


@pytest.mark.fault("the disk is full while verdicts are written")
@pytest.mark.parametrize("place", ["jsonl", "stdout"])
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_lost_verdicts_fail_the_run_but_do_not_end_it(bundle: Path, pictures: Path, place: str, strict: bool) -> None:
    options = [*(["--jsonl", "/dev/full"] if place == "jsonl" else []), *(["--strict"] if strict else [])]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            _command(bundle, pictures, *options),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=_environment(),
        )
    assert result.returncode == 1, result.stderr
    assert ("5 frames: 3 passed" in result.stderr) == (not strict)
    assert ("verdicts: incomplete, 5 could not be written" in result.stderr) == (not strict)
    assert "is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.fault("file names and consoles that are not UTF-8")
@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1", "C.UTF-8"])
@pytest.mark.parametrize("encoding", ["", "iso-8859-1", "ascii", "utf-8:strict"])
def test_every_file_name_is_judged_in_every_locale(
    bundle: Path, pictures: Path, tmp_path: Path, locale: str, encoding: str
) -> None:
    picture = (pictures / "3.png").read_bytes()
    folder = tmp_path / os.fsdecode(b"in\xf6")
    folder.mkdir()
    for name in (b"1.png", b"Gr\xf6\xdfe.png", "中文 😀.png".encode(), b"a\x1b[2J\n\x9b.png"):
        (folder / os.fsdecode(name)).write_bytes(picture)
    outputs = [os.fsencode(word) for word in ("--rejects", str(tmp_path / "rejects"), "--page", "0")]
    done = subprocess.run(
        [*map(os.fsencode, _command(bundle, folder)), *outputs],
        capture_output=True,
        timeout=60,
        env={**_environment(), "LC_ALL": locale, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["name"] for line in done.stdout.decode("utf-8").splitlines()]
    assert len(names) == 4
    assert r"Gr\xf6\xdfe.png" in names
    assert len(list((tmp_path / "rejects").iterdir())) == 8
    assert not set(done.stdout + done.stderr) & {0x1B, 0x0D, 0x07}
    assert b"Traceback" not in done.stderr


def test_a_closed_stdout_is_a_wrong_call_unless_verdicts_go_to_a_file(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    closed = f"{shlex.join(_command(bundle, pictures))} >&-"
    for options, code in (("", 2), (f" --jsonl {shlex.quote(str(tmp_path / 'v.jsonl'))}", 0)):
        done = subprocess.run(
            ["sh", "-c", closed + options], stderr=subprocess.PIPE, text=True, timeout=60, env=_environment()
        )
        assert done.returncode == code, done.stderr
        assert ("add --jsonl" in done.stderr) == (code == 2)
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 5


def test_missing_source(bundle: Path) -> None:
    result = run(bundle, "/dev/video97")
    assert result.returncode == 1
    assert "adedge: there is no camera /dev/video97" in result.stderr


def test_missing_threshold(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.adedge"
    shutil.copytree(bundle, copy)
    with Bundle.open(copy).edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={})
    result = run(copy, pictures)
    assert result.returncode == 1
    assert "no threshold for onnxruntime/fp32: run 'adedge calibrate'" in result.stderr
    assert run(copy, pictures, "--threshold", 2).returncode == 0


def test_unsigned_bundle_is_refused_where_a_signature_is_required(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    from adedge.signing import create_key

    public = create_key(tmp_path / "key")
    result = run(bundle, pictures, "--require-signature", public)
    assert result.returncode == 1
    assert "is not signed" in result.stderr
    assert result.stdout == ""


@pytest.fixture
def many(pictures: Path, tmp_path: Path) -> Path:
    """More verdicts than a pipe holds: the run cannot end before its output was read."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04d}.png").symlink_to(pictures / "1.png")
    return folder


@pytest.mark.fault("a run is ended by a signal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
def test_signal_ends_the_run_with_whole_outputs(
    bundle: Path, many: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    rejects = ("--threshold", "0.1", "--rejects", tmp_path / "rejects")
    with subprocess.Popen(
        _command(bundle, many, *rejects), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    records = [json.loads(line) for line in (first + rest).splitlines()]
    assert [record["frame"] for record in records] == list(range(len(records)))
    assert len(records) < 3000
    assert f"{len(records)} frames: 0 passed, {len(records)} rejected" in errors
    assert len(list((tmp_path / "rejects").glob("*.overlay.jpg"))) == len(records)


@pytest.mark.fault("a run is killed with SIGKILL")
def test_a_killed_run_leaves_whole_lines_and_pictures(bundle: Path, many: Path, tmp_path: Path) -> None:
    verdicts, rejects, maps = tmp_path / "v.jsonl", tmp_path / "rejects", tmp_path / "maps"
    outputs = ("--threshold", "0.1", "--jsonl", verdicts, "--rejects", rejects, "--maps", maps)
    lines = 0
    for _ in range(3):
        with subprocess.Popen(
            _command(bundle, many, *outputs), stderr=subprocess.PIPE, text=True, env=_environment()
        ) as process:
            while not verdicts.exists() or verdicts.read_bytes().count(b"\n") < lines + 30:
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
        lines = verdicts.read_bytes().count(b"\n")
    records = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert len({record["run"] for record in records}) == 3
    for run_id in {record["run"] for record in records}:
        frames = [record["frame"] for record in records if record["run"] == run_id]
        assert frames == list(range(len(frames)))
        assert len(frames) - 1 <= len(list(maps.glob(f"{run_id}_*.npy"))) <= len(frames)
    for path in rejects.glob("*.*g"):
        assert path.name.startswith(".") or cv2.imread(str(path)) is not None, path
    for path in maps.glob("[!.]*.npy"):
        assert np.load(path).shape == (16, 16)


def test_live_page_while_it_runs(bundle: Path, many: Path) -> None:
    with subprocess.Popen(
        _command(bundle, many, "--page", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # and no more: the pipe fills, the run waits
        url = next(line for line in process.stderr if "live page: " in line).split()[-1]
        state = _state(url)
        while state["cameras"][0]["frames"] == 0:  # the page counts a verdict after its line was written
            state = _state(url)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert state["about"] == {"bundle": "grey.adedge", "engine": "onnxruntime/fp32"}
    assert state["cameras"][0]["last"]["anomalous"] is False


@pytest.mark.parametrize(
    ("number", "options", "code"),
    [(signal.SIGINT, (), 0), (signal.SIGTERM, (), 0), (signal.SIGTERM, ("--fail-on-reject",), 3)],
    ids=["ctrl-c", "term", "reject"],
)
def test_in_a_terminal_the_live_page_stays_after_the_last_frame(
    bundle: Path, pictures: Path, number: signal.Signals, options: tuple[str, ...], code: int
) -> None:
    terminal, stdin = os.openpty()
    with subprocess.Popen(
        _command(bundle, pictures, "--page", "0", *options),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as process:
        os.close(stdin)
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "until you press Ctrl-C" in line:
                break
        url = next(line for line in lines if "live page: " in line).split()[-1]
        assert any("5 frames: 3 passed, 2 rejected" in line for line in lines)
        state = _state(url)
        assert process.poll() is None
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == code, errors
    assert len(output.splitlines()) == 5
    assert state["ended"] is True
    assert state["cameras"][0]["frames"] == 5


@pytest.mark.parametrize("options", [(), ("--max-frames", "3")], ids=["no terminal", "stopped"])
def test_nobody_waits_for_ctrl_c_where_nobody_can_press_it(
    bundle: Path, pictures: Path, options: tuple[str, ...]
) -> None:
    terminal, stdin = os.openpty()
    result = subprocess.run(
        _command(bundle, pictures, "--page", "0", *options),
        stdin=stdin if options else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=_environment(),
    )
    os.close(stdin)
    os.close(terminal)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == (3 if options else 5)


def _state(url: str) -> Any:
    with urllib.request.urlopen(f"{url}state.json", timeout=30) as answer:
        return json.load(answer)


def test_page_that_cannot_be_is_refused(bundle: Path, many: Path) -> None:
    result = run(bundle, many, "--page", "99999")
    assert result.returncode == 2
    assert "0.0.0.0:8080" in result.stderr


def test_reader_that_leaves_is_no_error(bundle: Path, many: Path) -> None:
    with subprocess.Popen(
        _command(bundle, many), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["frame"] == 0
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0, errors
    assert "Traceback" not in errors
    assert "Error" not in errors


def test_what_is_left_out_is_said_and_strict_refuses_it(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "line"
    shutil.copytree(pictures, folder)
    (folder / "@eaDir").mkdir()
    thumbnails = run(bundle, folder, "--strict")
    assert thumbnails.returncode == 0, thumbnails.stderr
    assert "left out 1 hidden or system entry (@eaDir)" in thumbnails.stderr
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    result = run(bundle, folder)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
    assert "(1 .heic)" in result.stderr
    assert "0 dropped, 1 skipped" in result.stderr
    strict = run(bundle, folder, "--strict")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "(1 .heic)" in strict.stderr.splitlines()[-1]
