"""Outlier exposure without outliers: transforms that turn good pictures into outliers (OE-SDN paper, Table 3).

Each transform takes x (N, C, H, W) float in [0, 1], the iteration's random generator and the detector's networks, and
returns a batch of the same shape, without gradient. The paper names the transforms but not their strengths, which are
our choices: see each docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adedge.methods.oesdn.torch_scoring import msd_loss

Transform = Callable[[Tensor, np.random.Generator, nn.ModuleDict], Tensor]


def rotation(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Each picture rotated by 90, 180 or 270 degrees, equally likely; pictures are square."""
    quarters = rng.integers(1, 4, size=len(x))
    return torch.stack([torch.rot90(picture, int(k), (1, 2)) for picture, k in zip(x, quarters, strict=True)])


def vertical_flip(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Upside down."""
    return x.flip(2)


def horizontal_flip(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Left and right exchanged."""
    return x.flip(3)


def shear(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Rows shifted in proportion to their distance from the middle: by 0.3 to 0.6 pixels per row (choice), either way.

    Bilinear; pixels from outside the picture repeat its border.
    """
    slopes = rng.uniform(0.3, 0.6, size=len(x)) * rng.choice([-1.0, 1.0], size=len(x))
    height, width = x.shape[2:]
    affine = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    affine[:, 0, 0] = affine[:, 1, 1] = 1
    # affine_grid measures both axes from -1 to 1, so a slope in pixels is scaled by the aspect ratio.
    affine[:, 0, 1] = torch.from_numpy(slopes).to(affine) * height / width
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gaussian_noise(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Independent noise of standard deviation 0.1 (choice) added to each value, clipped to [0, 1]."""
    noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    return (x + 0.1 * noise.to(x)).clamp(0, 1)


def gaussian_blur(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """Gaussian filter of sigma 1 to 2 pixels (choice), one for the batch, truncated at 4 sigma, border repeated."""
    sigma = float(rng.uniform(1, 2))
    radius = math.floor(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def svd_blur(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """The best approximation of each channel by a matrix of rank min(H, W) // 8.

    After Choi & Chung, "Novelty Detection Via Blurring" (2020), who keep 4 of 32 singular values.
    """
    rank = max(1, min(x.shape[2:]) // 8)
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    scaled = left[..., :rank] * values[..., None, :rank]
    blurred: Tensor = scaled @ right[..., :rank, :]
    return blurred


def reconstruction(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """The trained autoencoder's reconstruction of x."""
    with torch.no_grad():
        output: Tensor = networks["ae"](x)
        return output.float()


def adversarial_noise(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
    """One step of 0.05 (choice) along the sign of the distillation loss's gradient, clipped to [0, 1].

    The fast gradient sign method (Goodfellow et al. 2015, section 4) on MSD(OE-SDN(x), AE(x)).
    """
    with torch.enable_grad():
        probe = x.detach().requires_grad_()
        loss = msd_loss(networks["sdn"](probe), networks["ae"](probe))
        (gradient,) = torch.autograd.grad(loss, probe)
    return (x + 0.05 * gradient.sign()).clamp(0, 1)


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        "rotation": rotation,
        "vertical-flip": vertical_flip,
        "horizontal-flip": horizontal_flip,
        "shear": shear,
        "gaussian-noise": gaussian_noise,
        "gaussian-blur": gaussian_blur,
        "svd-blur": svd_blur,
        "reconstruction": reconstruction,
        "adversarial-noise": adversarial_noise,
    }
)
