"""Checkpoints: one is always whole."""

from __future__ import annotations

from pathlib import Path

import torch

from adedge.methods.checkpoint import Checkpoint, Position


def test_checkpoint_replaces_its_file_as_a_whole(tmp_path: Path) -> None:
    """While a state is being written the earlier one keeps its name, so no moment has none."""
    checkpoint = Checkpoint(tmp_path / "c", {"seed": 1})
    checkpoint.save(Position(iteration=1), {"networks.w": torch.ones(2)})
    (tmp_path / "c" / "state.safetensors.partial").write_bytes(b"cut off")  # what a killed process leaves
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded[0].iteration == 1
    checkpoint.save(Position(iteration=2), {"networks.w": torch.zeros(2)})
    loaded = checkpoint.load()
    assert loaded is not None
    assert (loaded[0].iteration, loaded[1]["networks.w"].tolist()) == (2, [0, 0])
