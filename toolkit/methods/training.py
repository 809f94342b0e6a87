"""Training: one loop for every method, seeded, bounded and resumable, which writes a bundle.

Iteration i of stage s draws all its randomness (pictures, crops, transforms) from a generator seeded with (seed, s, i).
An interrupted training therefore resumes without any generator state: on a CPU, the same seed and number of threads
give bit-identical weights, resumed or not.
"""

from __future__ import annotations

import copy
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from adedge import __version__
from adedge.bundle import Bundle, create
from adedge.data.datasets import Dataset
from adedge.errors import DataError, UsageError
from adedge.golden import choose_frames, golden_file
from adedge.manifest import Manifest, Provenance
from adedge.methods import Method, Stage, TrainingPlan, input_from_frames, predict
from adedge.methods.checkpoint import Checkpoint, LossRecord, Position
from adedge.methods.training_pictures import Pictures, pictures_of
from adedge.processors import available_processors
from adedge.progress import Progress
from adedge.specs import Record

SMOOTHING = 0.98  # the reported loss is an exponential mean over about 50 iterations
RECORDS_PER_STAGE = 100


class TrainingOptions(Record):
    """Options of a training that do not depend on the method.

    ``device`` is torch's name of the device; ``threads`` is the number of CPU threads (None: torch's choice). ``amp``
    enables torch's autocast to bfloat16 in the stages that benefit. ``overwrite`` replaces an existing bundle;
    ``restart`` discards the checkpoint of an interrupted training instead of resuming it. A checkpoint is saved every
    ``checkpoint_every_s`` seconds.
    """

    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    amp: bool = False
    threads: int | None = Field(default=None, ge=1)
    overwrite: bool = False
    restart: bool = False
    checkpoint_every_s: float = Field(default=30.0, ge=0)


DEFAULTS = TrainingOptions()


