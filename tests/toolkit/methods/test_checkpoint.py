"""Checkpoints: one is always whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from adedge.errors import BundleError
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


@pytest.mark.parametrize("name", ["options.json", "state.safetensors"])
def test_a_checkpoint_that_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(tmp_path / "c", {"seed": 1})
    checkpoint.save(Position(), {})
    (tmp_path / "c" / name).unlink()
    os.mkfifo(tmp_path / "c" / name)
    with pytest.raises(BundleError, match=rf"{name} is not a regular file"):
        checkpoint.load()


@pytest.mark.parametrize("data", [b"[]", b"[" * 100_000, b'{"seed": NaN}', b'{"seed": ' + b"1" * 5000 + b"}", b"\xff"])
def test_options_that_are_no_object_are_refused(tmp_path: Path, data: bytes) -> None:
    checkpoint = Checkpoint(tmp_path / "c", {"seed": 1})
    checkpoint.save(Position(), {})
    (tmp_path / "c/options.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"options.json is not valid JSON \(.*\): add --restart"):
        checkpoint.load()


@pytest.mark.parametrize("position", ["[]", "[" * 100_000, '{"iteration": -1}', '{"loss": 1e999}'])
def test_a_position_that_is_none_is_refused(tmp_path: Path, position: str) -> None:
    checkpoint = Checkpoint(tmp_path / "c", {"seed": 1})
    checkpoint.save(Position(), {})
    (tmp_path / "c/state.safetensors").write_bytes(save({"w": torch.ones(2)}, metadata={"position": position}))
    with pytest.raises(BundleError, match="--restart"):
        checkpoint.load()
