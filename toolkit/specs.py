"""What a network expects (`InputSpec`), and how its outputs become a map and a score (`ScoreSpec`).

Both are frozen pydantic models stored in ``bundle.json``. Training (PyTorch), CPU (OpenCV) and GPU (CUDA) execute the
same specification.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adedge.errors import UsageError
from adedge.limits import PICTURE_PIXELS, factor

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt", "tensorrt-rtx")


MAX_SIDE = 1 << 16  # pixels of a picture, a window or a margin


class EngineKey(NamedTuple):
    """Identifies an engine of a bundle: the runtime that executes it, and its precision.

    >>> str(EngineKey("onnxruntime", "fp32"))
    'onnxruntime/fp32'
    """

    target: Target
    precision: Precision

    def __str__(self) -> str:
        return f"{self.target}/{self.precision}"


class Record(BaseModel):
    """Base of everything stored in a bundle: frozen, and unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tiling(Record):
    """How large pictures are cut into overlapping tiles, whose maps are merged by maximum.

    ``tile`` and ``stride`` are in pixels. The last tile of a row or column is shifted inwards to end at the border:
    every pixel is covered, and no tile contains padding.
    """

    tile: int = Field(ge=8, le=MAX_SIDE)
    stride: int = Field(ge=1)

    @model_validator(mode="after")
    def _overlap(self) -> Tiling:
        if self.stride > self.tile:
            raise ValueError(f"stride {self.stride} exceeds tile {self.tile}: pixels between tiles would be skipped")
        return self


class InputSpec(Record):
    """From a frame (uint8, H x W x C, BGR or grey) to the network's input (float32, N x C x H x W).

    x = (pixel * scale - mean) / std per channel, in ``color`` order. ``resize`` "stretch" resizes the frame to
    ``height`` x ``width`` (bilinear, half-pixel centres, no antialiasing); "tile" keeps the frame's resolution and
    cuts it into tiles by ``tiling`` (with tiling.tile = height = width).
    """

    height: int = Field(ge=8, le=MAX_SIDE)
    width: int = Field(ge=8, le=MAX_SIDE)
    channels: Literal[1, 3]
    color: Literal["rgb", "bgr", "gray"]
    scale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: Literal["stretch", "tile"] = "stretch"
    tiling: Tiling | None = None

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if self.height * self.width > PICTURE_PIXELS.value * factor():
            raise ValueError(f"an input of {self.height} x {self.width} pixels is too large: choose a smaller size")
        if (self.channels == 1) != (self.color == "gray"):
            raise ValueError(f"{self.channels} channel(s) do not fit color '{self.color}'")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channel(s)")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        if (self.resize == "tile") != (self.tiling is not None):
            raise ValueError("a tiling requires resize 'tile', and resize 'tile' requires a tiling")
        if self.tiling is not None and not self.tiling.tile == self.height == self.width:
            raise ValueError(f"tile {self.tiling.tile} must equal height {self.height} and width {self.width}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one network input."""
        return self.channels, self.height, self.width


class Dssim(Record):
    """Map = DSSIM of the network's two output images, (1 - SSIM) / 2, uniform window, mean over channels."""

    kind: Literal["dssim"] = "dssim"
    window: int = Field(default=7, ge=3, le=MAX_SIDE)
    data_range: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _odd(self) -> Dssim:
        if self.window % 2 == 0:
            raise ValueError(f"the DSSIM window must be odd, not {self.window}")
        return self


class ReadyMap(Record):
    """The network's first output already is the anomaly map (N x H x W, or N x 1 x H x W), of the input's size."""

    kind: Literal["map"] = "map"


class Uniform(Record):
    """Mean over a ``size`` x ``size`` window."""

    kind: Literal["uniform"] = "uniform"
    size: int = Field(ge=2, le=MAX_SIDE)


class Gaussian(Record):
    """Gaussian filter, ``sigma`` in pixels, truncated at 4 sigma."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(gt=0, le=MAX_SIDE / 4)


class Opening(Record):
    """Greyscale morphological opening with an ellipse of ``size`` x ``size`` (size 3: a cross)."""

    kind: Literal["opening"] = "opening"
    size: int = Field(default=3, ge=3, le=1023)  # the work for each pixel grows with its square


Comparison = Annotated[Dssim | ReadyMap, Field(discriminator="kind")]
Filter = Annotated[Uniform | Gaussian | Opening, Field(discriminator="kind")]


class ScoreSpec(Record):
    """How network outputs become an anomaly map and a score: compare, filter in order, reduce.

    Filters and DSSIM see the picture mirrored at its border with the edge pixel repeated (SciPy's "reflect").
    ``reduce`` is taken over the pixels at least ``margin`` from the border: a margin of window // 2 covers the valid
    DSSIM windows. With "output" nothing is reduced: the score is the network's second output (N values), and the score
    of a tiled frame is the largest of its tiles'.
    """

    comparison: Comparison
    filters: tuple[Filter, ...] = ()
    reduce: Literal["max", "mean", "output"] = "max"
    margin: int = Field(default=0, ge=0, le=MAX_SIDE)

    @model_validator(mode="after")
    def _scored_by_the_network(self) -> ScoreSpec:
        if self.reduce == "output" and (self.margin or not isinstance(self.comparison, ReadyMap)):
            raise ValueError("reduce 'output' requires a ready map and no margin")
        return self


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """'fp32,int8' -> ("fp32", "int8"). Raises `UsageError` for an unknown name, listing the known ones."""
    precisions: list[Precision] = []
    for part in text.split(","):
        name = part.strip().lower()
        if name not in PRECISIONS:
            raise UsageError(f"unknown precision '{part}': choose from {', '.join(PRECISIONS)}")
        precisions.append(name)
    return tuple(precisions)
