"""Training the teacher of Uninformed Students: triplets of patches of natural pictures, and three losses.

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
# Side of the region that holds the largest patch (SIDE / 4) with its translations (a quarter to each side).
REGION = SIDE // ZOOM[0] * 3 // 2
NOISE = 0.1  # standard deviation, for pixels in [0, 1]
GREY_PROBABILITY = 0.1
LUMINANCE = (0.8, 1.2)  # factor; the paper mentions the change but gives no range
MARGIN = 1.0  # delta; the paper gives no value, and the work it builds on (Balntas et al. 2016) uses 1

# The whole picture, resized to equal width and height as in the paper.
PICTURES = backbones.input_spec(SIDE)


def draw_triplets(x: Tensor, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors p, positives p+ and negatives p- with side ``patch``, each (N, 3, patch, patch), one per region.

    x (N, 3, `REGION`, `REGION`) are regions of different pictures of `SIDE` x `SIDE`. The anchor is cut at a random
    place of the picture resized to 4 to 16 patch sides; the positive is cut up to (patch - 1) / 4 pixels from there,
    with changed luminance and noise; the negative is the anchor of another picture. With probability 0.1 all three
    become grey.
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
    # Negatives are the anchors of other pictures: the batch, rotated by a random offset.
    offset = int(rng.integers(1, count)) if count > 1 else 0
    negatives = anchors.roll(offset, 0)
    grey = torch.from_numpy(rng.random((count, 1, 1, 1)) < GREY_PROBABILITY).to(x.device)
    anchors, positives, negatives = (torch.where(grey, _grey(y), y) for y in (anchors, positives, negatives))
    return anchors, positives, negatives


def cut(x: Tensor, centre: np.ndarray, extent: np.ndarray, patch: int) -> Tensor:
    """Cut one square from each picture of x (N, C, S, S) and resize it bilinearly: (N, C, patch, patch).

    ``centre`` (N, 2) is (row, column) and ``extent`` (N,) the squares' side, in pixels of x; pixel i spans i to i + 1.
    """
    side = x.shape[-1]
    affine = np.zeros((len(x), 2, 3))
    affine[:, 0, 0] = affine[:, 1, 1] = extent / side
    affine[:, :, 2] = 2 * centre[:, ::-1] / side - 1
    # Without autocast, which would round the grid to bfloat16 and read neighbouring pixels from the same place.
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(torch.from_numpy(affine).to(x), [*x.shape[:2], patch, patch], align_corners=False)
        return F.grid_sample(x.contiguous(), grid, padding_mode="border", align_corners=False)


def distillation_loss(decoded: Tensor, features: Tensor) -> Tensor:
    """Equation 1, mean over patches: squared distance between decoded descriptors and pretrained features, (N, f)."""
    return (decoded - features).square().sum(1).mean()


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = MARGIN) -> Tensor:
    """Equations 2 to 4, mean over triplets of descriptors (N, d): hardest negative by anchor swap."""
    near = (anchors - positives).square().sum(1)
    far = torch.minimum((anchors - negatives).square().sum(1), (positives - negatives).square().sum(1))
    return (margin + near - far).clamp(min=0).mean()


def compactness_loss(descriptors: Tensor) -> Tensor:
    """Redundancy of the dimensions of descriptors (N, d): each one's sum of squared correlations with the others.

    Mean over the d dimensions. Equation 5 sums all correlations without squares, which is lowest when the values of
    each descriptor cancel out, however redundant they are; the work that it cites (L2-Net, Tian et al. 2017) minimises
    squares. The mean instead of the sum lets lambda_c = 1 balance lambda_k = 1: as a sum, chance correlations among 64
    patches outweighed the distillation, which then learnt nothing.
    """
    centred = descriptors - descriptors.mean(0)
    scaled = centred / centred.square().sum(0).sqrt().clamp(min=1e-6)
    with torch.autocast(descriptors.device.type, enabled=False):
        correlation = scaled.T @ scaled
    others = correlation.square().sum() - correlation.diagonal().square().sum()
    return others / descriptors.shape[1]


def _mean_and_std(like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(like) for values in (backbones.MEAN, backbones.STD))
    return mean, std


def _pixels(x: Tensor) -> Tensor:
    """Network input -> pixels in [0, 1]."""
    mean, std = _mean_and_std(x)
    return x * std + mean


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = _mean_and_std(pixels)
    return (pixels - mean) / std


def _grey(x: Tensor) -> Tensor:
    """Network input with the luminance (ITU-R BT.601) in all three channels."""
    weights = torch.tensor((0.299, 0.587, 0.114)).view(1, -1, 1, 1).to(x)
    return _normalised((_pixels(x) * weights).sum(1, keepdim=True).expand_as(x))
