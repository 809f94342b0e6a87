"""How the teacher of Uninformed Students learns: patches of natural pictures, triplets of them, and three losses.

Bergmann et al., CVPR 2020, section 3.1 and the second paragraph of section 4. Pictures are network input: RGB, (pixel -
mean) / std of ImageNet.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adedge.methods import backbones

SIDE = 256  # of the pictures that patches are cut from
ZOOM = (4, 16)  # a picture is zoomed to this many patch sides
# Of a picture at SIDE x SIDE, what the largest patch (SIDE / 4) and its translations (a quarter to each side) need.
REGION = SIDE // ZOOM[0] * 3 // 2
NOISE = 0.1  # standard deviation, for pixels in [0, 1]
GREY_PROBABILITY = 0.1
LUMINANCE = (0.8, 1.2)  # factor; the paper names the change and not its size
MARGIN = 1.0  # delta; the paper gives no value, and 1 is that of the triplets it builds on (Balntas et al. 2016)

# The whole picture zoomed to equal width and height, as the paper says.
PICTURES = backbones.input_spec(SIDE)


def draw_triplets(x: Tensor, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors p, positives p+ and negatives p- of side ``patch``, each (N, 3, patch, patch), one of each region.

    x (N, 3, `REGION`, `REGION`) are regions of different pictures of `SIDE` x `SIDE`. The anchor is cut at a random
    place of the picture zoomed to between 4 and 16 patch sides; the positive up to (patch - 1) / 4 pixels from there,
    with another luminance and noise; the negative is the anchor of another picture. All three become grey together
    with probability 0.1.
    """
    count, side = len(x), x.shape[-1]
    zoomed = rng.integers(ZOOM[0] * patch, ZOOM[1] * patch + 1, count)
    extent = patch * SIDE / zoomed  # of the patch, in pixels of x
    reach = (patch - 1) // 4 * extent / patch
    room = (extent / 2 + reach)[:, None]
    centre = rng.uniform(room, side - room, (count, 2))
    steps = rng.integers(-((patch - 1) // 4), (patch - 1) // 4 + 1, (count, 2))
    anchors = cut(x, centre, extent, patch)
    positives = _pixels(cut(x, centre + steps * (extent / patch)[:, None], extent, patch))
    factor = torch.from_numpy(rng.uniform(*LUMINANCE, (count, 1, 1, 1))).to(x)
    noise = torch.from_numpy(rng.normal(0, NOISE, positives.shape)).to(x)
    positives = _normalised(positives * factor + noise)
    # Negatives come from another picture's region: everybody's neighbour at a distance drawn once.
    other = int(rng.integers(1, count)) if count > 1 else 0
    negatives = anchors.roll(other, 0)
    grey = torch.from_numpy(rng.random((count, 1, 1, 1)) < GREY_PROBABILITY).to(x.device)
    anchors, positives, negatives = (torch.where(grey, _grey(y), y) for y in (anchors, positives, negatives))
    return anchors, positives, negatives


def cut(x: Tensor, centre: np.ndarray, extent: np.ndarray, patch: int) -> Tensor:
    """Cut squares of x (N, C, S, S), one of each, and resize them (bilinear): (N, C, patch, patch).

    ``centre`` (N, 2) is (row, column), ``extent`` (N,) the squares' side, in pixels of x; pixel i spans i to i + 1.
    """
    side = x.shape[-1]
    affine = np.zeros((len(x), 2, 3))
    affine[:, 0, 0] = affine[:, 1, 1] = extent / side
    affine[:, :, 2] = 2 * centre[:, ::-1] / side - 1
    # Where autocast rounded the grid to bfloat16, neighbours would be read from the same place.
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(torch.from_numpy(affine).to(x), [*x.shape[:2], patch, patch], align_corners=False)
        return F.grid_sample(x.contiguous(), grid, padding_mode="border", align_corners=False)


def distillation_loss(decoded: Tensor, features: Tensor) -> Tensor:
    """Equation 1, mean over patches: squared distance of decoded descriptors and pretrained features, both (N, f)."""
    return (decoded - features).square().sum(1).mean()


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = MARGIN) -> Tensor:
    """Equations 2 to 4, mean over triplets of descriptors (N, d): the hardest negative with anchor swap."""
    near = (anchors - positives).square().sum(1)
    far = torch.minimum((anchors - negatives).square().sum(1), (positives - negatives).square().sum(1))
    return (margin + near - far).clamp(min=0).mean()


def compactness_loss(descriptors: Tensor) -> Tensor:
    """How much the dimensions of descriptors (N, d) repeat each other: sum of squared correlations of each with others.

    Mean over the d dimensions. Equation 5 prints the sum of all correlations, without squares: that is lowest wherever
    each descriptor's values cancel out, however redundant they are. Squares are what the work that it cites minimises
    (L2-Net, Tian et al. 2017). The mean in place of the sum lets lambda_c = 1 balance lambda_k = 1: as a sum, the
    correlations that 64 patches show by chance alone outweighed the distillation, which then learnt nothing.
    """
    centred = descriptors - descriptors.mean(0)
    scaled = centred / centred.square().sum(0).sqrt().clamp(min=1e-6)
    with torch.autocast(descriptors.device.type, enabled=False):
        correlation = scaled.T @ scaled
    others = correlation.square().sum() - correlation.diagonal().square().sum()
    return others / descriptors.shape[1]


def _constants(like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(like) for values in (backbones.MEAN, backbones.STD))
    return mean, std


def _pixels(x: Tensor) -> Tensor:
    """Network input -> pixels in [0, 1]."""
    mean, std = _constants(x)
    return x * std + mean


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = _constants(pixels)
    return (pixels - mean) / std


def _grey(x: Tensor) -> Tensor:
    """Network input with its luminance (ITU-R BT.601) in all three channels."""
    weights = torch.tensor((0.299, 0.587, 0.114)).view(1, -1, 1, 1).to(x)
    return _normalised((_pixels(x) * weights).sum(1, keepdim=True).expand_as(x))
