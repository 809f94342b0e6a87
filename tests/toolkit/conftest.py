"""What tests of plug-ins share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """A function that writes a distribution as pip would install it: (name, its module's text, the entry points).

    All lie in one folder, which it returns: for sys.path.
    """

    def write(name: str, module: str, entry_points: str) -> Path:
        folder = tmp_path / "site-packages"
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[adedge.methods]\n{entry_points}\n")
        (folder / f"{name}.py").write_text(module)
        return folder

    return write
