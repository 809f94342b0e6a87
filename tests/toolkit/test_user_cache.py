"""Where caches go, and that a user without a home, as services have, is no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adedge.user_cache import user_cache


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache() == Path("/caches")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/line")
    assert user_cache() == Path("/home/line/.cache")


NOBODY = """
import pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from adedge.cli import main
sys.argv = ["adedge", "train", "oesdn", "mnist:3", "-o", sys.argv[1]]
main()
"""


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", NOBODY, str(tmp_path / "b.adedge")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("adedge: this user has no home folder")
    assert "Traceback" not in done.stderr
