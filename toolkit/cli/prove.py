"""`adedge prove`: compare the verdicts of the engines on this machine with those of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adedge.bundle import Bundle, open_bundle
from adedge.cli import app
from adedge.cli.options import Expect, RequireSignature
from adedge.cli.storage import check_folder, is_writable
from adedge.console import note, output, progress, warn
from adedge.errors import BundleError, EngineError, GateError, OutputError, reason
from adedge.escaping import command_line
from adedge.files import write_whole
from adedge.specs import Precision, Target

if TYPE_CHECKING:
    from adedge.export.proof import Proof


@app.command("prove")
def prove_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with the engines to compare.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Pictures to compare verdicts on, besides the golden frames: a folder, an MVTec AD layout (its test "
            "pictures) or a one-class set. They may be good or anomalous, labelled or not.",
        ),
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Compare only engines of this target.  [default: all]")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Compare only engines of this precision.  [default: all]")
    ] = None,
    max_flips: Annotated[
        int | None,
        typer.Option(min=0, help="Fail if an engine's verdict differs from the model's on more pictures than this."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: physical cores]")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the files of a one-class set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also write the result to this file, as one JSON object."),
    ] = None,
    store: Annotated[
        bool | None,
        typer.Option(
            help="Store the model's scores of DATA in the bundle, which removes its signature.  [default: unless the "
            "bundle is signed or cannot be written]"
        ),
    ] = None,
    require_signature: RequireSignature = None,
    expect: Expect = None,
) -> None:
    """Prove, on the machine that will inspect, that the engines give the same verdicts as the model.

    Runs the golden frames, and the pictures of DATA if given, through the code of 'adedge run', and counts flips:
    pictures whose verdict differs from the model's. If none of n pictures flips, the flip rate is at most 3/n (95%
    confidence), so give many. The model's scores of DATA are computed once, on a machine with PyTorch, and stored in
    the bundle unless it is signed: a device then needs the same pictures, but not PyTorch.

    Exits with 1 if an engine deviates from the model by more than its precision allows, if a gate fails, or if no
    engine runs on this machine.
    """
    from adedge.export.proof import pictures_with_scores, prove

    bundle = open_bundle(path, require_signature, expect)
    if file is not None:
        check_folder(file.parent, "the proof", OutputError)
    storing = _is_stored(bundle, store) if data is not None else False
    with progress("prove") as step:
        pictures = None
        if data is not None:
            from adedge.data.datasets import load_dataset, trained_on
            from adedge.data.folders import first_few

            dataset = load_dataset(data, root=root)
            for message in dataset.skipped:
                warn(message)
            samples = dataset.test or (*dataset.train, *dataset.calibration)
            if known := trained_on(samples, bundle.json("training.json")["pictures"]):
                warn(
                    f"the detector was trained on {len(known)} of these {len(samples)} pictures ({first_few(known)}): "
                    "they lie far below the threshold, where verdicts seldom differ; give others"
                )
            pictures, bundle = pictures_with_scores(bundle, samples, progress=step, store=storing)
        proofs = list(prove(bundle, pictures, target=target, precision=precision, threads=threads, progress=step))
    record = json.dumps({"bundle": str(path), "proofs": [proof.model_dump() for proof in proofs]}, indent=2)
    if as_json:
        output.print_json(record, ensure_ascii=True)
    elif proofs:
        output.print(_table(proofs))
    if file is not None:
        _write(file, record)
    problems: dict[str, list[str]] = {}
    for proof in proofs:
        if proof.problem is not None:
            problems.setdefault(proof.problem, []).append(proof.engine)
        elif proof.one_sided:
            warn(summary_of(proof))
        elif proof.flips is not None and proof.flip_rate is not None:
            note(summary_of(proof))
        else:
            calibrate = command_line("calibrate", path, "PICTURES")
            note(f"{proof.engine}: no verdicts to compare; fit its threshold with '{calibrate}'")
    for problem, engines in problems.items():
        warn(f"{', '.join(engines)}: {problem}")
    if pictures is not None and pictures.computed and not storing and store is None:
        if bundle.signature is not None:
            why, where = "it is signed", "where you can sign the bundle, with --store"
        else:
            why, where = "this user may not write it", "as a user who may write it"
        warn(
            f"the model's scores of {pictures.computed} pictures were not stored in {path}, because {why}: a device "
            f"without PyTorch requires them; to store them, repeat this {where}"
        )
    _judge(bundle, proofs, max_flips, explicit=target is not None or precision is not None)


def _is_stored(bundle: Bundle, store: bool | None) -> bool:
    """Whether to store scores in the bundle. Raises `BundleError` if ``store`` asks for it and it cannot be written."""
    writable = is_writable(bundle)
    if store and not writable:
        raise BundleError(f"{bundle.path} cannot be written by this user: leave --store out")
    return writable and bundle.signature is None if store is None else store


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text + "\n")
    except OSError as error:
        raise OutputError(
            f"the proof cannot be written to {file} ({reason(error)}): choose another place with -o"
        ) from error


def summary_of(proof: Proof) -> str:
    """One line on a proof whose flips were counted."""
    if proof.one_sided:
        verdict = "rejects" if proof.rejected else "accepts"
        missing = "good" if proof.rejected else "defective"
        return (
            f"{proof.engine} {verdict} all {proof.pictures} pictures, as the model does, which proves nothing: compare "
            f"them on {missing} pictures too; if there were some, run 'adedge calibrate' again and read its warnings"
        )
    agreeing = "all" if proof.flips == 0 else f"all but {proof.flips} of"
    return (
        f"{proof.engine} agrees with the model on {agreeing} {proof.pictures} pictures: "
        f"with 95% confidence, it differs on at most {proof.flip_rate:.2%} of such pictures"
    )


def _judge(bundle: Bundle, proofs: list[Proof], max_flips: int | None, *, explicit: bool) -> None:
    """Raise `EngineError` if no engine ran, `GateError` if one is not proved or exceeds ``max_flips``."""
    ran = [proof for proof in proofs if proof.golden is not None]
    if not ran:
        raise EngineError(
            f"no engine of {bundle.path} runs on this machine: run '{command_line('build-engine', bundle.path)}' first"
        )
    failed = [proof.engine for proof in proofs if proof.problem is not None and (proof.golden is not None or explicit)]
    if failed:
        raise GateError(f"not proved: {', '.join(failed)} (see above)")
    if max_flips is None:
        return
    for proof in ran:
        if proof.flips is None:
            raise GateError(
                f"--max-flips cannot be checked: {proof.engine} has no threshold; run 'adedge calibrate' first"
            )
        if proof.flips > max_flips:
            raise GateError(
                f"{proof.engine} differs from the model on {proof.flips} of {proof.pictures} pictures; --max-flips "
                f"allows {max_flips}"
            )


def _table(proofs: list[Proof]) -> Table:
    """Errors on the golden frames; flips on the given pictures, or else on the golden frames."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("engine", no_wrap=True)
    for column in ("map error", "score error", "flips", "flips at most"):
        table.add_column(column, justify="right")
    for proof in proofs:
        if proof.golden is None:
            table.add_row(proof.engine, "not run here", "–", "–", "–")
            continue
        table.add_row(
            proof.engine,
            f"{proof.golden.map_error:.2e}",
            f"{proof.golden.score_error:.2e}",
            "unknown" if proof.flips is None else f"{proof.flips} of {proof.pictures}",
            "–" if proof.flip_rate is None else f"{proof.flip_rate:.2%}",
        )
    return table
