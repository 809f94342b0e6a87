"""`adedge inspect`: what a bundle holds, where it comes from, and whether every file is intact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adedge.bundle import Bundle, open_bundle
from adedge.cli import app
from adedge.cli.options import Expect, RequireSignature
from adedge.console import output
from adedge.errors import BundleError, EngineError
from adedge.escaping import printable
from adedge.manifest import IMPORTED, Difference
from adedge.specs import ScoreSpec

if TYPE_CHECKING:
    from adedge.signing import Claim


@app.command("inspect")
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to inspect.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    require_signature: RequireSignature = None,
    expect: Expect = None,
) -> None:
    """Show what a bundle holds and verify the digest of every file in it.

    Exits with 1 and names every file that was changed, is missing, or is not listed in the bundle.
    """
    from adedge.signing import claim_of

    opened = open_bundle(bundle, require_signature, expect)
    problems = opened.verify()
    engines = _engines(opened, problems)
    signed = claim_of(opened)
    if as_json:
        record = opened.manifest.model_dump(mode="json")
        record.update(
            engines=engines,
            problems=problems,
            signature=None if signed is None else {**signed[0].model_dump(mode="json"), "key": signed[1]},
            signature_checked=require_signature is not None,
        )
        output.print_json(json.dumps(record), ensure_ascii=True)
    else:
        _show(opened, engines, signed, checked=require_signature is not None)
    if problems:
        raise BundleError("; ".join(problems))


def _engines(bundle: Bundle, problems: list[str]) -> dict[str, Any]:
    """The engine.json of every engine by folder name; adds a message to ``problems`` for each that is no record."""
    from adedge.runtime.engines import engine_folder, engines_in, read_record

    records = {}
    for key in engines_in(bundle):
        try:
            record = read_record(bundle, key)
            records[engine_folder(key).removeprefix("engines/")] = record.model_dump(mode="json")
        except EngineError as error:
            problems.append(str(error))
        except BundleError:  # its digest differs, which is among the problems already
            continue
    return records


def _backbone(options: Mapping[str, object]) -> str:
    """A readable description of the weights of a detector's backbone."""
    if options.get("weights") == "none":
        return "random features, not pretrained"
    licence = f" ({options['weights_licence']})" if options.get("weights_licence") else ""
    return f"weights {options.get('weights', 'unknown')}{licence}, sha256 {str(options['weights_digest'])[:16]}"


def _margin(score: ScoreSpec) -> str:
    """Which part of an anomaly map the score judges."""
    if score.reduce == "output":
        return "none: the network itself scores the whole picture"
    if score.margin == 0:
        return "none: the whole anomaly map is judged"
    return f"{score.margin} pixels at each border of the anomaly map are not judged; pictures show them hatched"


def _show(bundle: Bundle, engines: dict[str, Any], signed: tuple[Claim, str] | None, *, checked: bool) -> None:
    manifest = bundle.manifest
    spec, source = manifest.input, manifest.provenance
    size = sum(record.bytes for record in manifest.files.values())
    filters = " → ".join(f"{f.kind} {getattr(f, 'size', getattr(f, 'sigma', ''))}" for f in manifest.score.filters)

    data = printable(source.data)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("bundle", f"{printable(str(bundle.path))}  ({len(manifest.files)} files, {size / 1e6:.1f} MB)")
    facts.add_row("method", f"{manifest.method}, variant {manifest.variant}")
    facts.add_row("input", f"{spec.width} × {spec.height} × {spec.channels} {spec.color}, {spec.resize}")
    comparison = manifest.score.comparison
    window = f" {comparison.window} × {comparison.window}" if comparison.kind == "dssim" else ""
    facts.add_row(
        "score",
        " → ".join(part for part in (comparison.kind + window, filters, manifest.score.reduce) if part),
    )
    facts.add_row("margin", _margin(manifest.score))
    if manifest.method == IMPORTED:
        facts.add_row("imported from", f"{data}, {source.created}")
    else:
        facts.add_row("trained on", f"{data}, seed {source.seed}, budget {source.budget}, {source.created}")
    if source.options.get("weights") == "none" or source.options.get("weights_digest"):
        facts.add_row("backbone", _backbone(source.options))
    facts.add_row("data digest", source.data_digest)
    facts.add_row("versions", ", ".join(f"{k} {v}" for k, v in sorted(source.versions.items())))
    facts.add_row("signed", "no" if signed is None else _signature(*signed, checked=checked))
    output.print(facts)

    if manifest.graphs:
        table = _table("graph", "opset", "map error", "score error", "flips", "ΔAUROC")
        for name, graph in sorted(manifest.graphs.items()):
            table.add_row(name, str(graph.opset), *_difference(graph.difference))
        output.print(table)
    if engines:
        table = _table("engine", "library", "map error", "score error", "flips", "ΔAUROC")
        for name, record in sorted(engines.items()):
            test = record.get("self_test")
            difference = Difference.model_validate(test) if test else None
            table.add_row(
                name,
                str(record.get("library_version", "")),
                *_difference(difference),
            )
        output.print(table)
    if manifest.thresholds:
        table = _table("threshold of", "value", "false alarms at most", "good pictures")
        for name, threshold in sorted(manifest.thresholds.items()):
            table.add_row(name, f"{threshold.value:.6g}", f"{threshold.false_alarm_rate:.2%}", str(threshold.pictures))
        output.print(table)


def _signature(claim: Claim, key: str, *, checked: bool) -> str:
    until = "" if claim.expires is None else f", until {claim.expires}"
    state = "verified" if checked else "not verified: add --require-signature KEY.pub"
    return (
        f"as version {claim.version} of '{claim.product}' on {claim.signed:%Y-%m-%d}{until}, key {key[:16]} ({state})"
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _difference(difference: Difference | None) -> tuple[str, str, str, str]:
    if difference is None:
        return "–", "–", "–", "–"
    flips = "–" if difference.flips is None else f"{difference.flips} of {difference.frames}"
    change = "–" if difference.auroc_change is None else f"{difference.auroc_change:+.4f}"
    return f"{difference.map_error:.2e}", f"{difference.score_error:.2e}", flips, change
