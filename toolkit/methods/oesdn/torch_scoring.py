"""Differentiable DSSIM for training, equal to `adedge.scoring` on valid windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dssim(a: Tensor, b: Tensor, *, window: int = 7, data_range: float = 1.0) -> Tensor:
    """(1 - SSIM) / 2 of each window that lies inside the pictures, mean over channels.

    a, b (N, C, H, W) of any float type, computed in float32 or better -> (N, H - window + 1, W - window + 1). Uniform
    window, sample covariance, C1 = (0.01 range)^2, C2 = (0.03 range)^2: Wang et al. 2004, equation 13, with the
    defaults of skimage.metrics.structural_similarity.
    """
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    with torch.autocast(a.device.type, enabled=False):
        # With few channels, pooling is twice as fast on contiguous tensors as on channels-last ones.
        a, b = a.to(wide).contiguous(), b.to(wide).contiguous()
        mean_a, mean_b, square_a, square_b, product = (
            F.avg_pool2d(x, window, stride=1) for x in (a, b, a * a, b * b, a * b)
        )
        # The sample variance divides by n - 1, the mean over the window by n.
        unbiased = window**2 / (window**2 - 1)
        variance_a = unbiased * (square_a - mean_a * mean_a)
        variance_b = unbiased * (square_b - mean_b * mean_b)
        covariance = unbiased * (product - mean_a * mean_b)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
        structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
        return ((1 - luminance * structure) / 2).mean(dim=1)


def dssim_loss(a: Tensor, b: Tensor, *, window: int = 7) -> Tensor:
    """Scalar: mean of `dssim` over windows and pictures."""
    return dssim(a, b, window=window).mean()


def msd_loss(a: Tensor, b: Tensor) -> Tensor:
    """Scalar: mean squared displacement of two batches, in float32."""
    return F.mse_loss(a.float(), b.float())
