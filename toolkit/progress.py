"""How long work reports how far it is; `adedge.console.progress` draws it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, text)``: ``done`` of ``total`` steps of the present part of the work, and what it is at."""
