"""Networks that describe square patches, and the same networks on whole pictures with a descriptor for every pixel.

Uninformed Students (Bergmann et al., CVPR 2020), Table 4 and its supplement: convolutions and max-pooling only. A
patch-wise network halves the resolution with each pooling; for every pixel of a picture that work would be done over
and over. Instead pooling keeps the resolution (the maximum of four shifted views) and what follows is dilated: every
descriptor is exactly that of its patch, from one pass (multi-pooling: Bailer et al., "Fast Dense Feature Extraction
with CNNs that have Pooling or Striding Layers", BMVC 2017). Shifted views and dilated convolutions are what every
inference engine has; dilated pooling is not.
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

# (filters, kernel) of each convolution, None for a 2 x 2 pooling. The last one is 1 x 1 for p = 65: the 3 x 3 that
# Table 4 prints does not fit the 1 x 1 map it is applied to.
LAYERS: dict[int, tuple[tuple[int, int] | None, ...]] = {
    17: ((128, 6), (256, 5), (256, 5), (DESCRIPTOR, 4)),
    33: ((128, 5), None, (256, 5), None, (256, 2), (DESCRIPTOR, 4)),
    65: ((128, 5), None, (128, 5), None, (256, 5), None, (256, 4), (DESCRIPTOR, 1)),
}


class PatchNetwork(nn.Module):
    """Descriptors of patches of side ``patch``: (N, 3, patch, patch) -> (N, 128, 1, 1), or of a picture's pixels.

    There is no activation after the last convolution: descriptors are regressed as standardised values of either sign,
    which a rectified output could not reach.
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
            # Keeps the size of activations from layer to layer, so that training begins at once.
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, a=SLOPE)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, stride: int | None = None) -> Tensor:
        """Descriptors (N, 128, h, w) of the patches in x (N, 3, H, W) that lie ``stride`` pixels apart, from (0, 0) on.

        ``stride`` is a power of two; None is the patch-wise network's own, which computes least for each descriptor.
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
                # In place: fresh memory of a whole picture's activations costs more than the function itself.
                x = F.leaky_relu(x, SLOPE, inplace=True)
        return x


def _pool_every_pixel(x: Tensor, dilation: int) -> Tensor:
    """Maximum over 2 x 2 pixels that lie ``dilation`` apart, at every pixel: (N, C, H, W) -> (N, C, H - d, W - d)."""
    height, width = x.shape[2] - dilation, x.shape[3] - dilation
    rows = torch.maximum(x[:, :, :height], x[:, :, dilation:])
    return torch.maximum(rows[:, :, :, :width], rows[:, :, :, dilation:])


def own_stride(patch: int) -> int:
    """Pixels between the patches whose descriptors a patch-wise network computes when it is given a larger picture."""
    return int(2 ** sum(layer is None for layer in LAYERS[patch]))


def receptive_field(patch: int) -> int:
    """How many rows (and columns) of a patch, from the first one on, its descriptor depends on.

    At most ``patch``: pooling an odd number of rows drops the last.
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

    (N, 3, H, W), H and W multiples of s = ``stride`` -> (N, 3, H + ..., W + ...), from which come (N, 128, H / s,
    W / s) descriptors, each of the patch centred at its pixel. Pixels beyond the border are mirror images, the edge
    pixel not repeated: a picture goes on there as it was, where a border of zeros would be an anomaly.
    """
    before = (patch - 1) // 2 - stride // 2
    after = receptive_field(patch) - stride - before
    for axis in (2, 3):
        length = x.shape[axis]
        # Reading rows and columns by constant numbers exists in every opset; mirrored padding was changed by ONNX 18.
        numbers = [_mirror(index, length) for index in range(-before, length + after)]
        x = x.index_select(axis, torch.tensor(numbers, device=x.device))
    return x


def _mirror(index: int, length: int) -> int:
    """Where a pixel outside of 0 ... length - 1 has its mirror image."""
    return abs(index) if index < length else 2 * (length - 1) - index
