"""The protocol of a detection method: frozen options that determine what is trained, how, and what is deployed.

Importing this module does not import torch: its types occur in annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from adedge.errors import DataError, UsageError
from adedge.specs import InputSpec, ScoreSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adedge.data.datasets import Dataset
    from adedge.data.samples import Sample

Chosen = TypeVar("Chosen", bound=BaseModel)
NetworkArguments = Mapping[str, bool | int | float | str]
Objective = Callable[["torch.Tensor", np.random.Generator], "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One network trained by one optimiser: ``network`` is its key in `Method.networks`, the stage's ``name`` if None.

    ``crop`` is the side in pixels of the square patches to train on, None for whole inputs. The learning rate rises
    for ``warm_up`` iterations; with ``schedule`` "cosine" it falls to zero over the stage. ``autocast`` says whether
    this stage uses bfloat16 in a training with mixed precision. ``pictures`` names the pictures to train on:
    "training", "validation" (the share `TrainingPlan.validation`, which no other stage sees), or a key of
    `TrainingPlan.others`. A stage without iterations is only prepared (see `Method.prepare`).
    """

    name: str
    iterations: int
    batch: int
    learning_rate: float
    crop: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up: int = 0
    autocast: bool = True
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    pictures: str = "training"
    network: str | None = None

    @property
    def trains(self) -> str:
        """The key of the network that is trained."""
        return self.network or self.name


@dataclass(frozen=True, kw_only=True)
class OtherPictures:
    """Additional pictures, with an input spec of their own; ``folder`` None means the training pictures."""

    folder: Path | None
    input: InputSpec


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The networks and stages to train, and the specs of the trained detector's input and score.

    ``validation`` is the share of the training pictures reserved for stages with ``pictures="validation"``. ``others``
    are additional sets of pictures, by the name that stages use.
    """

    network: dict[str, bool | int | float | str]
    input: InputSpec
    score: ScoreSpec
    stages: tuple[Stage, ...]
    validation: float = 0.0
    others: Mapping[str, OtherPictures] = field(default_factory=dict)


class Method(Protocol):
    """A detection method with its options: a frozen pydantic model."""

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Method:
        """The method with ``options``, and with values that fit ``dataset`` for options not given.

        Raises `UsageError` naming the first invalid option, `DataError` if weights cannot be read or downloaded.
        """

    @property
    def variant(self) -> str:
        """Which of ``variants`` is trained."""

    @property
    def budget(self) -> str:
        """The name of the preset that determines iteration counts."""

    def model_dump(self) -> dict[str, Any]:
        """The options, as recorded in a bundle and compared before a training is resumed."""

    def plan(self) -> TrainingPlan:
        """Networks, specs and training stages that follow from the options."""

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[torch.Tensor]) -> None:
        """Set the buffers of ``networks`` that a stage requires, before its first iteration.

        ``batches`` yields every picture of the stage once, (n, C, H, W) float32 on the networks' device. The result
        must depend only on them, the stage and the networks: a resumed training may compute it again.
        """

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """The loss function of a stage: (x (N, C, H, W) float32, the iteration's random generator) -> scalar tensor."""

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """Build the untrained networks from a manifest's ``variant`` and ``network``."""

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """The module to export: x (N, C, H, W) -> tuple of the tensors that the plan's `ScoreSpec` compares."""


def configured(kind: type[Chosen], options: Mapping[str, Any], fitting: Mapping[str, Any] | None = None) -> Chosen:
    """A method with ``options``; an option that is None takes its value from ``fitting``, or else its default.

    Raises `UsageError` naming the first invalid option.
    """
    explicit = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**{**(fitting or {}), **explicit})
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{option}: {message}" if option else message) from error


def first_sample(dataset: Dataset) -> Sample:
    """The first training picture, which options are fitted to; in a one-class set it has no path.

    Raises `DataError` if there is none.
    """
    if not dataset.train:
        raise DataError(f"{dataset.name} holds no pictures to train on: add good pictures")
    return dataset.train[0]
