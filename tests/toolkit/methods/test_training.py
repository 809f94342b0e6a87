"""Training: seeded, resumable to the bit, interruptible, and a bundle at the end or none at all."""

from __future__ import annotations

import hashlib
import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load
from torch import nn

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample
from adedge.errors import BundleError, DataError, UsageError
from adedge.golden import stain
from adedge.methods import Method, Objective, Stage
from adedge.methods.hfr import Hfr
from adedge.methods.mkd import Mkd
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.oesdn.torch_scoring import dssim_loss
from adedge.methods.students.method import UninformedStudents
from adedge.methods.training import TrainingOptions, checkpoint_directory, learning_rate, train
from adedge.methods.training_pictures import Pictures

torch.set_num_threads(1)

SEEDED = TrainingOptions(seed=3)
TINY = {
    "architecture": "dense",
    "channels": 1,
    "size": 16,
    "one_class": True,
    "ae_iterations": 12,
    "sdn_iterations": 6,
    "batch": 4,
}


def blobs(count: int, seed: int, size: int = 16, label: int = 0, channels: int = 1) -> tuple[Sample, ...]:
    """Pictures of a bright square (good) or a dark frame (anomalous), with noise."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        array = rng.integers(0, 60, (size, size, channels), dtype=np.uint8)
        inner = (slice(size // 4, -size // 4),) * 2 if label == 0 else (slice(0, 3), slice(None))
        array[inner] += 150
        samples.append(
            Sample(path=None, label=label, kind="good" if label == 0 else "bad", mask_path=None, array=array)
        )
    return tuple(samples)


def dataset(train_seed: int = 1, size: int = 16, channels: int = 1) -> Dataset:
    good = blobs(10, train_seed, size, channels=channels)
    test = (*blobs(3, 7, size, channels=channels), *blobs(2, 8, size, label=1, channels=channels))
    digest = hashlib.sha256(str(train_seed).encode()).hexdigest()
    return Dataset(
        name="blobs", train=good, calibration=blobs(4, 5, size, channels=channels), test=test, skipped=(), digest=digest
    )


def weights(bundle: Bundle) -> dict[str, np.ndarray]:
    return load(bundle.read("weights.safetensors"))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class StopAt:
    """A progress callback that sends this process a signal after ``iterations`` iterations of a stage."""

    def __init__(self, stage: str, iterations: int) -> None:
        self.stage, self.iterations = stage, iterations

    def __call__(self, done: int, total: int, text: str) -> None:
        if text.startswith(f"{self.stage}: ") and done == self.iterations:
            signal.raise_signal(signal.SIGINT)


# --- determinism and resuming --------------------------------------------------------------------------------------


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, again = (train(OeSdn(**TINY), dataset(), output=tmp_path / name, options=SEEDED) for name in "ab")
    other = train(OeSdn(**TINY), dataset(), output=tmp_path / "c", options=TrainingOptions(seed=4))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_training_leaves_the_random_state_of_others_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(OeSdn(**TINY), dataset(), output=tmp_path / "a", options=SEEDED)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("stage", "iterations"), [("ae", 5), ("ae", 12), ("sdn", 1), ("sdn", 6)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stage: str, iterations: int) -> None:
    whole = train(OeSdn(**TINY), dataset(), output=tmp_path / "whole", options=SEEDED)
    output = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(OeSdn(**TINY), dataset(), output=output, options=SEEDED, progress=StopAt(stage, iterations))
    assert not output.exists()
    assert checkpoint_directory(output).is_dir()

    said: list[str] = []
    resumed = train(OeSdn(**TINY), dataset(), output=output, options=SEEDED, announce=said.append)
    assert said[0].startswith("resuming")
    assert same(weights(whole), weights(resumed))
    assert whole.json("training.json") == resumed.json("training.json")
    assert not checkpoint_directory(output).exists()


SHORT: dict[str, Method] = {
    "hfr": Hfr(size=32, weights="none", iterations=4, batch=2),
    "mkd": Mkd(size=32, weights="none", iterations=4, batch=2),
    "students": UninformedStudents(
        size=24, members=2, lambda_k=0, lambda_m=1, teacher_iterations=2, student_iterations=3, batch=2
    ),
}


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("hfr", [("decoder", 1), ("decoder", 3)]),
        ("mkd", [("cloner", 2), ("cloner", 4)]),
        ("students", [("teacher_33", 1), ("students_33", 1), ("students_33", 3)]),
    ],
    ids=["hfr: SGD's momentum", "mkd: running statistics, lambda", "students: three stages"],
)
def test_every_method_resumes_to_the_bit_wherever_it_was_stopped(
    tmp_path: Path, name: str, stops: list[tuple[str, int]]
) -> None:
    """One training, interrupted again and again, against one that was left alone."""
    output, data = tmp_path / "parts", dataset(size=32)
    whole = train(SHORT[name], data, output=tmp_path / "whole", options=SEEDED)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(SHORT[name], data, output=output, options=SEEDED, progress=StopAt(*stop))
    resumed = train(SHORT[name], data, output=output, options=SEEDED)
    assert same(weights(whole), weights(resumed))
    assert whole.json("training.json") == resumed.json("training.json")
    with np.load(io.BytesIO(whole.read("golden.npz"))) as one, np.load(io.BytesIO(resumed.read("golden.npz"))) as other:
        assert np.array_equal(one["maps"], other["maps"])


def test_crash_between_checkpoints_resumes_from_the_last_one(tmp_path: Path) -> None:
    def crash(done: int, total: int, text: str) -> None:
        if text.startswith("sdn: ") and done == 4:
            raise MemoryError

    whole = train(OeSdn(**TINY), dataset(), output=tmp_path / "whole", options=SEEDED)
    with pytest.raises(MemoryError):
        train(
            OeSdn(**TINY),
            dataset(),
            output=tmp_path / "b",
            options=TrainingOptions(seed=3, checkpoint_every_s=0),
            progress=crash,
        )
    assert same(weights(whole), weights(train(OeSdn(**TINY), dataset(), output=tmp_path / "b", options=SEEDED)))


def test_measuring_the_cost_first_changes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    quiet = train(OeSdn(**TINY), dataset(), output=tmp_path / "a", options=SEEDED)
    loud = train(OeSdn(**TINY), dataset(), output=tmp_path / "b", options=SEEDED, announce=said.append)
    assert same(weights(quiet), weights(loud))
    assert "ae 12 × " in said[0]
    assert "sdn 6 × " in said[0]


@pytest.mark.parametrize(
    ("options", "seed", "train_seed", "named"),
    [
        ({"batch": 3}, 3, 1, "batch was 4, not 3"),
        ({}, 9, 1, "seed was 3, not 9"),
        ({}, 3, 2, "data "),
    ],
    ids=["batch", "seed", "pictures"],
)
def test_checkpoint_of_another_training_is_refused_and_restart_discards_it(
    tmp_path: Path, options: dict, seed: int, train_seed: int, named: str
) -> None:
    output = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(OeSdn(**TINY), dataset(), output=output, options=SEEDED, progress=StopAt("ae", 2))
    with pytest.raises(UsageError, match=rf"\({named}.*--restart"):
        train(OeSdn(**{**TINY, **options}), dataset(train_seed), output=output, options=TrainingOptions(seed=seed))
    clean = train(
        OeSdn(**{**TINY, **options}), dataset(train_seed), output=tmp_path / "b", options=TrainingOptions(seed=seed)
    )
    restarted = train(
        OeSdn(**{**TINY, **options}),
        dataset(train_seed),
        output=output,
        options=TrainingOptions(seed=seed, restart=True),
    )
    assert same(weights(clean), weights(restarted))


def test_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    output = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(OeSdn(**TINY), dataset(), output=output, options=SEEDED, progress=StopAt("ae", 2))
    state = checkpoint_directory(output) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(BundleError, match="damaged .*--restart"):
        train(OeSdn(**TINY), dataset(), output=output, options=SEEDED)


# --- what training does --------------------------------------------------------------------------------------------


def test_both_networks_learn(tmp_path: Path) -> None:
    options = {**TINY, "ae_iterations": 300, "sdn_iterations": 100}
    history = train(OeSdn(**options), dataset(), output=tmp_path / "a").json("training.json")["history"]
    for stage in ("ae", "sdn"):
        losses = [record["loss"] for record in history if record["stage"] == stage]
        assert losses[-1] < 0.7 * losses[0]


def test_the_style_stage_does_not_touch_the_autoencoder(tmp_path: Path) -> None:
    alone = train(OeSdn(**{**TINY, "variant": "ae"}), dataset(), output=tmp_path / "a", options=SEEDED)
    both = train(OeSdn(**TINY), dataset(), output=tmp_path / "b", options=SEEDED)
    distilled = weights(both)
    assert {name for name in distilled if name.startswith("ae.")} == set(weights(alone))
    # The two draw other initial numbers after the AE, none before: its training is the same.
    assert all(np.array_equal(value, distilled[name]) for name, value in weights(alone).items())


def test_first_iteration_is_adam_s_first_step(tmp_path: Path) -> None:
    """Adam's first step moves every weight with a gradient by the learning rate, along the gradient's sign."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = {k: v.numpy().copy() for k, v in OeSdn.networks("ae", {**TINY}).state_dict().items()}
    options = {**TINY, "variant": "ae", "budget": "paper", "ae_iterations": 1}
    after = weights(train(OeSdn(**options), dataset(), output=tmp_path / "a", options=SEEDED))
    moved = {name: np.abs(after[name] - before[name]) for name in before}
    np.testing.assert_allclose(moved["ae.layers.14.bias"], 1e-3, rtol=0.02)
    assert max(step.max() for step in moved.values()) == pytest.approx(1e-3, rel=1e-3)


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    """Whole pictures, one each iteration: nothing is random, so torch's plain Adam must arrive at the same weights."""
    options = {"size": 16, "channels": 1, "auxiliary": "vertical-flip", "batch": 1, "budget": "paper"}
    method = OeSdn(**options, ae_iterations=2, sdn_iterations=4)
    one = Dataset(**{**vars(dataset()), "train": blobs(1, 1)})
    trained = weights(train(method, one, output=tmp_path / "a", options=SEEDED))

    with torch.random.fork_rng():
        torch.manual_seed(3)
        networks = OeSdn.networks("oe-sdn", method.plan().network)
    x = torch.from_numpy(one.train[0].read()).float().permute(2, 0, 1)[None] / 255
    flipped = x.flip(2)
    ae, sdn = networks["ae"], networks["sdn"]
    for network, iterations in ((ae, 2), (sdn, 4)):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        for _ in range(iterations):
            optimizer.zero_grad()
            if network is ae:
                loss = dssim_loss(x, ae(x))
            else:
                target = ae(x).detach()
                loss = 0.5 * ((sdn(x) - target) ** 2).mean() + 0.5 * ((sdn(flipped) - flipped) ** 2).mean()
            loss.backward()
            optimizer.step()
    for name, value in networks.state_dict().items():
        np.testing.assert_allclose(trained[name], value.numpy(), atol=2e-5, err_msg=name)


