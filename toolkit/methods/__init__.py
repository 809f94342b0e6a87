"""Detection methods: one file a method, one registry, and what every later command asks of a trained detector.

A method is a frozen set of options (a class that keeps the `Method` protocol). `register` names where it lives; nothing
of it, and no torch, is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from adedge.bundle import Bundle, Manifest
from adedge.errors import BundleError, MissingDependency, UsageError
from adedge.specs import InputSpec, ScoreSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adedge.data.datasets import Dataset

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


_HOMES: dict[str, str] = {}


def register(name: str, home: str) -> None:
    """Make a method known: ``home`` is "module:class", imported when the method is first asked for.

    Raises `UsageError` where the name is taken.
    """
    if name in _HOMES:
        raise UsageError(f"method '{name}' is already registered, as {_HOMES[name]}")
    _HOMES[name] = home


def method_named(name: str) -> type[Method]:
    """The class of a registered method.

    Raises `UsageError` listing the known ones, `MissingDependency` without torch.

    >>> from adedge import load_dataset
    >>> method = method_named("oesdn").for_dataset(load_dataset("photos"), variant="ae", size=32)
    >>> method.variant, method.plan().input.shape
    ('ae', (1, 32, 32))
    """
    if name not in _HOMES:
        raise UsageError(f"unknown method '{name}': choose from {', '.join(sorted(_HOMES))}")
    require_torch()
    module, _, attribute = _HOMES[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found


register("oesdn", "adedge.methods.oesdn.method:OeSdn")
register("hfr", "adedge.methods.hfr:Hfr")
register("students", "adedge.methods.students.method:UninformedStudents")
register("mkd", "adedge.methods.mkd:Mkd")


def configured(kind: type[Chosen], options: Mapping[str, Any]) -> Chosen:
    """A method with ``options``; those that are None take their defaults.

    Raises `UsageError` naming the first option that cannot be.
    """
    try:
        return kind(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {message}" if where else message) from error


def require_torch() -> None:
    """Raise `MissingDependency` where torch or safetensors is not installed."""
    for package in ("torch", "safetensors"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency(package, "train", "training and running networks in PyTorch") from error


def input_from_frames(frames: NDArray[np.uint8], spec: InputSpec) -> torch.Tensor:
    """Network input of conformed frames: (N, H, W, C) uint8 -> (N, C, H, W) float32, (pixel * scale - mean) / std."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() * spec.scale
    if spec.mean:
        x = x - torch.tensor(spec.mean).view(1, -1, 1, 1)
    if spec.std:
        x = x / torch.tensor(spec.std).view(1, -1, 1, 1)
    return x


def load_detector(bundle: Bundle) -> nn.Module:
    """The trained detector of a bundle, in eval mode on the CPU: x (N, C, H, W) float32 -> tuple of output tensors.

    Raises `BundleError` where the weights were changed since they were written, do not fit the networks that
    bundle.json names, or hold a number that is not finite.
    """
    method = method_named(bundle.manifest.method)
    networks = method.networks(bundle.manifest.variant, bundle.manifest.network)
    read_weights(bundle.file("weights.safetensors"), networks)
    return method.deploy(networks).eval()


def detector_function(bundle: Bundle) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """`load_detector` as a function of arrays: network input (n, C, H, W) float32 -> the outputs, float32 (n, ...)."""
    import torch

    module = load_detector(bundle)

    def run(frames: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(frames))]

    return run


def read_weights(path: Path, networks: nn.ModuleDict) -> None:
    """Fill ``networks`` from a safetensors file; raises `BundleError` unless every tensor fits and is finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read ({error}): train again") from error
    expected = networks.state_dict()
    unexpected = sorted(expected.keys() ^ weights.keys())
    if unexpected:
        raise BundleError(f"{path} does not fit its networks: '{unexpected[0]}' is only in one of the two; train again")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise BundleError(f"{path} does not fit its networks: '{name}' has shape {shapes}; train again")
        if not torch.isfinite(value).all():
            raise BundleError(f"{path} holds a value that is not finite in '{name}': train again")
    networks.load_state_dict(weights)


def predict(
    module: nn.Module, manifest: Manifest, frames: NDArray[np.uint8], batch_size: int = 8
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps (N, H, W) and raw scores (N,), float32, of conformed frames (N, H, W, C) uint8: the reference.

    The networks run in PyTorch in float32, where ``module`` is; the rest is `adedge.scoring`.
    """
    import torch

    from adedge.scoring import maps_and_scores

    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    maps, scores = [], []
    with torch.inference_mode():
        for start in range(0, len(frames), batch_size):
            x = input_from_frames(frames[start : start + batch_size], manifest.input).to(device)
            outputs = module(x.contiguous(memory_format=torch.channels_last))
            found = maps_and_scores(manifest.score, [output.float().cpu().numpy() for output in outputs])
            maps.append(found[0])
            scores.append(found[1])
    if not maps:
        return np.empty((0, manifest.input.height, manifest.input.width), np.float32), np.empty(0, np.float32)
    return np.concatenate(maps), np.concatenate(scores)
