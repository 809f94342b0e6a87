"""The peer that AUPRO is timed against is itself right, and the command says whether the promise holds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from adedge.benchmarks.studies import aupro_speed


def test_loop_over_thresholds_gives_what_theory_gives() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.zeros(masks.shape, np.float32)
    maps[0, :10, :10] = 1  # one region of two is found; the other goes with the good pixels, on a straight line
    assert aupro_speed.loop_over_thresholds(masks, maps) == pytest.approx(0.5 + 0.5 * 0.15)


def test_command_prints_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["aupro_speed", "--maps", "4"])
    with pytest.raises(SystemExit):
        aupro_speed.main()
    printed = capsys.readouterr().out
    assert "| loop, " in printed
    assert float(printed.rsplit("difference ", 1)[1].split()[0]) < 1e-9
