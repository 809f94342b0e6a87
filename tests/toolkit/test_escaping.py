"""No text makes a terminal do anything, and every file name can be encoded."""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adedge.escaping import command_line, encodable, printable

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too


@given(ANY_TEXT)
def test_what_is_printed_has_no_control_character(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(character) for character in shown} & {"RLO", "LRO", "RLI", "LRI", "FSI"}
    assert printable(text, lines=True).count("\n") == text.count("\n")


@given(st.binary())
def test_every_file_name_can_be_encoded(name: bytes) -> None:
    encodable(os.fsdecode(name)).encode()


@given(st.text())
def test_text_without_surrogates_is_left_alone(text: str) -> None:
    assert encodable(text) == text


def test_escapes_are_those_of_python() -> None:
    assert printable("a\x1b[2J\nb\t\x9b\u202e") == r"a\x1b[2J\nb\t\x9b\u202e"
    assert printable(os.fsdecode(b"Gr\xf6\xdfe.png")) == r"Gr\xf6\xdfe.png"
    assert encodable(os.fsdecode(b"Gr\xf6\xdfe\n.png")) == "Gr\\xf6\\xdfe\n.png"
    assert printable("中文 é [a] 😀.png") == "中文 é [a] 😀.png"


def words_that_bash_reads(command: str) -> list[bytes]:
    script = f"adedge() {{ printf '%s\\0' \"$@\"; }}; {command}"
    done = subprocess.run([b"bash", b"-c", script.encode()], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="reads the commands with bash")
@pytest.mark.parametrize(
    "name",
    [
        b"plain",
        b"a b",
        b"it's",
        b"-odd",
        b"[1]*?",
        b'$HOME `id` "x" ;',
        b"Gr\xf6\xdfe",
        b"a\nb\x1b[2J'\\n",
        b"~",
        b"\xc2\x9b",
    ],
)
def test_a_printed_command_names_the_file_that_is_meant(name: bytes, tmp_path: Path) -> None:
    command = command_line("export", Path(os.fsdecode(name)), "PICTURES")
    assert printable(command) == command
    first, path, last = words_that_bash_reads(command)
    assert (first, last) == (b"export", b"PICTURES")
    assert path == (b"./" + name if name.startswith(b"-") else name)
