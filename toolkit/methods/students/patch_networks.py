"""Networks that describe square patches, also applied to whole pictures with a descriptor for every pixel.

Uninformed Students (Bergmann et al., CVPR 2020), Table 4 and its supplement: convolutions and max-pooling only. A
patch-wise network halves the resolution with each pooling; run at every pixel, it would repeat most of its work.
Instead, pooling keeps the resolution (the maximum of four shifted views) and the following layers are dilated: one pass
gives exactly the descriptor of every patch (multi-pooling: Bailer et al., "Fast Dense Feature Extraction with CNNs that
have Pooling or Striding Layers", BMVC 2017). Every inference engine has shifted views and dilated convolutions; not
every one has dilated pooling.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCHES = (17, 33, 65)
CHANNELS = 3
DESCRIPTOR = 128
SLOPE = 0.005  # of every LeakyReLU
STRIDES = (1, 2, 4, 8)

# (filters, kernel) of each convolution, None for a 2 x 2 pooling. The last one is 1 x 1 for p = 65: the 3 x 3 in
# Table 4 does not fit its 1 x 1 input.
LAYERS: dict[int, tuple[tuple[int, int] | None, ...]] = {
    17: ((128, 6), (256, 5), (256, 5), (DESCRIPTOR, 4)),
    33: ((128, 5), None, (256, 5), None, (256, 2), (DESCRIPTOR, 4)),
    65: ((128, 5), None, (128, 5), None, (256, 5), None, (256, 4), (DESCRIPTOR, 1)),
}


class PatchNetwork(nn.Module):
    """Descriptors of patches with side ``patch``: (N, 3, patch, patch) -> (N, 128, 1, 1), or of a picture's pixels.

    There is no activation after the last convolution, because standardised descriptors have either sign.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.convolutions = nn.ModuleList()
        width = CHANNELS
        for layer in LAYERS[patch]:
            if layer is not None:
                filters, kernel = layer
                self.convolutions.append(nn.Conv2d(width, filters, kernel))
                width = filters
        for parameter in self.parameters():
            # Keeps the scale of activations from layer to layer, so that training makes progress from the start.
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, a=SLOPE)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, stride: int | None = None) -> Tensor:
        """Descriptors (N, 128, h, w) of the patches in x (N, 3, H, W) at every ``stride``-th pixel, from (0, 0) on.

        ``stride`` is a power of two; None is the patch-wise network's own, with the least work per descriptor.
        """
        stride = stride or own_stride(self.patch)
        spacing = dilation = 1
        convolutions: Iterator[nn.Module] = iter(self.convolutions)
        for number, layer in enumerate(LAYERS[self.patch]):
            if layer is None:
                if spacing < stride:
                    x = F.max_pool2d(x, 2)
                    spacing *= 2
                else:
                    x = _pool_every_pixel(x, dilation)
                    dilation *= 2
                continue
            convolution = next(convolutions)
            assert isinstance(convolution, nn.Conv2d)
            last = number == len(LAYERS[self.patch]) - 1
            step = stride // spacing if last else 1
            x = F.conv2d(x, convolution.weight, convolution.bias, stride=step, dilation=dilation)
            if not last:
                # In place, because allocating a whole picture's activations takes longer than the function itself.
                x = F.leaky_relu(x, SLOPE, inplace=True)
        return x


def _pool_every_pixel(x: Tensor, dilation: int) -> Tensor:
    """Maximum over 2 x 2 pixels ``dilation`` = d apart, at every pixel: (N, C, H, W) -> (N, C, H - d, W - d)."""
    height, width = x.shape[2] - dilation, x.shape[3] - dilation
    rows = torch.maximum(x[:, :, :height], x[:, :, dilation:])
    return torch.maximum(rows[:, :, :, :width], rows[:, :, :, dilation:])


def own_stride(patch: int) -> int:
    """Spacing in pixels of the patches that a patch-wise network describes in a larger picture."""
    return int(2 ** sum(layer is None for layer in LAYERS[patch]))


def receptive_field(patch: int) -> int:
    """The number of leading rows (and columns) of a patch that its descriptor depends on.

    At most ``patch``, because pooling an odd number of rows drops the last.
    """
    rows, spacing = 1, 1
    for layer in LAYERS[patch]:
        if layer is None:
            rows += spacing
            spacing *= 2
        else:
            rows += (layer[1] - 1) * spacing
    return rows


def mirrored(x: Tensor, patch: int, stride: int) -> Tensor:
    """Pad pictures so that `PatchNetwork` describes their pixels s // 2, s // 2 + s, ... of every row and column.

    (N, 3, H, W), H and W multiples of s = ``stride`` -> (N, 3, H + ..., W + ...), which give (N, 128, H / s, W / s)
    descriptors, each of the patch centred at its pixel. The padding is mirrored without repeating the edge pixel: a
    border of zeros would look like an anomaly.
    """
    before = (patch - 1) // 2 - stride // 2
    after = receptive_field(patch) - stride - before
    for axis in (2, 3):
        length = x.shape[axis]
        # Every opset has gathering by constant indices, while ONNX opset 18 changed mirrored padding.
        indices = [_mirror(index, length) for index in range(-before, length + after)]
        x = x.index_select(axis, torch.tensor(indices, device=x.device))
    return x


def _mirror(index: int, length: int) -> int:
    """The index within 0 ... length - 1 that mirrors an index outside; others are returned as they are."""
    return abs(index) if index < length else 2 * (length - 1) - index
