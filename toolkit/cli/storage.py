"""Whether a result can be stored where it belongs: found out before it is measured."""

from __future__ import annotations

import os
from pathlib import Path

from adedge.bundle import Bundle
from adedge.errors import AdedgeError


def is_writable(bundle: Bundle) -> bool:
    """Whether this user may change the bundle: its directory is replaced as a whole, by one beside it."""
    real = bundle.path.resolve()
    return os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)


def check_folder(folder: Path, what: str, error: type[AdedgeError]) -> None:
    """Raise ``error`` if this user cannot create or write ``folder``; ``what`` is the result that would go there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is a file"
    elif not os.access(existing, os.W_OK):
        reason = f"{existing} is not writable"
    else:
        return
    raise error(f"{what} cannot be written to {folder} ({reason}): choose another place with -o")
