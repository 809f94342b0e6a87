"""For the site's reference: what docstrings set in columns keeps its columns.

A paragraph most of whose lines have a gap of two spaces in them (the fields of a dataclass, the tree of errors) becomes
a code block; in Markdown it would flow together.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class DocstringTables(griffe.Extension):
    """Rewrites the docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = with_code_blocks(obj.docstring.value)


def with_code_blocks(text: str) -> str:
    """The text with paragraphs in columns between fences."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return "\n\n".join(f"```text\n{part}\n```" if _in_columns(part) else part for part in paragraphs)


def _in_columns(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    columns = sum(bool(re.match(r"\S.*\S {2,}\S", line)) for line in lines)
    return len(lines) > 1 and columns * 2 > len(lines)