class Broken(OeSdn):
    """Its loss is nan in the fifth iteration."""

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        factors = iter([1, 1, 1, 1, float("nan")])
        return lambda x, rng: networks["ae"](x).mean() * next(factors)


def test_loss_that_is_not_finite_names_stage_and_iteration(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 'ae' is nan at iteration 5"):
        train(Broken(**TINY), dataset(), output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_learning_rate_schedules() -> None:
    stage = Stage(name="ae", iterations=100, batch=1, learning_rate=0.2, schedule="cosine")
    assert [learning_rate(stage, i) for i in (0, 50)] == pytest.approx([0.2, 0.1])
    assert 0 < learning_rate(stage, 99) < 1e-3
    constant = Stage(name="ae", iterations=100, batch=1, learning_rate=0.2)
    assert {learning_rate(constant, i) for i in range(100)} == {0.2}
    warmed = replace(constant, warm_up=4)
    assert [learning_rate(warmed, i) for i in (0, 1, 3, 4)] == pytest.approx([0.05, 0.1, 0.2, 0.2])


def test_autocast_trains_and_is_recorded(tmp_path: Path) -> None:
    plain = train(OeSdn(**TINY), dataset(), output=tmp_path / "a", options=SEEDED)
    amp = train(OeSdn(**TINY), dataset(), output=tmp_path / "b", options=TrainingOptions(seed=3, amp=True))
    assert amp.manifest.provenance.options["amp"] is True
    assert {value.dtype for value in weights(amp).values()} == {np.dtype(np.float32)}
    assert not same(weights(plain), weights(amp))


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_convolutional_training_on_patches_of_colour_pictures(tmp_path: Path, fit: str) -> None:
    method = OeSdn(size=32, fit=fit, ae_iterations=2, sdn_iterations=1, batch=2)
    bundle = train(method, dataset(size=48, channels=3), output=tmp_path / "a")
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:
        assert golden["frames"].shape == (5, 32, 32, 3)
        assert golden["maps"].shape == (5, 32, 32)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(UsageError, match=f"device '{device}' cannot be used here"):
            train(OeSdn(**TINY), dataset(), output=tmp_path / "a", options=TrainingOptions(device=device))


def test_an_existing_bundle_is_refused_before_training(tmp_path: Path) -> None:
    train(OeSdn(**TINY), dataset(), output=tmp_path / "a")
    reports: list[int] = []
    with pytest.raises(BundleError, match="--overwrite"):
        train(OeSdn(**TINY), dataset(), output=tmp_path / "a", progress=lambda *report: reports.append(report[0]))
    assert not reports
    replaced = train(OeSdn(**TINY), dataset(), output=tmp_path / "a", options=TrainingOptions(seed=8, overwrite=True))
    assert replaced.manifest.provenance.seed == 8


def test_test_pictures_smaller_than_a_tile_are_refused_before_training(tmp_path: Path) -> None:
    mixed = Dataset(**{**vars(dataset(size=32)), "test": blobs(1, 1)})
    method = OeSdn(size=32, fit="crop", channels=1, ae_iterations=1, sdn_iterations=1)
    with pytest.raises(DataError, match="16 × 16 pixels"):
        train(method, mixed, output=tmp_path / "a", progress=lambda *report: pytest.fail("trained"))


# --- options from data ---------------------------------------------------------------------------------------------


def test_one_class_sets_choose_the_small_networks_and_the_mean() -> None:
    method = OeSdn.for_dataset(dataset(size=28), variant="sdn", size=None)
    assert (method.architecture, method.size, method.channels, method.variant) == ("dense", 28, 1, "sdn")
    score = method.plan().score
    assert (score.reduce, score.margin, score.filters) == ("mean", 3, ())


def test_bad_option_is_a_usage_error_naming_it() -> None:
    with pytest.raises(UsageError, match="^outlier_weight: .*less than or equal to 1"):
        OeSdn.for_dataset(dataset(), outlier_weight=2)


# --- the bundle ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(OeSdn(**TINY), dataset(), output=tmp_path_factory.mktemp("b") / "blobs.adedge", options=SEEDED)


def test_bundle_says_where_it_comes_from(bundle: Bundle) -> None:
    source = bundle.manifest.provenance
    assert (source.data, source.data_digest, source.seed) == ("blobs", dataset().digest, 3)
    assert source.versions["torch"] == torch.__version__
    assert source.options["batch"] == 4
    assert bundle.json("training.json")["pictures"] == [sample.digest for sample in dataset().train]
    assert bundle.verify() == []


def test_golden_frames_are_the_labelled_test_pictures(bundle: Bundle) -> None:
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:
        assert golden["labels"].tolist() == [0, 0, 0, 1, 1]
        assert np.array_equal(golden["frames"], np.stack([sample.read() for sample in dataset().test]))
        assert golden["frames"].dtype == np.uint8
        assert golden["maps"].dtype == golden["scores"].dtype == np.float32


def test_without_anomalous_test_pictures_stains_are_synthesised(tmp_path: Path) -> None:
    good_only = Dataset(**{**vars(dataset()), "test": ()})
    bundle = train(OeSdn(**TINY), good_only, output=tmp_path / "a")
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:
        good = min(16, len(good_only.train))
        assert golden["labels"].tolist() == [0] * good + [1] * good
        changed = (golden["frames"][good:] != golden["frames"][:good])[..., 0]
        assert np.array_equal(changed, golden["masks"][good:].astype(bool))
        assert not golden["masks"][:good].any()


def test_stain_changes_exactly_its_mask() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    stained, mask = stain(frame, np.random.default_rng(1))
    assert np.array_equal((stained != frame).all(axis=2), mask)
    assert 0.01 < mask.mean() < 0.15


def test_the_share_of_loading_in_the_training_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still but for 1 s in each batch and 3 s in each step."""
    now = 0.0
    said: list[str] = []
    batch = Pictures.batch

    def slow_batch(*arguments: Any) -> NDArray[np.uint8]:
        nonlocal now
        now += 1
        return batch(*arguments)

    def slow_rate(stage: Stage, iteration: int) -> float:
        nonlocal now
        now += 3
        return 1e-3

    monkeypatch.setattr("adedge.methods.training.time.perf_counter", lambda: now)
    monkeypatch.setattr("adedge.methods.training.learning_rate", slow_rate)
    monkeypatch.setattr(Pictures, "batch", slow_batch)
    train(OeSdn(**TINY), dataset(), output=tmp_path / "a", announce=said.append)
    iterations = 12 + 6
    assert (
        said[-1] == f"decoded the pictures in 0 s, trained in {4 * iterations} s; loading pictures took 25.0% of that"
    )
