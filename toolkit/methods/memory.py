"""`memory`: a detector without training, which compares each place of a picture with a bank of good descriptors.

A frozen network extracts descriptors; a bank holds a choice of those of the good pictures (a coreset by greedy
k-centre, as in PatchCore: Roth et al. 2022, arXiv 2106.08265). A descriptor is rebuilt as a mixture of the bank,
weighted by similarity, and what cannot be rebuilt is anomalous. The mixture is two 1x1 convolutions and a softmax:
one ONNX graph of fixed shapes for every runtime, without search, sorting or gathering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from adedge.data.datasets import Dataset
from adedge.errors import DataError
from adedge.methods import NetworkArguments, Objective, Stage, TrainingPlan, backbones, configured, first_sample
from adedge.methods.efficientnet_lite import EfficientNetLite0
from adedge.specs import Gaussian, ReadyMap, Record, ScoreSpec

Encoder = Literal["efficientnet-lite0", "resnet18", "wide-resnet50-2"]

RESERVOIR = 50_000  # descriptors that the bank is chosen from, whatever the number of pictures
PROJECTED = 128  # dimensions in which greedy k-centre measures distances
SAMPLE = 4_000  # descriptors that temperature and scale are measured on
SHARPNESS = 0.3  # temperature of "attention", in mean squared distances to the nearest descriptor of the bank
NEAREST = 1e-3  # temperature of "nearest": so low that the most similar descriptor takes all the weight
SMALLEST = 5  # pictures

DEFAULT_LEVELS = {"efficientnet-lite0": (16, 32), "resnet18": (16,), "wide-resnet50-2": (16,)}
DEFAULT_SIZE = {"efficientnet-lite0": 224, "resnet18": 256, "wide-resnet50-2": 256}
STRIDES = {"efficientnet-lite0": (4, 8, 16, 32), "resnet18": (4, 8, 16), "wide-resnet50-2": (4, 8, 16)}


# --- networks ------------------------------------------------------------------------------------------------------


def descriptors(features: Tensor) -> Tensor:
    """Features (N, C, h, w) -> averages over 3 x 3 places (fewer at the border), scaled to length 1, same shape."""
    return backbones.unit_length(F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False))


class Bank(nn.Module):
    """At most ``size`` good descriptors of one level, as unit vectors (size, C); unused rows are zero.

    ``temperature`` is that of the mixture, ``scale`` the mean residual of good descriptors that are not in the bank.
    """

    vectors: Tensor
    temperature: Tensor
    scale: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, channels))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("scale", torch.ones(()))


class Residual(nn.Module):
    """Rebuilds descriptors from a bank and measures what is missing.

    The weight of a vector v in the mixture is softmax(-|x - v|^2 / temperature). Of |x|^2 + |v|^2 - 2 x.v only the last
    term differs over a bank of unit vectors, so the weights are a 1x1 convolution, and so is the mixture. A zero row
    has similarity 0: far from any descriptor of length 1, it takes part in nothing.
    """

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        size, channels = bank.vectors.shape
        self.similarity = nn.Conv2d(channels, size, 1, bias=False)
        self.mixture = nn.Conv2d(size, channels, 1, bias=False)
        self.similarity.weight = nn.Parameter((bank.vectors * (2 / bank.temperature))[:, :, None, None].clone(), False)
        self.mixture.weight = nn.Parameter(bank.vectors.T[:, :, None, None].clone(), False)
        self.scale = float(bank.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Unit descriptors (N, C, h, w) -> squared length of what is missing, in units of the scale, (N, 1, h, w).

        The difference is taken of vectors, not of squared lengths, whose leading digits would cancel out in FP16.
        """
        mixture: Tensor = self.mixture(torch.softmax(self.similarity(x), dim=1))
        return (x - mixture).square().sum(dim=1, keepdim=True) / self.scale


