"""`adedge benchmark`: latency at three boundaries against accuracy per precision, as one report."""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from adedge.bundle import IMPORTED, Bundle
from adedge.cli import app
from adedge.cli.options import RequireSignature, open_bundle
from adedge.console import note, output, progress, warn
from adedge.errors import AdedgeError, DataError, EngineError
from adedge.specs import TARGETS, Precision, Target, parse_precisions

if TYPE_CHECKING:
    from adedge.benchmarks.latency import Contender
    from adedge.benchmarks.report import Report


@app.command("benchmark")
def benchmark(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose engines are measured.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled pictures (as for train); without them only latency is measured.")
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Only engines of this target.  [default: all]")] = None,
    precision: Annotated[str, typer.Option(help="Only engines of these precisions.")] = "fp32,fp16,int8",
    frames: Annotated[int, typer.Option(min=20, help="Frames for the latency of each engine.")] = 200,
    batch: Annotated[
        int, typer.Option(min=1, help="Frames at once: more throughput, and each waits for the last of its batch.")
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: physical cores]")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a one-class set's files.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report.  [default: reports/ in the bundle]")
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            help="Also run PyTorch on the pictures (of an imported model: ONNX Runtime): the reference that flips are "
            "counted against."
        ),
    ] = True,
    require_signature: RequireSignature = None,
) -> None:
    """Measure every engine of a bundle that runs on this machine, and write report.json, report.md and report.html."""
    opened = open_bundle(bundle, require_signature)
    # What the end needs is asked for before minutes of measuring.
    from adedge.benchmarks.plots import require_matplotlib

    require_matplotlib()
    if reference and data is not None and opened.manifest.method != IMPORTED:
        from adedge.methods import require_torch

        require_torch()
    engines, notes = _engines(opened, target, set(parse_precisions(precision)), threads)
    try:
        report, sheets = _measure(opened, engines, notes, data, root, frames, batch, threads, reference)
    finally:
        for engine in engines:
            engine.backend.close()
    from adedge.benchmarks.report import headline, markdown, page

    files = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": markdown(report),
        "report.html": page(report, sheets),
    }
    if folder is None:
        with opened.edit() as draft:
            for name, text in files.items():
                draft.write(f"reports/{name}", text)
        folder = bundle / "reports"
    else:
        pictures = {f"heat-maps.{name.replace('/', '-')}.jpg": sheet for name, sheet in sheets.items()}
        _write(folder, {**{name: text.encode() for name, text in files.items()}, **pictures})
    _print(report)
    note(headline(report))
    note(f"wrote {folder / 'report.html'}, report.md and report.json")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write or replace files, each whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            staging = folder / f".{name}.part"
            staging.write_bytes(data)
            staging.replace(folder / name)
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder} ({error}): choose another place with -o") from error


def _engines(
    bundle: Bundle, target: Target | None, precisions: set[str], threads: int | None
) -> tuple[list[Contender], list[str]]:
    """The engines that run here, with a sentence on those that do not."""
    from adedge.benchmarks.latency import Contender
    from adedge.runtime.engines import engines_in, load_engine

    found, absent = [], dict[str, list[str]]()
    for where, how in engines_in(bundle):
        if how not in precisions or (target is not None and where != target):
            continue
        name = f"{where}/{how}"
        try:
            backend = load_engine(bundle, where, how, threads=threads)
        except AdedgeError as error:
            absent.setdefault(str(error), []).append(name)
            continue
        threshold = bundle.manifest.thresholds.get(name)
        found.append(Contender(name=name, backend=backend, threshold=threshold.value if threshold else None))
    notes = [f"Not measured: {', '.join(names)}: {error}" for error, names in absent.items()]
    if not found:
        why = " ".join(notes) or f"run 'adedge build-engine {bundle.path} --target {target or TARGETS[0]}' first"
        raise EngineError(f"{bundle.path} has no engine to measure here: {why}")
    return found, notes


