"""Trained detectors in PyTorch, loaded from a bundle: their maps and scores are the reference for every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.errors import BundleError
from adedge.manifest import Manifest
from adedge.methods.registry import method_named
from adedge.specs import InputSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


def input_from_frames(frames: NDArray[np.uint8], spec: InputSpec) -> torch.Tensor:
    """Network input of conformed frames: (N, H, W, C) uint8 -> (N, C, H, W) float32, (pixel * scale - mean) / std."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() * spec.scale
    if spec.mean:
        x = x - torch.tensor(spec.mean).view(1, -1, 1, 1)
    if spec.std:
        x = x / torch.tensor(spec.std).view(1, -1, 1, 1)
    return x


def load_detector(bundle: Bundle) -> nn.Module:
    """The trained detector of a bundle, in eval mode on the CPU: x (N, C, H, W) float32 -> tuple of output tensors.

    Raises `BundleError` if the weights were changed since they were written, do not fit the networks that bundle.json
    names, or hold a value that is not finite.
    """
    method = method_named(bundle.manifest.method)
    networks = method.networks(bundle.manifest.variant, bundle.manifest.network)
    read_weights(bundle, networks)
    return method.deploy(networks).eval()


def detector_function(bundle: Bundle) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """`load_detector` as a function of arrays: network input (n, C, H, W) float32 -> the outputs, float32 (n, ...)."""
    import torch

    module = load_detector(bundle)

    def run(frames: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(frames))]

    return run


def read_weights(bundle: Bundle, networks: nn.ModuleDict) -> None:
    """Load the bundle's weights into ``networks``. Raises `BundleError` unless every tensor fits and is finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = bundle.path / "weights.safetensors"
    try:
        weights = load(bundle.read("weights.safetensors"))
    except SafetensorError as error:
        raise BundleError(f"{path} cannot be read ({error}): train again") from error
    expected = networks.state_dict()
    mismatches = sorted(expected.keys() ^ weights.keys())
    if mismatches:
        raise BundleError(f"{path} does not fit its networks: '{mismatches[0]}' is only in one of the two; train again")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise BundleError(f"{path} does not fit its networks: '{name}' has shape {shapes}; train again")
        if not torch.isfinite(value).all():
            raise BundleError(f"{path} holds a value that is not finite in '{name}': train again")
    networks.load_state_dict(weights)


def predict(
    module: nn.Module, manifest: Manifest, frames: NDArray[np.uint8], batch_size: int = 8
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Reference maps (N, H, W) and raw scores (N,), float32, of conformed frames (N, H, W, C) uint8.

    The networks run in PyTorch in float32 on the device of ``module``; `adedge.scoring` computes maps and scores.
    """
    import torch

    from adedge.scoring import maps_and_scores

    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    maps, scores = [], []
    with torch.inference_mode():
        for start in range(0, len(frames), batch_size):
            x = input_from_frames(frames[start : start + batch_size], manifest.input).to(device)
            outputs = module(x.contiguous(memory_format=torch.channels_last))
            batch_maps, batch_scores = maps_and_scores(
                manifest.score, [output.float().cpu().numpy() for output in outputs]
            )
            maps.append(batch_maps)
            scores.append(batch_scores)
    if not maps:
        return np.empty((0, manifest.input.height, manifest.input.width), np.float32), np.empty(0, np.float32)
    return np.concatenate(maps), np.concatenate(scores)
