"""What people see: progress in a log file and in a terminal, and file names printed as they are."""

from __future__ import annotations

import errno
import io
import os

import pytest
from rich.console import Console
from rich.table import Table

from adedge import console as module
from adedge.console import escape_unencodable, note, output, progress, warn


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The console as a terminal of 100 columns; what it shows."""
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=100, highlight=False, emoji=False, _environ={})
    monkeypatch.setattr(module, "console", made)
    return shown


def test_off_a_terminal_there_is_one_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train") as step:
        for done in range(1, 41):
            step(done, 40, f"loss {done}")
    shown = capsys.readouterr()
    assert shown.out == ""
    # The first step is in the tenth that begins with 0, the others are the first ones of theirs.
    assert shown.err.splitlines() == [f"train: {done}/40 loss {done}" for done in (1, *range(4, 41, 4))]


def test_each_part_of_the_work_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("calibrate") as step:
        for text in ("ranges", "scores"):
            for done in (0, 1, 2):
                step(done, 2, text)
    assert capsys.readouterr().err.splitlines() == [
        f"calibrate: {done}/2 {text}" for text in ("ranges", "scores") for done in (0, 1, 2)
    ]


def test_work_of_unknown_length_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("run") as step:
        step(0, 0, "begins")
    assert capsys.readouterr().err == "run: 0/0 begins\n"


def test_progress_prints_markup_and_emoji_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train") as step:
        step(0, 1, "[bold]part[/bold] synthetic:brick:")
    assert capsys.readouterr().err == "train: 0/1 [bold]part[/bold] synthetic:brick:\n"


def test_in_a_terminal_there_is_a_bar(terminal: io.StringIO) -> None:
    with progress("train") as step:
        step(3, 40, "loss")
    shown = terminal.getvalue()
    assert "train" in shown
    assert "3/40" in shown
    assert "loss" in shown


def test_a_bar_shows_markup_as_it_is(terminal: io.StringIO) -> None:
    with progress("train [old]") as step:
        step(1, 2, "part [/b]")
    assert "train [old]" in terminal.getvalue()
    assert "part [/b]" in terminal.getvalue()


def test_notes_and_warnings_go_to_stderr_and_tables_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    note("[red]pictures[/red]/[1].png")
    warn("[a] broken.png: no picture")
    output.print("table")
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["[red]pictures[/red]/[1].png", "warning: [a] broken.png: no picture"]
    assert shown.out == "table\n"


def test_a_long_line_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    command = "next: adedge export " + "/long" * 40
    note(command)
    warn(command)
    assert capsys.readouterr().err == f"{command}\nwarning: {command}\n"


def test_what_looks_like_markup_in_a_warning_is_no_markup(terminal: io.StringIO) -> None:
    warn("[bold]x[/bold]")
    assert "[bold]x[/bold]" in terminal.getvalue()
    assert "\x1b[33mwarning:" in terminal.getvalue()  # yellow


HOSTILE = "a\x1b[31m\x9b2J\x07.png"
ESCAPED = r"a\x1b[31m\x9b2J\x07.png"


def test_a_name_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    note(HOSTILE)
    warn(HOSTILE)
    with progress(HOSTILE) as step:
        step(0, 1, HOSTILE)
    output.print(table)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & set("\x1b\x9b\x07")
    assert shown.count(ESCAPED) == 7


def test_a_bar_keeps_the_commands_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    made = type(module.console)(file=shown, force_terminal=True, width=200, _environ={})
    monkeypatch.setattr(module, "console", made)
    with progress("train") as step:
        step(0, 1, HOSTILE)
    assert ESCAPED in shown.getvalue()
    assert "\x1b[?25l" in shown.getvalue()  # hides the cursor


def test_a_name_with_a_line_break_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\nadedge: all parts passed\r.png")
    assert capsys.readouterr().err == r"a\nadedge: all parts passed\r.png" + "\n"


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stderr", [FullDisk(), None])
def test_messages_that_cannot_be_written_are_no_error(monkeypatch: pytest.MonkeyPatch, stderr: FullDisk | None) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    note("a note")
    warn("a warning")
    with progress("train") as step:
        step(0, 1, "")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_every_console_shows_every_name(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    name = "Größe 中文 → ─ " + os.fsdecode(b"\xf6") + ".png"
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    escape_unencodable()
    output.print(Table(name))
    output.print(name, soft_wrap=True)
    output.file.flush()
    assert rb"\xf6.png" in written.getvalue()
    assert ("中文" in written.getvalue().decode(encoding)) == (encoding == "utf-8")
