"""AE + OE-SDN, "Unsupervised Anomaly Detection Using Style Distillation" (Chung et al., IEEE Access 2020).

An autoencoder (AE) reconstructs its input through a bottleneck: it blurs good pictures slightly (style) and removes
anomalies (content). A large network without a bottleneck (OE-SDN) learns to imitate the style but not the content,
because it must reproduce outliers unchanged. The anomaly map is the DSSIM of the two outputs (equation 6).

Variants: ``oe-sdn``; ``sdn``, the same without outlier exposure (lambda = 0); ``ae``, the DSSIM of input and
reconstruction (equation 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adedge.data.datasets import Dataset
from adedge.methods import NetworkArguments, Objective, Stage, TrainingPlan, configured, first_sample
from adedge.methods.oesdn.auxiliary import TRANSFORMS
from adedge.methods.oesdn.torch_scoring import dssim_loss, msd_loss
from adedge.specs import Dssim, InputSpec, Record, ScoreSpec, Tiling, Uniform

Variant = Literal["oe-sdn", "sdn", "ae"]
Architecture = Literal["dense", "convolutional"]
Auxiliary = Literal[
    "rotation",
    "vertical-flip",
    "horizontal-flip",
    "shear",
    "gaussian-noise",
    "gaussian-blur",
    "svd-blur",
    "reconstruction",
    "adversarial-noise",
]

SLOPE = 0.005  # of every LeakyReLU in the autoencoders


# --- networks ------------------------------------------------------------------------------------------------------


class DenseAutoencoder(nn.Module):
    """Fully connected autoencoder for small pictures: 128-64-32-10 units and back, no activation at the end.

    (N, C, H, W) -> (N, C, H, W), H = W = ``size``.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        pixels = channels * size * size
        widths = (pixels, 128, 64, 32, 10, 32, 64, 128, pixels)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x."""
        y: Tensor = self.layers(x.flatten(1))
        return y.view(-1, *self.shape)


class ConvolutionalAutoencoder(nn.Module):
    """Convolutional autoencoder for large pictures (Figure 5): (N, C, H, W) -> the same, H and W multiples of 16.

    Two convolutions per block and a last convolution of 1x1 are our choices. The paper gives the filters (8, 16, 32,
    64; 128 in the bottleneck; back), the 3x3 kernels of all but the last, stride 2 in each encoder block's first
    convolution, and bilinear upsampling at the start of each decoder block.
    """

    FILTERS = (8, 16, 32, 64)

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for filters in self.FILTERS:
            layers += [*_convolution(width, filters, stride=2), *_convolution(filters, filters)]
            width = filters
        layers += _convolution(width, 128)
        width = 128
        for filters in reversed(self.FILTERS):
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            layers += [*_convolution(width, filters), *_convolution(filters, filters)]
            width = filters
        last = nn.Conv2d(width, channels, 1)
        self.layers = nn.Sequential(*layers, last)
        # PyTorch's default initialisation shrinks the signal layer by layer: with some seeds the output then stays at
        # the mean of all pictures. The last layer keeps it, with a bias of middle grey: else some seeds end at black.
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        assert last.bias is not None
        nn.init.constant_(last.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x."""
        y: Tensor = self.layers(x)
        return y


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(SLOPE)]


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))), both 3x3, of the same shape."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(filters, filters, 3, padding=1)
        self.second = nn.Conv2d(filters, filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to x."""
        y: Tensor = self.second(torch.relu(self.first(x)))
        return x + y


class AttentionMask(nn.Module):
    """The mask branch: a gate in (0, 1) for every value of x, computed with half the resolution; of the same shape."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.entry = ResidualBlock(filters)
        self.down = nn.Conv2d(filters, filters, 3, stride=2, padding=1)
        self.low = nn.Sequential(ResidualBlock(filters), ResidualBlock(filters))
        self.up = nn.ConvTranspose2d(filters, filters, 6, stride=2, padding=2)
        self.exit = nn.Sequential(ResidualBlock(filters), nn.Conv2d(filters, filters, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate of x."""
        fine = self.entry(x)
        coarse = self.up(self.low(self.down(fine)))
        return torch.sigmoid(self.exit(fine + coarse))


class StyleNetwork(nn.Module):
    """The OE-SDN: one residual attention block of RNAN (Zhang et al. 2019, local version), 32 filters throughout.

    (N, C, H, W) -> the same, H and W even. 214 273 parameters at one channel.
    """

    def __init__(self, channels: int, filters: int = 32) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), ResidualBlock(filters))
        self.trunk = nn.Sequential(ResidualBlock(filters), ResidualBlock(filters))
        self.mask = AttentionMask(filters)
        self.tail = nn.Sequential(
            ResidualBlock(filters), ResidualBlock(filters), nn.Conv2d(filters, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Imitate the autoencoder on x."""
        features = self.head(x)
        features = features + self.trunk(features) * self.mask(features)
        y: Tensor = self.tail(features)
        return x + y


class Detector(nn.Module):
    """Both networks on one input: x -> (OE-SDN(x), AE(x)), or (x, AE(x)) without OE-SDN; each (N, C, H, W)."""

    def __init__(self, ae: nn.Module, sdn: nn.Module | None = None) -> None:
        super().__init__()
        self.ae = ae
        self.sdn = sdn

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two pictures whose DSSIM is the anomaly map."""
        return (x if self.sdn is None else self.sdn(x)), self.ae(x)


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Iterations, batch sizes, Adam's learning rates, and the side of the patches (None: whole inputs).

    The first fraction ``start`` of the AE's iterations minimises the squared error, with which a bright line appears
    blurred at first and moves into place later. DSSIM alone does not reward a line before it is in place, and with some
    seeds never learns the rarer of a pattern's two directions. In both parts the rate rises for ``warm_up`` iterations.
    """

    ae_iterations: int
    sdn_iterations: int
    batch: int
    ae_learning_rate: float
    sdn_learning_rate: float
    crop: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    start: float = 0.0
    warm_up: int = 0


BUDGETS: dict[tuple[str, Architecture], Budget] = {
    # As published.
    ("paper", "dense"): Budget(
        ae_iterations=50_000, sdn_iterations=10_000, batch=20, ae_learning_rate=1e-3, sdn_learning_rate=1e-4
    ),
    ("paper", "convolutional"): Budget(
        ae_iterations=10_000, sdn_iterations=1_000, batch=20, ae_learning_rate=1e-4, sdn_learning_rate=1e-4
    ),
    # Minutes on two cores: larger learning rates that fall to zero make up for some of the missing iterations.
    ("quick", "dense"): Budget(
        ae_iterations=10_000,
        sdn_iterations=300,
        batch=20,
        ae_learning_rate=1e-3,
        sdn_learning_rate=5e-4,
        schedule="cosine",
    ),
    ("quick", "convolutional"): Budget(
        ae_iterations=800,
        sdn_iterations=150,
        batch=8,
        ae_learning_rate=2e-3,
        sdn_learning_rate=1e-3,
        crop=128,
        schedule="cosine",
        start=0.15,
        warm_up=100,
    ),
}


class OeSdn(Record):
    """Options of an AE + OE-SDN training.

    ``size`` is the side of the square input in pixels. ``fit`` "resize" stretches the whole picture to it (objects,
    small pictures); "crop" keeps the resolution, trains on random crops and inspects overlapping tiles of stride
    size / 4 (textures). ``one_class`` scores a picture by the mean of its map instead of the maximum of the smoothed
    map. ``smoothing`` is the side of the uniform filter in pixels, by default an eighth of the input (32 for 256, as in
    the paper); ``margin`` is the width of the border that the maximum ignores. Other options that are None come from
    the budget.
    """

    name: ClassVar[str] = "oesdn"
    variants: ClassVar[tuple[str, ...]] = ("oe-sdn", "sdn", "ae")

    variant: Variant = "oe-sdn"
    budget: Literal["quick", "paper"] = "quick"
    architecture: Architecture = "convolutional"
    channels: Literal[1, 3] = 3
    size: int = Field(default=256, ge=16)
    fit: Literal["resize", "crop"] = "resize"
    one_class: bool = False
    auxiliary: Auxiliary = "rotation"
    outlier_weight: float = Field(default=0.5, ge=0, le=1)
    smoothing: int | None = Field(default=None, ge=2)
    margin: int = Field(default=0, ge=0)
    ae_iterations: int | None = Field(default=None, ge=1)
    sdn_iterations: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> OeSdn:
        if self.architecture == "convolutional" and self.size % 16:
            raise ValueError(f"size {self.size} is not a multiple of 16, which the convolutional autoencoder requires")
        if self.architecture == "dense" and (self.size % 2 or self.fit == "crop"):
            raise ValueError("the dense autoencoder takes whole pictures (fit 'resize') of an even size")
        return self

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> OeSdn:
        """The method with ``options``; one-class sets (small pictures in one file) have defaults of their own.

        ``channels`` defaults to that of the first picture. Raises `UsageError` naming the first invalid option,
        `DataError` without pictures.
        """
        first = first_sample(dataset)
        height, _, channels = first.read().shape
        fitting: dict[str, Any] = {"channels": channels}
        if first.path is None:
            fitting.update(architecture="dense", one_class=True, size=height)
        return configured(cls, options, fitting)

    def plan(self) -> TrainingPlan:
        """Networks, specs and stages; see `Method.plan`."""
        return TrainingPlan(
            network={"architecture": self.architecture, "channels": self.channels, "size": self.size},
            input=self._input_spec(),
            score=self._score_spec(),
            stages=self._stages(),
        )

    def _input_spec(self) -> InputSpec:
        tiling = Tiling(tile=self.size, stride=max(1, self.size // 4)) if self.fit == "crop" else None
        return InputSpec(
            height=self.size,
            width=self.size,
            channels=self.channels,
            color="gray" if self.channels == 1 else "rgb",
            resize="stretch" if tiling is None else "tile",
            tiling=tiling,
        )

    def _score_spec(self) -> ScoreSpec:
        if self.one_class:
            return ScoreSpec(comparison=Dssim(), reduce="mean", margin=Dssim().window // 2)
        smoothing = Uniform(size=self.smoothing or max(2, self.size // 8))
        return ScoreSpec(comparison=Dssim(), filters=(smoothing,), reduce="max", margin=self.margin)

    def _stages(self) -> tuple[Stage, ...]:
        budget = BUDGETS[self.budget, self.architecture]
        crop = None if budget.crop is None else min(budget.crop, self.size)
        batch = self.batch or budget.batch
        iterations = self.ae_iterations or budget.ae_iterations
        first = round(budget.start * iterations)
        ae = Stage(
            name="ae",
            iterations=iterations - first,
            batch=batch,
            learning_rate=budget.ae_learning_rate,
            crop=crop,
            schedule=budget.schedule,
            warm_up=min(budget.warm_up, iterations // 20),
            # bfloat16 does not speed up a small network, and its rounded output would be the next stage's target.
            autocast=False,
        )
        start = replace(ae, name="ae-start", network="ae", iterations=first, schedule="constant")
        sdn = Stage(
            name="sdn",
            iterations=self.sdn_iterations or budget.sdn_iterations,
            batch=batch,
            learning_rate=budget.sdn_learning_rate,
            crop=crop,
            schedule=budget.schedule,
        )
        stages = (ae,) if self.variant == "ae" else (ae, sdn)
        return (start, *stages) if first else stages

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[Tensor]) -> None:
        """Nothing to prepare."""

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """Equation 1 with DSSIM for the AE (MSD at the start); equation 5 with MSD for the OE-SDN, with a frozen AE."""
        ae = networks["ae"]
        if stage.name == "ae-start":
            return lambda x, rng: msd_loss(ae(x), x)
        if stage.name == "ae":
            return lambda x, rng: dssim_loss(x, ae(x))

        sdn = networks["sdn"]
        weight = self.outlier_weight if self.variant == "oe-sdn" else 0.0
        transform = TRANSFORMS[self.auxiliary]

        def style_loss(x: Tensor, rng: np.random.Generator) -> Tensor:
            # Targets are computed in float32: bfloat16's three digits are too few, also for a shear's coordinates.
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                target = ae(x)
                outliers = x if weight == 0 else transform(x, rng, networks).detach()
            if weight == 0:
                return msd_loss(sdn(x), target)
            # One pass over both halves is faster than two and equivalent: no layer mixes pictures.
            imitation, reproduction = sdn(torch.cat([x, outliers])).split(len(x))
            return (1 - weight) * msd_loss(imitation, target) + weight * msd_loss(reproduction, outliers)

        return style_loss

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """The untrained networks: "ae", and "sdn" unless the variant is "ae"."""
        channels, size = int(network["channels"]), int(network["size"])
        dense = network["architecture"] == "dense"
        networks = nn.ModuleDict(
            {"ae": DenseAutoencoder(channels, size) if dense else ConvolutionalAutoencoder(channels)}
        )
        if variant != "ae":
            networks["sdn"] = StyleNetwork(channels)
        return networks

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """Both networks in one module; see `Detector`."""
        return Detector(**networks)
