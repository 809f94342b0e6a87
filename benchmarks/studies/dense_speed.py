"""Overhead of a score for every pixel over its convolutions: `students`, p = 33, M = 3, on 256 x 256 pixels.

    python -m adedge.benchmarks.studies.dense_speed [--rounds 5] [--threads 1]

Compares the deployed detector (mirrored border, teacher and students with pooling at every pixel, scores, fusion) with
its convolutions alone: the same layers of the same four networks, equally dilated, on an equally padded picture, with
nothing between them. Both take turns in PyTorch on the same CPU; their medians are compared. The promise is a ratio of
at most 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from adedge.errors import EngineError
from adedge.methods import NetworkArguments, require_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adedge.methods.students.patch_networks import PatchNetwork

RATIO_PROMISED = 1.15
PATCH, MEMBERS, SIZE = 33, 3, 256
WARM_UP = 1
PROBES = 4  # pixels whose descriptors are checked before timing


def compare(rounds: int, size: int = SIZE) -> dict[str, list[float]]:
    """Times in seconds of "detector" and "convolutions" on one picture (3, ``size``, ``size``), taking turns.

    Raises `EngineError` if dense descriptors differ from those of the patches, `MissingDependency` without torch.
    """
    require_torch()
    import torch

    from adedge.methods.students.method import UninformedStudents
    from adedge.methods.students.patch_networks import PatchNetwork, mirrored

    torch.manual_seed(0)
    arguments: NetworkArguments = {"patches": str(PATCH), "members": MEMBERS, "features": 0, "output_stride": 1}
    detector = UninformedStudents.deploy(UninformedStudents.networks(f"p{PATCH}", arguments)).eval()
    detector.to(memory_format=torch.channels_last)
    networks = [module for module in detector.modules() if isinstance(module, PatchNetwork)]
    plain = [plain_network(network) for network in networks]
    x = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        _check(networks[0], x)
        padded = mirrored(x, PATCH, 1)
        runs: dict[str, Callable[[], object]] = {
            "detector": lambda: detector(x),
            "convolutions": lambda: [network(padded) for network in plain],
        }
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(WARM_UP + rounds):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if turn >= WARM_UP:
                    samples[name].append(time.perf_counter() - started)
    return samples


def plain_network(network: PatchNetwork) -> nn.Module:
    """The convolutions of a patch network, dilated as at stride 1, with nothing between them."""
    import torch
    from torch import nn

    from adedge.methods.students.patch_networks import LAYERS

    layers: list[nn.Module] = []
    dilation, convolutions = 1, iter(network.convolutions)
    for layer in LAYERS[network.patch]:
        if layer is None:
            dilation *= 2
            continue
        source = next(convolutions)
        assert isinstance(source, nn.Conv2d)
        layers.append(nn.Conv2d(source.in_channels, source.out_channels, layer[1], dilation=dilation))
        layers[-1].load_state_dict(source.state_dict())
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _check(network: PatchNetwork, x: Tensor) -> None:
    """Raise `EngineError` unless the dense descriptors of a few pixels equal those of their patches."""
    import torch

    from adedge.methods.students.patch_networks import mirrored

    dense = network(mirrored(x, PATCH, 1), 1)
    half = PATCH // 2
    for row, column in np.random.default_rng(0).integers(half, x.shape[2] - half, (PROBES, 2)):
        patch = network(x[:, :, row - half : row + half + 1, column - half : column + half + 1])
        if not torch.allclose(patch[0, :, 0, 0], dense[0, :, row, column], rtol=1e-4, atol=1e-4):
            raise EngineError(
                f"the dense descriptor of pixel ({row}, {column}) differs from its patch's: fix the network before "
                "timing it"
            )


def main() -> None:
    """Print a Markdown table; exit with 1 if the ratio is above the promise."""
    parser = argparse.ArgumentParser(description="Time the dense forward pass of students against its convolutions.")
    parser.add_argument("--rounds", type=int, default=5, help="Timed runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    options = parser.parse_args()
    require_torch()
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    samples = compare(options.rounds)
    ours, theirs = statistics.median(samples["detector"]), statistics.median(samples["convolutions"])
    rows = [
        f"students, p = {PATCH}, M = {MEMBERS}, 3x{SIZE}x{SIZE} float32, a score for every pixel; "
        f"{options.rounds} rounds; PyTorch {torch.__version__} with {torch.get_num_threads()} thread(s)",
        "",
        "| dense forward | median s | fastest s |",
        "| --- | ---: | ---: |",
        f"| detector | {ours:.2f} | {min(samples['detector']):.2f} |",
        f"| its convolutions alone, a plain dilated network each | {theirs:.2f} | {min(samples['convolutions']):.2f} |",
        "",
        f"ratio {ours / theirs:.3f} (promised: at most {RATIO_PROMISED})",
    ]
    sys.stdout.write("\n".join(rows) + "\n")
    sys.exit(0 if ours / theirs <= RATIO_PROMISED else 1)


if __name__ == "__main__":
    main()
