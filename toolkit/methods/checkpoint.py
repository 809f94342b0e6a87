"""Checkpoints of a training: two files in a directory beside the bundle, each replaced atomically, no pickle.

bottle.adedge.checkpoint/
  options.json         identity of the training: method, options, seed, digest of the pictures
  state.safetensors    networks and optimiser; the header's metadata holds the position
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from adedge.errors import BundleError, UsageError
from adedge.files import write_whole
from adedge.json_files import parse_json
from adedge.limits import JSON_BYTES, read_file
from adedge.specs import Record

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = "options.json"
STATE = "state.safetensors"
REMEDY = "add --restart"


class LossRecord(Record):
    """The smoothed loss after ``iteration`` iterations of a stage."""

    stage: str
    iteration: int
    loss: float


class Position(Record):
    """The position of a training: ``iteration`` iterations of stage number ``stage`` are done. ``loss`` is smoothed."""

    stage: int = Field(default=0, ge=0)
    iteration: int = Field(default=0, ge=0)
    loss: float | None = None
    history: tuple[LossRecord, ...] = ()


class Checkpoint:
    """The checkpoint directory of the training that ``options`` identify."""

    def __init__(self, directory: Path, options: Mapping[str, Any]) -> None:
        self.directory = directory
        # As read back from options.json, so that the two can be compared: JSON turns tuples into lists.
        self.options: dict[str, Any] = json.loads(json.dumps(dict(options)))

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Replace the saved state. Raises `BundleError` if it cannot be written; the old state remains."""
        from safetensors.torch import save

        data = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"position": position.model_dump_json()},
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not (self.directory / OPTIONS).exists():
                write_whole(
                    self.directory / OPTIONS, json.dumps(self.options, indent=2, sort_keys=True).encode() + b"\n"
                )
            write_whole(self.directory / STATE, data)
        except OSError as error:
            raise BundleError(
                f"the checkpoint {self.directory} cannot be written ({error}): free disk space, or check permissions"
            ) from error

    def load(self) -> tuple[Position, dict[str, Tensor]] | None:
        """The saved state, or None if there is none.

        Raises `UsageError` naming the first option that differs from this training's, `BundleError` for damaged files.
        """
        from safetensors import SafetensorError, safe_open

        if not (self.directory / STATE).exists():
            return None
        try:
            options = self.directory / OPTIONS
            self._compare(parse_json(read_file(options, JSON_BYTES, BundleError), str(options), BundleError, REMEDY))
            if not (self.directory / STATE).is_file():  # opening a FIFO would block
                raise BundleError(f"{self.directory / STATE} is not a regular file: {REMEDY}")
            with safe_open(self.directory / STATE, framework="pt") as file:
                state = file.metadata()["position"].encode()
                position = Position.model_validate(parse_json(state, str(self.directory / STATE), BundleError, REMEDY))
                return position, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise BundleError(f"the checkpoint {self.directory} is damaged ({error}): {REMEDY}") from error

    def discard(self) -> None:
        """Remove the checkpoint."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _compare(self, saved: dict[str, Any]) -> None:
        for name in sorted(saved.keys() | self.options.keys()):
            before, now = saved.get(name), self.options.get(name)
            if before != now:
                raise UsageError(
                    f"{self.directory} is the checkpoint of another training ({name} was {before}, not {now}): "
                    "repeat that training's command to resume it, or add --restart to discard it"
                )
