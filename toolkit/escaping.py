"""Text for terminals, shells and UTF-8: control characters, and bytes that are not UTF-8, become escapes.

Linux file names are bytes. Python decodes those that are not UTF-8 to lone surrogates, which no encoder accepts.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

# Terminals obey C0 and C1; the last three ranges end a line or reverse the order of the characters after them.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS_BUT_NEWLINES = re.compile(_CONTROLS.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""One line that a terminal cannot mistake for commands: ``"a\x1b[2Jb"`` becomes ``"a\\x1b[2Jb"``.

    ``lines`` keeps line breaks.
    """
    return (_CONTROLS_BUT_NEWLINES if lines else _CONTROLS).sub(_escape, text)


def encodable(text: str) -> str:
    r"""Text that UTF-8 can encode: the name of the file ``b"Gr\xf6\xdfe.png"`` becomes ``"Gr\\xf6\\xdfe.png"``."""
    return _SURROGATES.sub(_escape, text)


def command_line(*words: object) -> str:
    """A command to copy into a shell: "adedge export './-odd name'"; ``words`` are its words without "adedge".

    Words in capitals stand for what the user puts there.
    """
    return " ".join(["adedge", *(_shell_word(word) for word in words)])


def _shell_word(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"  # else it would be an option
    if printable(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(map(_shell_character, text)) + "'"  # as bash, zsh and ksh read it


def _shell_character(character: str) -> str:
    if printable(character) != character:
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return f"\\{character}" if character in "\\'" else character


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    named = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
    return named.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
