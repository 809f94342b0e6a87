"""MKD, "Multiresolution Knowledge Distillation for Anomaly Detection" (Salehi et al., CVPR 2021).

A small network (the cloner) learns on good pictures to reproduce VGG-16's (the source's) outputs after four of its
poolings. On anomalies the two differ: the loss is the picture's score, and the gradient of the loss with respect to the
picture, through the cloner, is the anomaly map.

An inference engine cannot differentiate, so the deployed network holds the cloner twice: the forward pass, and the
backward pass as convolutions with mirrored weights and masks of the values that activations and poolings let through.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adedge.data.datasets import Dataset
from adedge.methods import NetworkArguments, Objective, Stage, TrainingPlan, backbones, configured, first_sample
from adedge.specs import Gaussian, Opening, ReadyMap, Record, ScoreSpec

Features = Sequence[Tensor]

# Filters of the cloner's 3 x 3 convolutions; a 2 x 2 pooling ends each block (Figure 2).
BLOCKS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
STRIDE = 2 ** len(BLOCKS)  # divides the input's sides, so that no pooling drops a row or column
# Number of input pixels for each value of a critical layer: 4 ** (number of poolings) / channels.
PIXELS_PER_VALUE = tuple(4**number / block[-1] for number, block in enumerate(BLOCKS, start=1))[1:]
# Lower bound of an output's mean square, relative to its usual one: an output of zeros has no direction.
LEAST_MEAN_SQUARE = 1e-6
BALANCE_BATCHES = 4  # enough to estimate the ratio of two losses


# --- networks ------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """3 x 3 convolution without bias, batch normalisation unless a pooling follows, ReLU.

    The normalisation has a learnt scale but no learnt shift, which would act as a bias: with biases the cloner can
    learn a constant output (section 3.2).
    """

    def __init__(self, inputs: int, outputs: int, *, normalised: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.xavier_uniform_(self.convolution.weight)
        self.normalisation: nn.BatchNorm2d | None = None
        if normalised:
            self.normalisation = nn.BatchNorm2d(outputs)
            self.normalisation.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        y: Tensor = self.convolution(x)
        return torch.relu(y if self.normalisation is None else self.normalisation(y))

    def folded(self) -> nn.Conv2d:
        """One convolution equal to the layer before ReLU in eval mode; it has a bias if the layer is normalised."""
        weight = self.convolution.weight.detach()
        norm = self.normalisation
        if norm is None:
            return _convolution(weight)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        return _convolution(weight * scale[:, None, None, None], -scale * norm.running_mean)


class Cloner(nn.Module):
    """The small network: (N, 3, H, W) -> outputs of the last four of its five poolings, shaped as the source's."""

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        width = 3
        for block in BLOCKS:
            layers = []
            for index, filters in enumerate(block, start=1):
                layers.append(Layer(width, filters, normalised=index < len(block)))
                width = filters
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the critical layers, shallow to deep."""
        pooled = []
        for block in self.blocks:
            x = F.max_pool2d(block(x), 2)
            pooled.append(x)
        return tuple(pooled[1:])


class Discrepancy(nn.Module):
    """The loss of each picture (equation 4): how far the cloner's outputs are from the source's.

    ``units`` (4,) are the usual sizes (root mean squares) of the source's outputs, and ``balance`` is lambda. To stay
    within FP16's range, outputs are divided by their units before they are squared (the result is scaled back), and
    means are taken over pixels first, then over channels: a sum over a hundred thousand values would overflow.
    """

    units: Tensor
    balance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("units", torch.ones(len(PIXELS_PER_VALUE)))
        self.register_buffer("balance", torch.ones(()))

    def forward(self, source: Features, cloner: Features) -> Tensor:
        """The loss (N,) from the two networks' outputs, four times (N, C, h, w) each."""
        value, direction = self.terms(source, cloner)
        return value + self.balance * direction

    def terms(self, source: Features, cloner: Features) -> tuple[Tensor, Tensor]:
        """L_val and L_dir (N,): equations 1 and 3."""
        values, directions = [], []
        for unit, s, c in zip(self.units, source, cloner, strict=True):
            difference, turn, _ = _compare(s / unit, c / unit)
            values.append(unit * unit * _mean(difference * difference).flatten())
            directions.append(0.5 * _mean(turn * turn).flatten())
        return torch.stack(values).sum(0), torch.stack(directions).sum(0)

    def gradients(self, source: Features, cloner: Features) -> tuple[Tensor, ...]:
        """Derivative of each picture's loss by the cloner's outputs, times the number of pixels of the input.

        That factor makes it independent of the picture's size, and of the order of 1 instead of 1e-5, which FP16 would
        lose. It equals autograd's derivative for outputs above `LEAST_MEAN_SQUARE`, but not below.
        """
        gradients = []
        for density, unit, s, c in zip(PIXELS_PER_VALUE, self.units, source, cloner, strict=True):
            difference, turn, size = _compare(s / unit, c / unit)
            # cos = 1 - L_dir, and its derivative by c is (s / |s| - cos c / |c|) / |c|.
            sideways = turn - 0.5 * _mean(turn * turn) * (c / unit / size)
            gradients.append(density * (2 * unit * difference + self.balance / (unit * size) * sideways))
        return tuple(gradients)