def train(
    method: Method,
    dataset: Dataset,
    *,
    output: str | Path,
    options: TrainingOptions = DEFAULTS,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Bundle:
    """Train ``method`` on the good pictures of ``dataset`` and write the bundle ``output``.

    ``progress`` counts each stage's iterations: (done, total, "<stage>: loss ..."). ``announce`` receives messages for
    the user: whether a checkpoint is resumed, an estimate of the training time (only with ``announce``, a few
    iterations are timed first), and at the end the time taken and the share spent loading pictures.

    The checkpoint ``<output>.checkpoint`` exists until the bundle is written; if it exists at the start, it is resumed
    unless ``options.restart`` is set. Ctrl-C finishes the iteration, saves a checkpoint and raises KeyboardInterrupt;
    a second Ctrl-C interrupts at once.

    Raises `BundleError` if the bundle or a checkpoint cannot be written or a checkpoint is damaged, `UsageError` for an
    unavailable device or the checkpoint of another training, `DataError` for unusable pictures or a loss that is not
    finite.

    >>> from adedge import TrainingOptions, load_dataset, method_named
    >>> dataset = load_dataset("photos")
    >>> method = method_named("oesdn").for_dataset(dataset, variant="ae", size=32, ae_iterations=30)
    >>> bundle = train(method, dataset, output="bottle.adedge", options=TrainingOptions(seed=1))
    >>> bundle.manifest.method, bundle.manifest.provenance.seed
    ('oesdn', 1)
    """
    output = Path(output)
    plan = method.plan()
    device = _device(options.device)
    manifest = _manifest(method, plan, dataset, options)
    # Created first, so that a second training into the same place is refused now and not at its end.
    with create(output, manifest, overwrite=options.overwrite) as draft:
        checkpoint = Checkpoint(checkpoint_directory(output), _identity(method, dataset, options))
        if options.restart:
            checkpoint.discard()
        saved = checkpoint.load()
        started = time.perf_counter()
        pictures = pictures_of(dataset.train, plan, options.seed)
        decoding_s = time.perf_counter() - started
        golden = choose_frames(dataset, plan.input)
        networks = _initialise(method, plan, options.seed, device)
        run = _Run(method, plan, networks, pictures, device, options)
        with _threads(options.threads):
            if saved is not None:
                run.restore(*saved)
                if announce:
                    announce(f"resuming from {checkpoint.directory}: {run.describe_position()}")
            if announce:
                announce(run.estimate())
            run.finish(checkpoint, progress)
            if announce:
                announce(f"decoded the pictures in {_duration(decoding_s)}, {run.costs()}")
            module = method.deploy(networks.cpu()).eval()
            golden_data = golden_file(golden, *predict(module, manifest, golden.frames))
        training = {
            "pictures": [sample.digest for sample in dataset.train],
            "history": [record.model_dump() for record in run.position.history],
        }
        draft.write("weights.safetensors", _weights(networks))
        draft.write_json("training.json", training)
        draft.write("golden.npz", golden_data)
    checkpoint.discard()
    return draft.bundle


def checkpoint_directory(output: Path) -> Path:
    """The checkpoint directory of the training that writes ``output``."""
    return output.with_name(f"{output.name}.checkpoint")


def _identity(method: Method, dataset: Dataset, options: TrainingOptions) -> dict[str, Any]:
    """The options that must be equal for a checkpoint to be resumed."""
    shared = {"seed": options.seed, "amp": options.amp, "data": dataset.digest}
    return {**method.model_dump(), "method": method.name, **shared}


def _initialise(method: Method, plan: TrainingPlan, seed: int, device: torch.device) -> nn.ModuleDict:
    """The networks with initial weights drawn with ``seed``; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = method.networks(method.variant, plan.network)
    networks.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in stubs
    return networks


class _Run:
    """A training in progress: the networks, the optimiser of the current stage, and the position in the plan."""

    def __init__(
        self,
        method: Method,
        plan: TrainingPlan,
        networks: nn.ModuleDict,
        pictures: Mapping[str, Pictures],
        device: torch.device,
        options: TrainingOptions,
    ) -> None:
        self.method = method
        self.plan = plan
        self.networks = networks
        self.pictures = pictures
        self.device = device
        self.options = options
        self.position = Position()
        self.optimizer = self._optimizer()
        self.training_s = self.loading_s = 0.0

    def finish(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        """Train from the current position to the end of the last stage, saving checkpoints on the way."""
        started, self.loading_s = time.perf_counter(), 0.0
        with _deferred_interrupt() as interrupted:
            while self.position.stage < len(self.plan.stages):
                self._finish_stage(checkpoint, interrupted, progress)
                self.position = self.position.model_copy(
                    update={"stage": self.position.stage + 1, "iteration": 0, "loss": None}
                )
                self.optimizer = self._optimizer()
                checkpoint.save(self.position, self._tensors())
        self.training_s = time.perf_counter() - started

    def costs(self) -> str:
        """A sentence on the time since the training was started or resumed, and the share spent loading pictures."""
        share = self.loading_s / max(self.training_s, 1e-9)
        return f"trained in {_duration(self.training_s)}; loading pictures took {share:.1%} of that"

    def _finish_stage(self, checkpoint: Checkpoint, interrupted: Callable[[], bool], progress: Progress | None) -> None:
        stage = self.plan.stages[self.position.stage]
        if self.position.iteration == 0:
            self._prepare(self.position.stage, self.networks, progress)
        if stage.iterations == 0:
            return
        step = self._step(stage, self.networks, self.optimizer)
        record_every = max(1, stage.iterations // RECORDS_PER_STAGE)
        saved_at = time.monotonic()
        for iteration in range(self.position.iteration, stage.iterations):
            value = step(self.position.stage, iteration)
            before = self.position.loss
            loss = value if before is None else SMOOTHING * before + (1 - SMOOTHING) * value
            history = self.position.history
            if (iteration + 1) % record_every == 0:
                history = (*history, LossRecord(stage=stage.name, iteration=iteration + 1, loss=loss))
            self.position = Position(stage=self.position.stage, iteration=iteration + 1, loss=loss, history=history)
            if progress:
                progress(iteration + 1, stage.iterations, f"{stage.name}: loss {loss:.5f}")
            due = time.monotonic() - saved_at >= self.options.checkpoint_every_s
            if due or interrupted():
                checkpoint.save(self.position, self._tensors())
                saved_at = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt

    def _prepare(self, number: int, networks: nn.ModuleDict, progress: Progress | None) -> None:
        stage = self.plan.stages[number]

        def inputs() -> Iterator[Tensor]:
            pictures, done = self.pictures[stage.pictures], 0
            for batch in pictures.each(rng, stage.batch, stage.crop):
                yield self._input(batch, stage)
                done += len(batch)
                if progress and stage.iterations == 0:
                    progress(done, len(pictures), f"{stage.name}: reading pictures")

        rng = np.random.default_rng([self.options.seed, number])
        networks.eval()
        with torch.no_grad():
            self.method.prepare(stage, networks, inputs())

    def _input(self, frames: NDArray[np.uint8], stage: Stage) -> Tensor:
        spec = self.pictures[stage.pictures].spec
        return input_from_frames(frames, spec).to(self.device, memory_format=torch.channels_last)

    def _step(
        self, stage: Stage, networks: nn.ModuleDict, optimizer: torch.optim.Optimizer | None
    ) -> Callable[[int, int], float]:
        """One iteration of ``stage`` on ``networks``: (stage number, iteration) -> loss."""
        networks.eval()
        networks[stage.trains].train()
        objective = self.method.objective(stage, networks)
        pictures = self.pictures[stage.pictures]
        assert optimizer is not None, f"stage '{stage.name}' has iterations but nothing to train"

        def step(number: int, iteration: int) -> float:
            rng = np.random.default_rng([self.options.seed, number, iteration])
            started = time.perf_counter()
            x = self._input(pictures.batch(rng, stage.batch, stage.crop), stage)
            self.loading_s += time.perf_counter() - started
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, iteration)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp and stage.autocast):
                loss = objective(x, rng)
            value = loss.item()
            if not math.isfinite(value):
                raise DataError(
                    f"the loss of stage '{stage.name}' is {value} at iteration {iteration + 1}: "
                    "check the pictures, or train with another --seed, with a larger --batch or without --amp"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return value

        return step

    def estimate(self) -> str:
        """A sentence on the remaining time, from a few iterations of each stage timed on a copy of the networks."""
        parts, total_s = [], 0.0
        for number, stage in enumerate(self.plan.stages):
            remaining = stage.iterations - (self.position.iteration if number == self.position.stage else 0)
            if number < self.position.stage or remaining == 0:
                continue
            trial = copy.deepcopy(self.networks)
            step = self._step(stage, trial, _optimizer(stage, trial))
            step(number, 0)  # not timed: the first iteration also allocates memory
            started, count = time.perf_counter(), 0
            while count < min(3, remaining) and time.perf_counter() - started < 5:
                step(number, count)
                count += 1
            iteration_s = (time.perf_counter() - started) / count
            total_s += remaining * iteration_s
            parts.append(f"{stage.name} {remaining} × {iteration_s:.3g} s")
        if not parts:
            return f"reads the {len(self.pictures['training'])} pictures once; there is nothing to train"
        remedy = "; --budget quick, --amp or --device cuda shorten it" if total_s > 3600 else ""
        return f"training takes about {_duration(total_s)} on this machine ({', '.join(parts)}){remedy}"

    def describe_position(self) -> str:
        """The position, for a message."""
        if self.position.stage == len(self.plan.stages):
            return "all stages are trained"
        stage = self.plan.stages[self.position.stage]
        return f"stage {stage.name}, {self.position.iteration} of {stage.iterations} iterations done"

    def restore(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Set the position, the networks and the optimiser from a checkpoint."""
        self.position = position
        self.networks.load_state_dict(_part(tensors, "networks."))
        self.optimizer = self._optimizer()
        if self.optimizer is None:
            return
        parameters = self.optimizer.param_groups[0]["params"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            # The fused optimiser requires moments in the same memory layout as their parameter.
            moment = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
            state.setdefault(int(index), {})[key] = moment
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _tensors(self) -> dict[str, Tensor]:
        """The state to save: weights, and the optimiser's moments and step counts by parameter number."""
        tensors = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        state = {} if self.optimizer is None else self.optimizer.state_dict()["state"]
        for index, moments in state.items():
            tensors.update({f"optimizer.{index}.{key}": value for key, value in moments.items()})
        return tensors

    def _optimizer(self) -> torch.optim.Optimizer | None:
        stages = self.plan.stages
        return _optimizer(stages[min(self.position.stage, len(stages) - 1)], self.networks)


def _optimizer(stage: Stage, networks: nn.ModuleDict) -> torch.optim.Optimizer | None:
    """The optimiser of a stage's network; None if the stage has no iterations."""
    if stage.iterations == 0:
        return None
    parameters = networks[stage.trains].parameters()
    rate, decay = stage.learning_rate, stage.weight_decay
    if stage.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=stage.momentum, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


def learning_rate(stage: Stage, iteration: int) -> float:
    """The learning rate of an iteration, counted from 0: constant, or half a cosine from the stage's rate towards 0.

    A linear warm-up scales it in the stage's first ``warm_up`` iterations.
    """
    rate = stage.learning_rate * min(1.0, (iteration + 1) / stage.warm_up) if stage.warm_up else stage.learning_rate
    return rate if stage.schedule == "constant" else rate * 0.5 * (1 + math.cos(math.pi * iteration / stage.iterations))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{name}' cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set torch's number of threads to ``count`` inside the block; None: its choice, or the processors if fewer."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or min(before, available_processors()))
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Defer the first SIGINT or SIGTERM, and yield a function that says whether one was received.

    The current iteration can then finish, so that the state saved after it is consistent. A second signal raises
    KeyboardInterrupt at once.
    """
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    received = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    before: dict[signal.Signals, Any] = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def recorded_options(method: Method, options: TrainingOptions) -> dict[str, Any]:
    """The training options that a bundle's provenance records, apart from seed and device."""
    method_options = {name: value for name, value in method.model_dump().items() if value is not None}
    return {**method_options, "amp": options.amp}


def _manifest(method: Method, plan: TrainingPlan, dataset: Dataset, options: TrainingOptions) -> Manifest:
    return Manifest(
        method=method.name,
        variant=method.variant,
        network=plan.network,
        input=plan.input,
        score=plan.score,
        provenance=Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            data=dataset.name,
            data_digest=dataset.digest,
            seed=options.seed,
            budget=method.budget,
            device=options.device,
            versions={
                "adedge": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            options=recorded_options(method, options),
        ),
    )


def _weights(networks: nn.ModuleDict) -> bytes:
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in networks.state_dict().items()})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
