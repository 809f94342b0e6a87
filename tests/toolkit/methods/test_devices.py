"""Training on a GPU without one: tensors that know their device and hold no numbers, and bfloat16 where it must not go.

Of a `FakeTensorMode` every operation checks devices and shapes as a GPU would, and computes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from adedge.methods import Method
from adedge.methods.hfr import Hfr
from adedge.methods.mkd import Mkd
from adedge.methods.oesdn.auxiliary import TRANSFORMS
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.students.method import UninformedStudents, error_and_variance
from adedge.methods.students.patch_networks import PATCHES
from adedge.methods.students.teaching import REGION, compactness_loss, draw_triplets

torch.set_num_threads(1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """The mode; what moves or copies modules must not swap or duplicate its tensors, which it cannot do."""

    def moved(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children():
            child._apply(change)
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    new = change(value.detach())
                    held[name] = nn.Parameter(new, value.requires_grad) if held is module._parameters else new
        return module

    monkeypatch.setattr(nn.Module, "_apply", moved)
    monkeypatch.setattr(copy, "deepcopy", lambda value: value)
    # Else autocast is switched off for want of a GPU.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    return FakeTensorMode()


# adversarial-noise is left out: it differentiates, which only a real GPU can.
OESDN = [OeSdn(size=32, auxiliary=name) for name in TRANSFORMS if name != "adversarial-noise"]
SCALES = {"size": 64, "weights": "none", "features": 512, "lambda_m": 1.0}
METHODS: list[Method] = [
    *OESDN,
    OeSdn(architecture="dense", size=28, channels=1, one_class=True, variant="sdn"),
    Hfr(size=64, weights="none"),
    Mkd(size=64, weights="none"),
    UninformedStudents(patches=PATCHES, **SCALES),
    UninformedStudents(budget="paper", **SCALES),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.variant}")
def test_every_stage_stays_on_the_gpu(method: Method, fake: FakeTensorMode) -> None:
    plan = method.plan()
    with fake:
        networks = method.networks(method.variant, plan.network)
        networks.to("cuda")
        for stage in plan.stages:
            side = stage.crop or plan.input.height
            x = torch.empty(4, plan.input.channels, side, side, device="cuda").to(memory_format=torch.channels_last)
            networks.eval()
            with torch.no_grad():
                method.prepare(stage, networks, [x])
            assert all(value.device.type == "cuda" for value in networks.state_dict().values())
            if stage.iterations == 0:
                continue
            networks[stage.trains].train()
            for amp in (False, True):
                with torch.autocast("cuda", torch.bfloat16, enabled=amp and stage.autocast):
                    loss = method.objective(stage, networks)(x, np.random.default_rng(0))
                assert (loss.device.type, loss.dtype, loss.ndim) == ("cuda", torch.float32, 0)


def test_a_tensor_on_another_device_would_be_noticed(fake: FakeTensorMode) -> None:
    with fake, pytest.raises(RuntimeError, match="device"):
        error_and_variance([torch.empty(1, 128, 1, 1, device="cuda")], torch.empty(1, 128, 1, 1))


# --- bfloat16 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", PATCHES)
def test_patches_are_cut_without_rounding(patch: int) -> None:
    x = torch.rand(6, 3, REGION, REGION, generator=torch.Generator().manual_seed(0))
    wanted = draw_triplets(x, patch, np.random.default_rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = draw_triplets(x, patch, np.random.default_rng(1))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_correlations_are_not_rounded() -> None:
    descriptors = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = compactness_loss(descriptors)
    assert torch.equal(found, compactness_loss(descriptors))


@pytest.mark.parametrize("auxiliary", [name for name in TRANSFORMS if name != "adversarial-noise"])
def test_outliers_that_shall_be_kept_are_not_rounded(auxiliary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast a transform makes the same pictures as without, to the last bit."""
    method = OeSdn(size=32, auxiliary=auxiliary, outlier_weight=1.0)
    networks = method.networks("oe-sdn", method.plan().network)
    seen: list[Tensor] = []
    transform = TRANSFORMS[auxiliary]

    def kept(x: Tensor, rng: np.random.Generator, networks: nn.ModuleDict) -> Tensor:
        seen.append(transform(x, rng, networks))
        return seen[-1]

    monkeypatch.setattr("adedge.methods.oesdn.method.TRANSFORMS", {auxiliary: kept})
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stage = method.plan().stages[-1]
    with torch.autocast("cpu", torch.bfloat16):
        method.objective(stage, networks)(x, np.random.default_rng(1))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], transform(x, np.random.default_rng(1), networks))


def test_distances_of_features_are_taken_in_float32() -> None:
    """HFR's residuals are differences of nearly equal vectors: of the bfloat16 features, but exactly."""
    method = Hfr(size=32, weights="none")
    torch.manual_seed(0)
    networks = method.networks("resnet18", {}).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = method.objective(method.plan().stages[0], networks)(x, np.random.default_rng(0))
        encoded = networks["encoder"](x)
        decoded = networks["decoder"](encoded[-1])
    wanted = np.mean(
        [
            1 - nn.functional.cosine_similarity(e.double(), d.double(), dim=1).mean().item()
            for e, d in zip(encoded, decoded, strict=True)
        ]
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