class Detector(nn.Module):
    """x (N, 3, H, W) -> anomaly map (N, 1, H, W): the mean of the levels' residuals, each resized bilinearly."""

    def __init__(self, encoder: nn.Module, banks: Sequence[Bank], levels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.residuals = nn.ModuleList(map(Residual, banks))
        self.levels = tuple(levels)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The map without a filter, which belongs to the score spec."""
        features = self.encoder(x)
        size = x.shape[-2:]
        maps = [
            F.interpolate(residual(descriptors(features[level])), size=size, mode="bilinear", align_corners=False)
            for residual, level in zip(self.residuals, self.levels, strict=True)
        ]
        total = maps[0]
        for one in maps[1:]:
            total = total + one
        return (total / len(maps) if len(maps) > 1 else total,)


# --- filling the bank ----------------------------------------------------------------------------------------------


class Reservoir:
    """A uniform sample of at most ``capacity`` vectors from a stream of any length."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self._capacity = capacity
        self._generator = generator
        self._tickets = torch.empty(0)
        self.vectors = torch.empty(0)

    def add(self, vectors: Tensor) -> None:
        """Offer (n, C) vectors: each draws a ticket, and the smallest tickets stay."""
        tickets = torch.cat([self._tickets, torch.rand(len(vectors), generator=self._generator)])
        pool = torch.cat([self.vectors, vectors]) if len(self.vectors) else vectors
        if len(tickets) > self._capacity:
            kept = torch.topk(tickets, self._capacity, largest=False).indices.sort().values
            tickets, pool = tickets[kept], pool[kept]
        self._tickets, self.vectors = tickets, pool.clone()


def greedy_k_centre(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (k,), k <= ``count``, of vectors (n, C) such that every vector is near a chosen one.

    Starts at a random vector, and then takes the one farthest from all taken before (Gonzalez 1985). Distances are
    measured on a random projection. Ends early once every vector equals a chosen one.
    """
    channels = vectors.shape[1]
    if channels > PROJECTED:
        vectors = vectors @ (torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5)
    squares = vectors.square().sum(1)
    chosen = [int(torch.randint(len(vectors), (1,), generator=generator))]
    nearest = torch.full((len(vectors),), torch.inf)
    while len(chosen) < min(count, len(vectors)):
        last = vectors[chosen[-1]]
        nearest = torch.minimum(nearest, squares + last.square().sum() - 2 * (vectors @ last))
        farthest = int(nearest.argmax())
        if nearest[farthest] <= 1e-6:
            break
        chosen.append(farthest)
    return torch.tensor(chosen)


def fill_bank(bank: Bank, vectors: Tensor, variant: str, generator: torch.Generator) -> None:
    """Choose the bank from vectors (n, C), and measure its temperature and scale on a sample of them.

    Both are measured on the distance to the nearest vector of the bank other than the sample itself, so that a bank of
    all vectors works as well. Raises `DataError` if the vectors are all the same, or all zero.
    """
    chosen = greedy_k_centre(vectors, len(bank.vectors), generator)
    if len(chosen) < 2:
        raise DataError("every place of every picture looks the same to the network: check the pictures")
    bank.vectors.zero_()
    bank.vectors[: len(chosen)] = vectors[chosen]
    sample = torch.randperm(len(vectors), generator=generator)[:SAMPLE]
    similarities = vectors[sample] @ vectors[chosen].T
    similarities.masked_fill_(sample[:, None] == chosen[None], -torch.inf)
    distance = float((2 - 2 * similarities.amax(1)).clamp(min=0).mean())
    bank.temperature.fill_(NEAREST if variant == "nearest" else max(SHARPNESS * distance, NEAREST))
    bank.scale.fill_(1)
    left_out = torch.isin(sample, chosen, invert=True)
    rest = vectors[sample[left_out]] if left_out.any() else vectors[sample]
    with torch.no_grad():
        bank.scale.fill_(Residual(bank)(rest.T[None, :, :, None]).mean().clamp(min=1e-6))


# --- the method ----------------------------------------------------------------------------------------------------


class Memory(Record):
    """Options of a memory detector.

    ``encoder`` is frozen and loaded with ``weights``: "package" (EfficientNet-Lite0), "torchvision" (the ResNets),
    "none" or a file; ``weights_digest`` is their digest and ``weights_licence`` the licence of published ones.
    ``levels`` are strides of the feature maps to compare, with commas: "16,32". ``form`` is how a descriptor is
    rebuilt: "attention" as a mixture, "nearest" by the most similar one. ``bank`` is the number of descriptors kept
    of each level. ``size`` is the side of the square input in pixels. ``sigma`` is that of the Gaussian over the map
    in pixels, 0 for none.
    """

    name: ClassVar[str] = "memory"
    variants: ClassVar[tuple[str, ...]] = ("attention", "nearest")

    encoder: Encoder = "efficientnet-lite0"
    weights: str = backbones.PACKAGE
    weights_digest: str = ""
    weights_licence: str = ""
    form: Literal["attention", "nearest"] = "attention"
    levels: str = "16,32"
    size: int = Field(default=224, ge=32, multiple_of=32)
    bank: int = Field(default=1000, ge=2, le=20_000)
    sigma: float = Field(default=0.0, ge=0)
    batch: int = Field(default=16, ge=1)

    @field_validator("levels")
    @classmethod
    def _distinct(cls, levels: str) -> str:
        try:
            strides = _strides(levels)
        except ValueError:
            raise ValueError(f"'{levels}' is no list of strides: give one to four, such as 16,32") from None
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"'{levels}': give each stride once, from small to large")
        return levels

    @model_validator(mode="after")
    def _exist(self) -> Memory:
        available = STRIDES[self.encoder]
        for stride in _strides(self.levels):
            if stride not in available:
                names = ", ".join(map(str, available))
                raise ValueError(f"{self.encoder} has no level of stride {stride}: choose from {names}")
        return self

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> Memory:
        """The method with ``options``, and with weights, levels and size that fit the encoder and the pictures.

        Raises `UsageError` naming the first invalid option, `DataError` if weights cannot be read, or if there are
        fewer than `SMALLEST` pictures.
        """
        first_sample(dataset)
        if len(dataset.train) < SMALLEST:
            raise DataError(
                f"{len(dataset.train)} good pictures are too few to know what is good: give at least {SMALLEST}"
            )
        encoder = options.get("encoder") or cls.model_fields["encoder"].default
        small = first_sample(dataset).path is None
        fitting = {
            "weights": backbones.default_weights(encoder),
            "levels": ",".join(map(str, (8, 16) if small else DEFAULT_LEVELS.get(encoder, (16,)))),
            "size": 64 if small else DEFAULT_SIZE.get(encoder, 256),
        }
        method = configured(cls, options, fitting)
        published = method.weights == backbones.default_weights(method.encoder)
        return method.model_copy(
            update={
                "weights_digest": backbones.digest(method.encoder, method.weights),
                "weights_licence": backbones.LICENCES[method.encoder] if published else "",
            }
        )

    @property
    def variant(self) -> str:
        """How a descriptor is rebuilt."""
        return self.form

    @property
    def budget(self) -> str:
        """There is nothing to iterate."""
        return "none"

    def plan(self) -> TrainingPlan:
        """One stage without iterations, in which the bank is filled."""
        return TrainingPlan(
            network={"encoder": self.encoder, "levels": self.levels, "bank": self.bank},
            input=backbones.input_spec(self.size, backbone=self.encoder),
            score=ScoreSpec(
                comparison=ReadyMap(), filters=(Gaussian(sigma=self.sigma),) if self.sigma else (), reduce="max"
            ),
            stages=(Stage(name="bank", iterations=0, batch=self.batch, learning_rate=0.0),),
        )

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[Tensor]) -> None:
        """Load the encoder's weights, sample descriptors of all pictures, and fill the banks."""
        backbones.fill(networks["encoder"], self.encoder, self.weights)
        memory = networks["memory"]
        assert isinstance(memory, MemoryBanks)
        generator = torch.Generator().manual_seed(int(memory.seed))
        reservoirs = [Reservoir(RESERVOIR, generator) for _ in memory.banks]
        for x in batches:
            features = networks["encoder"](x)
            for reservoir, level in zip(reservoirs, memory.indices, strict=True):
                vectors = descriptors(features[level]).cpu().permute(0, 2, 3, 1)
                reservoir.add(vectors.reshape(-1, vectors.shape[-1]))
        for bank, reservoir in zip(memory.banks, reservoirs, strict=True):
            device = bank.vectors.device
            fill_bank(bank.cpu(), reservoir.vectors, self.form, generator)
            bank.to(device)

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """There is none."""
        raise AssertionError("a stage without iterations has no objective")

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """The networks without weights: "encoder", and "memory", whose banks are empty."""
        levels = _strides(str(network["levels"]))
        encoder_name: Any = network["encoder"]
        if encoder_name == "efficientnet-lite0":
            encoder: EfficientNetLite0 | backbones.ResNetFeatures = EfficientNetLite0(levels)
            channels, indices = encoder.channels, tuple(range(len(levels)))
        else:
            encoder = backbones.ResNetFeatures(encoder_name)
            indices = tuple(STRIDES[encoder_name].index(stride) for stride in levels)
            channels = tuple(encoder.channels[index] for index in indices)
        return nn.ModuleDict({"encoder": encoder, "memory": MemoryBanks(channels, indices, int(network["bank"]))})

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """Encoder and banks in one module; see `Detector`."""
        memory = networks["memory"]
        assert isinstance(memory, MemoryBanks)
        return Detector(networks["encoder"], memory.banks, memory.indices)


class MemoryBanks(nn.Module):
    """The banks of all levels; ``indices`` are those of their features among the encoder's outputs.

    ``seed`` is drawn with the initial weights, and so follows from the training's seed.
    """

    seed: Tensor

    def __init__(self, channels: Sequence[int], indices: Sequence[int], size: int) -> None:
        super().__init__()
        self._banks = nn.ModuleList(Bank(count, size) for count in channels)
        self.indices = tuple(indices)
        self.register_buffer("seed", torch.randint(2**31, ()))

    @property
    def banks(self) -> list[Bank]:
        """The banks, shallow to deep."""
        return [bank for bank in self._banks if isinstance(bank, Bank)]


def _strides(levels: str) -> tuple[int, ...]:
    return tuple(int(part) for part in levels.split(","))