def _measure(
    bundle: Bundle,
    engines: list[Contender],
    notes: list[str],
    data: str | None,
    root: Path | None,
    frames: int,
    batch: int,
    threads: int | None,
    reference: bool,
) -> tuple[Report, dict[str, bytes]]:
    """The report, and a sheet of heat maps (JPEG) for each contender."""
    from adedge.benchmarks.accuracy import accuracy, masks_at_map_size, score_samples
    from adedge.benchmarks.latency import Contender, measure_latency
    from adedge.benchmarks.machine import has_int8_instructions, machine_facts
    from adedge.benchmarks.report import Report, heat_maps, telling_pictures
    from adedge.data.datasets import load_dataset
    from adedge.export.verify import read_golden
    from adedge.runtime.backends.onnxruntime import physical_cores
    from adedge.runtime.engines import read_record

    manifest = bundle.manifest
    dataset = None if data is None else load_dataset(data, root=root)
    samples = [] if dataset is None else [sample for sample in dataset.test if sample.label >= 0]
    labelled = len({sample.label for sample in samples}) == 2
    if dataset is not None and not labelled:
        warn(f"{dataset.name} has no good and anomalous test pictures: only latency is measured")
    if samples:
        images = [sample.read() for sample in samples[:: max(1, len(samples) // 50)]]
    else:
        images = [frame[:, :, ::-1] if manifest.input.color == "rgb" else frame for frame in read_golden(bundle).frames]
    with progress("latency") as step:
        latency = measure_latency(
            engines, images, manifest.input, manifest.score, frames=frames, batch=batch, progress=step
        )
    found, sheets = {}, {}
    if labelled:
        import numpy as np

        scored = {}
        contenders = list(engines)
        if reference and manifest.reference not in {engine.name for engine in engines}:
            from adedge.export.calibrate import reference_backend

            threshold = manifest.thresholds.get(manifest.reference)
            value = threshold.value if threshold else None
            backend = reference_backend(bundle)
            contenders.insert(0, Contender(name=manifest.reference, backend=backend, threshold=value))
        with progress("accuracy") as step:
            for contender in contenders:
                scored[contender.name] = score_samples(contender, samples, manifest.input, manifest.score, step)
        labels = np.array([sample.label for sample in samples])
        masks = masks_at_map_size(samples, scored[contenders[0].name].maps)
        if masks is None:
            notes.append("No pixel metrics: some anomalous pictures have no mask, or pictures differ in size.")
        found = {name: accuracy(one, labels, masks, scored.get(manifest.reference)) for name, one in scored.items()}
        # The same pictures for all, so that their maps can be compared.
        shown = telling_pictures(samples, scored[contenders[0].name], [one.verdicts for one in scored.values()])
        sheets = {
            contender.name: heat_maps(samples, scored[contender.name], shown, contender.threshold)
            for contender in contenders
        }
    if manifest.provenance.options.get("weights") == "none":
        notes.append("The backbone has random features (--weights none): expect more of one trained on ImageNet.")
    notes += _remarks({name: one.frame.p50 for name, one in latency.items()}, has_int8_instructions())
    report = Report(
        bundle=bundle.path.name,
        command=shlex.join(["adedge", *sys.argv[1:]]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        data=data,
        data_digest=None if dataset is None else dataset.digest,
        threads=threads or physical_cores(),
        input=manifest.input.shape,
        resident_mib=_resident_mib(),
        machine=machine_facts(),
        latency=latency,
        accuracy=found,
        reference=manifest.reference,
        engines={engine.name: read_record(bundle, *_parts(engine.name)) for engine in engines},
        notes=tuple(notes),
    )
    return report, sheets


def _parts(name: str) -> tuple[Target, Precision]:
    target, precision = name.split("/")
    return cast(Target, target), cast(Precision, precision)


def _remarks(frame_ms: dict[str, float], int8_instructions: bool) -> list[str]:
    """What a reader of the table must know so as not to draw the wrong conclusion."""
    remarks = []
    if "onnxruntime/fp16" in frame_ms:
        remarks.append("ONNX Runtime on a CPU computes FP16 graphs in FP32, with weights rounded to FP16.")
    fp32, int8 = frame_ms.get("onnxruntime/fp32"), frame_ms.get("onnxruntime/int8")
    if fp32 and int8 and int8 > fp32:
        why = (
            "although this processor has INT8 instructions"
            if int8_instructions
            else "on a processor without INT8 instructions"
        )
        remarks.append(
            f"INT8 takes {int8 / fp32:.2f} times as long as FP32 here, {why}; on a GPU it is another matter."
        )
    return remarks


def _resident_mib() -> float:
    import os

    with closing(Path("/proc/self/statm").open(encoding="ascii")) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _print(report: Report) -> None:
    from rich.table import Table

    from adedge.benchmarks.report import summary

    table = Table(box=None, header_style="bold", padding=(0, 2))
    for column in ("engine", "frame p50 in ms", "AUROC", "AUPRO", "flips"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, cells in summary(report).items():
        table.add_row(name, *cells)
    output.print(table)
    for remark in report.notes:
        note(remark, style="dim")