def _compare(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For two outputs (N, C, h, w): c - s, c / size of c - s / size of s, and the size of c (N, 1, 1, 1).

    The size is the root mean square. Half the mean square of the second result is 1 - cos(s, c), computed without
    subtracting two numbers close to 1, which would cancel out in FP16.
    """
    size_s, size_c = (_mean(x * x).clamp(min=LEAST_MEAN_SQUARE).sqrt() for x in (s, c))
    return c - s, c / size_c - s / size_s, size_c


def _mean(x: Tensor) -> Tensor:
    """Mean of each picture: (N, C, h, w) -> (N, 1, 1, 1), over pixels first (see `Discrepancy`)."""
    return F.avg_pool2d(x, x.shape[2:]).sum(1, keepdim=True) / x.shape[1]


class Detector(nn.Module):
    """x (N, 3, H, W) -> the map (N, 1, H, W) and the score (N,), computed without autograd.

    The score is the loss L. The map is H W sum_c |dL / dx_c|, the sum over the input's channels, with the source's
    outputs held constant: one backward pass through the cloner, as published.
    """

    def __init__(self, source: nn.Module, cloner: Cloner, discrepancy: Discrepancy) -> None:
        super().__init__()
        self.source = source
        self.discrepancy = discrepancy
        forwards = [[layer.folded() for layer in block] for block in cloner.blocks]  # type: ignore[attr-defined]
        self.forwards = nn.ModuleList(nn.ModuleList(block) for block in forwards)
        self.backwards = nn.ModuleList(nn.ModuleList(_mirrored(layer) for layer in block) for block in forwards)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map and the score."""
        gradient, score = self.gradient(x)
        return gradient.abs().sum(1, keepdim=True), score

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """H W dL / dx, of the shape of x (N, 3, H, W), and L (N,)."""
        source = self.source(x)
        activations: list[list[Tensor]] = []
        pooled: list[Tensor] = []
        y = x
        for block in self.forwards:
            activations.append([])
            for layer in block:  # type: ignore[attr-defined]
                y = torch.relu(layer(y))
                activations[-1].append(y)
            y = F.max_pool2d(y, 2)
            pooled.append(y)
        score = self.discrepancy(source, pooled[1:])

        gradients = [None, *self.discrepancy.gradients(source, pooled[1:])]
        gradient: Tensor | None = None
        for block, outputs, own in reversed(list(zip(self.backwards, activations, gradients, strict=True))):
            gradient = own if gradient is None else gradient if own is None else gradient + own
            assert gradient is not None
            gradient = unpooled(gradient, outputs[-1])
            for layer, output in reversed(list(zip(block, outputs, strict=True))):  # type: ignore[call-overload]
                gradient = layer(torch.where(output > 0, gradient, 0.0))
        assert gradient is not None
        return gradient, score


def unpooled(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient (N, C, h, w) of a 2 x 2 max-pooling's output -> that of its input x (N, C, 2 h, 2 w).

    It goes to the largest of the four values, or to the first in reading order of equal ones, which flat regions have;
    PyTorch does the same.
    """
    left, right = x[..., 0::2], x[..., 1::2]
    rows = torch.maximum(left, right)
    upper_wins = rows[..., 0::2, :] >= rows[..., 1::2, :]
    left_wins = left >= right
    rows_gradient = torch.stack(_split(gradient, upper_wins), dim=-2).flatten(-3, -2)
    return torch.stack(_split(rows_gradient, left_wins), dim=-1).flatten(-2, -1)


def _split(gradient: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient masked by ``first``, and by its complement; 0 elsewhere."""
    return torch.where(first, gradient, 0.0), torch.where(first, 0.0, gradient)


def _convolution(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    outputs, inputs = weight.shape[:2]
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias is not None)
    convolution.weight = nn.Parameter(weight.clone(), requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return convolution


def _mirrored(layer: nn.Conv2d) -> nn.Conv2d:
    """The convolution that maps the gradient of ``layer``'s output to that of its input: stride 1, same padding."""
    return _convolution(layer.weight.detach().transpose(0, 1).flip(2, 3))


def smooth_gradients(detector: Detector, x: Tensor, *, samples: int = 50, noise: float = 0.01, seed: int = 0) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): H W sum_c |mean of dL / dx_c over noisy copies of x|, (N, 1, H, W).

    An alternative to the detector's map, before its filters. x is network input (N, 3, H, W) on the detector's device;
    ``noise`` is the standard deviation as a fraction of each picture's range. It takes ``samples`` times as long as the
    detector and is not deployed; `adedge.benchmarks.studies.smoothgrad` measures what it gains.
    """
    generator = torch.Generator().manual_seed(seed)
    sigma = noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(samples):
            total += detector.gradient(x + sigma * torch.randn(x.shape, generator=generator).to(x))[0]
    return (total / samples).abs().sum(1, keepdim=True)


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Iterations (None: the published epochs), batch size, Adam's learning rate and its schedule."""

    iterations: int | None
    batch: int
    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"


BUDGETS: dict[tuple[str, bool], Budget] = {  # by name, and whether the data is a one-class set
    ("paper", False): Budget(iterations=None, batch=64, learning_rate=1e-3),
    ("paper", True): Budget(iterations=None, batch=64, learning_rate=1e-3),
    # Minutes on two cores: a cosine schedule makes up for some of the missing iterations.
    ("quick", False): Budget(iterations=200, batch=8, learning_rate=1e-3, schedule="cosine"),
    ("quick", True): Budget(iterations=300, batch=32, learning_rate=1e-3, schedule="cosine"),
}
EPOCHS = {"folder": 601, "gray": 51, "colour": 201}  # MVTec AD; MNIST and Fashion-MNIST; CIFAR-10


class Mkd(Record):
    """Options of an MKD training.

    ``size`` is the side of the square input in pixels. ``fit`` "resize" stretches the picture to it; "crop" keeps the
    resolution and uses overlapping tiles, whose largest loss is the score. ``weights`` are the source's (see
    `adedge.methods.backbones.fill`), and ``weights_digest`` is their digest. ``sigma`` is the standard deviation of the
    map's Gaussian filter in pixels. ``one_class`` selects the quick budget for small pictures. The "paper" budget
    trains for ``epochs`` on ``pictures`` pictures. Other options that are None come from the budget.
    """

    name: ClassVar[str] = "mkd"
    variants: ClassVar[tuple[str, ...]] = ("vgg16",)

    budget: Literal["quick", "paper"] = "quick"
    size: int = Field(default=128, ge=STRIDE, multiple_of=STRIDE)
    fit: Literal["resize", "crop"] = "resize"
    one_class: bool = False
    weights: str = backbones.TORCHVISION
    weights_digest: str = ""
    sigma: float = Field(default=4.0, gt=0)
    epochs: int = Field(default=EPOCHS["folder"], ge=1)
    pictures: int = Field(default=1, ge=1)
    iterations: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=2)

    @property
    def variant(self) -> str:
        """The source."""
        return self.variants[0]

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Mkd:
        """The method with ``options``; one-class sets default to inputs of 32 pixels and their published epochs.

        The weights are read here, so that a wrong file is reported before training. Raises `UsageError` naming the
        first invalid option, `DataError` for unusable weights or without pictures.
        """
        first = first_sample(dataset)
        fitting: dict[str, Any] = {"pictures": len(dataset.train)}
        if first.path is None:
            colour = first.read().shape[2] == 3
            fitting.update(one_class=True, size=STRIDE, epochs=EPOCHS["colour" if colour else "gray"])
        method = configured(cls, options, fitting)
        return method.model_copy(update={"weights_digest": backbones.digest("vgg16", method.weights)})

    def plan(self) -> TrainingPlan:
        """Networks, specs and the one stage; see `Method.plan`."""
        budget = BUDGETS[self.budget, self.one_class]
        batch = self.batch or budget.batch
        return TrainingPlan(
            network={},
            input=backbones.input_spec(self.size, self.fit),
            score=ScoreSpec(
                comparison=ReadyMap(), filters=(Gaussian(sigma=self.sigma), Opening(size=3)), reduce="output"
            ),
            stages=(
                Stage(
                    name="cloner",
                    iterations=self.iterations or budget.iterations or math.ceil(self.epochs * self.pictures / batch),
                    batch=batch,
                    learning_rate=budget.learning_rate,
                    schedule=budget.schedule,
                ),
            ),
        )

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[Tensor]) -> None:
        """Load the source's weights; set the units, and lambda so that both terms of the loss start equal.

        The cloner normalises by batch statistics, as in training; a copy is used, so that its running statistics do not
        change.
        """
        source, discrepancy = networks["source"], networks["discrepancy"]
        assert isinstance(discrepancy, Discrepancy)
        backbones.fill(source, "vgg16", self.weights)
        cloner = copy.deepcopy(networks["cloner"]).train()
        outputs = [(source(x), cloner(x)) for x in islice(batches, BALANCE_BATCHES)]
        for level, unit in enumerate(discrepancy.units):
            unit.copy_(torch.stack([target[level].square().mean() for target, _ in outputs]).mean().sqrt())
        terms = torch.stack([torch.stack(discrepancy.terms(*pair)).mean(1) for pair in outputs]).mean(0)
        discrepancy.balance.copy_(terms[0] / terms[1])

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """Equation 4, mean over the pictures, with the source frozen."""
        source, cloner, discrepancy = networks["source"], networks["cloner"], networks["discrepancy"]

        def distillation(x: Tensor, rng: np.random.Generator) -> Tensor:
            with torch.no_grad():
                target = source(x)
            loss: Tensor = discrepancy([s.float() for s in target], [c.float() for c in cloner(x)]).mean()
            return loss

        return distillation

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """The untrained networks: "source", "cloner", and "discrepancy", which holds the units and lambda."""
        return nn.ModuleDict({"source": backbones.untrained("vgg16"), "cloner": Cloner(), "discrepancy": Discrepancy()})

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """The networks in one module with an explicit backward pass; see `Detector`."""
        cloner, discrepancy = networks["cloner"], networks["discrepancy"]
        assert isinstance(cloner, Cloner)
        assert isinstance(discrepancy, Discrepancy)
        return Detector(networks["source"], cloner, discrepancy)
