"""What a detection method is: a frozen set of options that says what to train, how, and what is deployed.

Torch's types stand in annotations only, so that importing this loads no torch.
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

    ``crop`` is the side in pixels of the square patches it sees, None for whole inputs. The learning rate rises for
    ``warm_up`` iterations; ``schedule`` "cosine" lets it fall to zero over the stage. ``autocast`` says whether a
    training with bfloat16 uses it here.
    ``pictures`` "validation" are those that `TrainingPlan.validation` keeps from the other stages; any other word is a
    key of `TrainingPlan.others`. A stage of no iterations is only prepared (see `Method.prepare`).
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
    """Pictures beside the product's, or those in another form: ``folder`` None means the training pictures."""

    folder: Path | None
    input: InputSpec


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a method with these options trains, and what the finished detector expects and gives.

    ``validation`` is the share of the training pictures that only stages with ``pictures="validation"`` see. ``others``
    are further sets of pictures, by the word that stages call them.
    """

    network: dict[str, bool | int | float | str]
    input: InputSpec
    score: ScoreSpec
    stages: tuple[Stage, ...]
    validation: float = 0.0
    others: Mapping[str, OtherPictures] = field(default_factory=dict)


class Method(Protocol):
    """A detection method with its options chosen: a frozen pydantic model."""

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Method:
        """The method with ``options``, and where they say nothing with what fits ``dataset``.

        Raises `UsageError` naming the first option that cannot be, `DataError` for weights that cannot be had.
        """

    @property
    def variant(self) -> str:
        """Which of ``variants`` is trained."""

    @property
    def budget(self) -> str:
        """The name of the preset that iteration counts come from."""

    def model_dump(self) -> dict[str, Any]:
        """The options, as they are recorded in a bundle and compared before a training is resumed."""

    def plan(self) -> TrainingPlan:
        """Networks, specs and training stages that follow from the options."""

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[torch.Tensor]) -> None:
        """Set buffers of ``networks`` that a stage needs, once, before its first iteration.

        ``batches`` are all pictures of the stage, once each, (n, C, H, W) float32 on the networks' device. What is
        computed here must depend on them, the stage and the networks alone: a resumed training may compute it again.
        """

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """The loss of a stage: (x (N, C, H, W) float32, the iteration's random generator) -> scalar tensor."""

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """Build the untrained networks from a manifest's ``variant`` and ``network``."""

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """The module to export: x (N, C, H, W) -> tuple of the tensors that the plan's `ScoreSpec` compares."""


def configured(kind: type[Chosen], options: Mapping[str, Any], fitting: Mapping[str, Any] | None = None) -> Chosen:
    """A method with ``options``; those that are None take what ``fitting`` says, or else their defaults.

    Raises `UsageError` naming the first option that cannot be.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**{**(fitting or {}), **given})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {message}" if where else message) from error


def first_sample(dataset: Dataset) -> Sample:
    """The first picture that is trained on, which says what a data set is like: a one-class set's has no path.

    Raises `DataError` where there is none.
    """
    if not dataset.train:
        raise DataError(f"{dataset.name} holds no pictures to train on: give some good ones")
    return dataset.train[0]
