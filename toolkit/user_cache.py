"""The user's cache folder, which not every user has: services often run without a home."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """$XDG_CACHE_HOME, else ~/.cache; None if neither the environment nor the system's list of users names a home."""
    folder = os.environ.get("XDG_CACHE_HOME")
    if folder:
        return Path(folder)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None
