"""HFR, "A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection" (Chen et al. 2024).

A frozen network trained on ImageNet extracts features on three levels; a decoder learns to reconstruct all three from
the deepest. Trained on good pictures only, it reconstructs anomalies badly: the anomaly map is the sum of the three
levels' residuals, from one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adedge.data.datasets import Dataset
from adedge.methods import NetworkArguments, Objective, Stage, TrainingPlan, backbones, configured, first_sample
from adedge.specs import Gaussian, ReadyMap, Record, ScoreSpec

Encoder = Literal["resnet18", "wide-resnet50-2"]

SLOPE = 0.1  # of every LeakyReLU in the decoder
SIGMA = 4.0  # of the Gaussian over the map, in pixels (equation 10)
ITERATIONS = {"quick": 400, "paper": 10_000}


# --- networks ------------------------------------------------------------------------------------------------------


class Level(nn.Module):
    """Reconstructs one level of features: convolutions 1x1, 3x3, 1x1, then a 1x1 without activation (equation 3).

    (N, inputs, h, w) -> (N, outputs, h, w). The paper does not give the width of the blocks; ours is ``outputs``.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *_block(inputs, outputs, 1), *_block(outputs, outputs, 3), *_block(outputs, outputs, 1)
        )
        self.last = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of this level."""
        y: Tensor = self.last(self.blocks(x))
        return y


def _block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE),
    ]


class Decoder(nn.Module):
    """The deepest features (N, c3, h, w) -> features of all levels, shallow to deep, shaped as the encoder's."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        self.levels = nn.ModuleList([Level(third, third), Level(third, second), Level(second, first)])

    def forward(self, deepest: Tensor) -> tuple[Tensor, ...]:
        """Reconstruct the levels from deep to shallow; each starts from the previous one, upsampled x2."""
        features = [self.levels[0](deepest)]
        for level in self.levels[1:]:
            features.append(level(F.interpolate(features[-1], scale_factor=2.0, mode="nearest")))
        return tuple(reversed(features))


def residuals(encoded: Tensor, decoded: Tensor) -> Tensor:
    """phi of one level (equations 5 and 6): features (N, C, h, w) twice -> (N, 1, h, w), each value in [0, 2].

    Half the squared distance of two unit vectors equals 1 minus their cosine. It is computed as the distance, because
    for similar vectors the subtraction from 1 would cancel out in FP16.
    """
    return 0.5 * (backbones.unit_length(encoded) - backbones.unit_length(decoded)).square().sum(dim=1, keepdim=True)


class Detector(nn.Module):
    """x (N, 3, H, W) -> anomaly map (N, 1, H, W): the levels' residuals resized bilinearly and summed (equation 10).

    H and W are multiples of 16. Equation 9 also divides each level by its size, which would weight the deepest level 16
    times as much as the shallowest; as in the paper's equation 7, levels have equal weights here.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The map without its Gaussian filter, which belongs to the score spec."""
        encoded = self.encoder(x)
        decoded = self.decoder(encoded[-1])
        size = x.shape[-2:]
        levels = [
            F.interpolate(residuals(*pair), size=size, mode="bilinear", align_corners=False)
            for pair in zip(encoded, decoded, strict=True)
        ]
        return (levels[0] + levels[1] + levels[2],)


# --- training ------------------------------------------------------------------------------------------------------


class Hfr(Record):
    """Options of an HFR training.

    ``encoder`` is frozen and loaded with ``weights``: "torchvision", "none" or a file; ``weights_digest`` is their
    digest. ``size`` is the side of the square input in pixels, a multiple of 16. ``iterations`` None means the
    budget's: the paper gives no number, and 10 000 with batch size 16 are our choice.
    """

    name: ClassVar[str] = "hfr"
    variants: ClassVar[tuple[str, ...]] = ("resnet18", "wide-resnet50-2")

    encoder: Encoder = "resnet18"
    weights: str = backbones.TORCHVISION
    weights_digest: str = ""
    budget: Literal["quick", "paper"] = "quick"
    size: int = Field(default=256, ge=32, multiple_of=16)
    iterations: int | None = Field(default=None, ge=1)
    batch: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=0.4, gt=0)

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Hfr:
        """The method with ``options``; for one-class sets (small pictures in one file) ``size`` defaults to 64.

        Raises `UsageError` naming the first invalid option, `DataError` if weights cannot be read or downloaded, or if
        there are no pictures.
        """
        fitting = {"size": 64} if first_sample(dataset).path is None else {}
        method = configured(cls, options, fitting)
        return method.model_copy(update={"weights_digest": backbones.digest(method.encoder, method.weights)})

    @property
    def variant(self) -> str:
        """The encoder."""
        return self.encoder

    def plan(self) -> TrainingPlan:
        """One stage: the decoder."""
        return TrainingPlan(
            network={},
            input=backbones.input_spec(self.size),
            score=ScoreSpec(comparison=ReadyMap(), filters=(Gaussian(sigma=SIGMA),), reduce="max"),
            stages=(
                Stage(
                    name="decoder",
                    iterations=self.iterations or ITERATIONS[self.budget],
                    batch=self.batch,
                    learning_rate=self.learning_rate,
                    schedule="cosine",
                    optimizer="sgd",
                    momentum=0.9,
                    weight_decay=1e-4,
                ),
            ),
        )

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[Tensor]) -> None:
        """Load the encoder's weights."""
        backbones.fill(networks["encoder"], self.encoder, self.weights)

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """Equations 7 and 8: the mean residual over pixels, averaged over the three levels."""
        encoder, decoder = networks["encoder"], networks["decoder"]

        def loss(x: Tensor, rng: np.random.Generator) -> Tensor:
            with torch.no_grad():
                encoded = encoder(x)
            pairs = zip(encoded, decoder(encoded[-1]), strict=True)
            levels = [residuals(e.float(), d.float()).mean() for e, d in pairs]
            return torch.stack(levels).mean()

        return loss

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """The untrained networks: "encoder" and "decoder"."""
        encoder = backbones.ResNetFeatures("resnet18" if variant == "resnet18" else "wide-resnet50-2")
        return nn.ModuleDict({"encoder": encoder, "decoder": Decoder(encoder.channels)})

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """Both networks in one module; see `Detector`."""
        return Detector(**networks)
