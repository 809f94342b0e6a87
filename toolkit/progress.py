"""How long-running work reports its progress; `adedge.console.progress` shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, text)``: ``done`` of ``total`` steps of the current part of the work, named by ``text``."""
