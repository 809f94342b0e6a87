"""HFR: residuals and loss against their formulas, a frozen encoder, and the whole way from pictures to an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from adedge.bundle import Bundle
from adedge.methods import load_detector
from adedge.methods.hfr import Decoder, Hfr, residuals


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    return result


def test_residuals_are_one_minus_the_cosine() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 5, 3, 4))
    wanted = 1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    found = residuals(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e3])
def test_residuals_stay_finite_and_right_in_fp16(scale: float) -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.normal(size=(1, 256, 4, 4)) * scale).half() for _ in range(2))
    wanted = residuals(a.double(), b.double())
    torch.testing.assert_close(residuals(a, b).double(), wanted, atol=5e-3, rtol=0)


def test_features_of_length_zero_have_no_direction() -> None:
    zeros = torch.zeros(1, 8, 2, 2)
    assert residuals(zeros, zeros).abs().max() == 0
    assert torch.isfinite(residuals(zeros, torch.ones(1, 8, 2, 2))).all()


def test_decoder_gives_the_encoders_shapes() -> None:
    found = Decoder((64, 128, 256)).eval()(torch.rand(2, 256, 4, 6))
    assert [tuple(one.shape) for one in found] == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]


def test_loss_is_the_mean_of_the_levels_means() -> None:
    torch.manual_seed(0)
    method = Hfr(weights="none", size=64)
    networks = method.networks("resnet18", {}).eval()
    x = torch.rand(2, 3, 64, 64)
    found = method.objective(method.plan().stages[0], networks)(x, np.random.default_rng(0))
    with torch.no_grad():
        encoded = networks["encoder"](x)
        decoded = networks["decoder"](encoded[-1])
        cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in zip(encoded, decoded, strict=True)]
    wanted = np.mean([float((1 - cosine).mean()) for cosine in cosines])
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    found.backward()
    assert all(parameter.grad is None for parameter in networks["encoder"].parameters())
    assert all(parameter.grad is not None for parameter in networks["decoder"].parameters())


def test_the_map_sums_levels_that_were_resized_bilinearly() -> None:
    torch.manual_seed(0)
    networks = Hfr.networks("resnet18", {}).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        (found,) = Hfr.deploy(networks)(x)
        encoded = networks["encoder"](x)
        decoded = networks["decoder"](encoded[-1])
    wanted = np.zeros((64, 64), np.float32)
    for a, b in zip(encoded, decoded, strict=True):
        level = (1 - torch.cosine_similarity(a, b, dim=1))[0].numpy()
        wanted += cv2.resize(level, (64, 64), interpolation=cv2.INTER_LINEAR)  # half-pixel centres as well
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=1e-4)


def test_the_whole_way(tmp_path: Path) -> None:
    brick = skimage.data.brick()
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("calibration/good", 12), ("test/good", 3), ("test/hole", 3)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for index in range(count):
            top, left = rng.integers(0, 512 - 64, 2)
            crop = brick[top : top + 64, left : left + 64].copy()
            if kind == "test/hole":
                crop[20:40, 20:40] = 255 - crop[20:40, 20:40]
            cv2.imwrite(str(tmp_path / "data" / kind / f"{index}.png"), crop)
    bundle, data = tmp_path / "brick.adedge", tmp_path / "data"
    options = ("--size", 64, "--iterations", 4, "--batch", 4, "--weights", "none", "--threads", 1)
    trained = adedge("train", "hfr", data, "-o", bundle, *options)
    assert "features are random" in trained.stderr.replace("\n", " ")
    adedge("export", bundle, "--with-scoring")
    adedge("calibrate", bundle, data, "--false-alarm-rate", 0.2)
    adedge("build-engine", bundle, "--target", "onnxruntime", "--precision", "int8")
    lines = adedge("run", bundle, data / "test", "--target", "onnxruntime", "--precision", "int8").stdout.splitlines()
    assert len(lines) == 6
    assert all(json.loads(line)["score"] >= 0 for line in lines)
    opened = Bundle.open(bundle)
    assert opened.manifest.provenance.options["weights"] == "none"
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert load_detector(opened)(x)[0].shape == (1, 1, 64, 64)
