"""`adedge build-engine`: compile a graph of the bundle into an engine, and compare the engine with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from adedge.bundle import Bundle
from adedge.cli import app, finite
from adedge.console import note, output, progress, warn
from adedge.errors import EngineError, UsageError
from adedge.escaping import command_line
from adedge.specs import EngineKey, Precision, Target

if TYPE_CHECKING:
    from adedge.runtime.engines import EngineRecord

HardwareCompatibility = Literal["ampere-plus", "same-compute-capability"]


@app.command("build-engine")
def build_engine_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with exported graphs.")],
    target: Annotated[
        Target,
        typer.Option(
            help="onnxruntime: any machine. tensorrt: this machine's GPU (for a Jetson, build on that Jetson). "
            "tensorrt-rtx: NVIDIA RTX cards, built ahead of time without a GPU."
        ),
    ],
    precision: Annotated[Precision, typer.Option(help="Precision of the graph to build from.")],
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN,OPT,MAX",
            help="Frames (or tiles) per batch.  [default: 1,1,1; 1,8,8 if frames are cut into tiles]",
        ),
    ] = None,
    max_auroc_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="Fail if the AUROC on the golden frames is lower than the model's by more than this.",
        ),
    ] = None,
    max_flips: Annotated[
        int | None,
        typer.Option(min=0, help="Fail if the verdict differs from the model's on more golden frames than this."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="tensorrt: workspace limit of the build.  [default: 1073741824]"),
    ] = None,
    opt_level: Annotated[
        int | None,
        typer.Option(help="tensorrt: optimization level, 0 to 5; higher levels build longer for a faster engine."),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="tensorrt: timing cache, read if the file exists, and updated.")
    ] = None,
    dla_core: Annotated[
        int | None, typer.Option(help="tensorrt: run on this DLA core; what it does not support runs on the GPU.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt: build a plan that later versions can load too.")
    ] = False,
    hardware_compatibility: Annotated[
        HardwareCompatibility | None,
        typer.Option(help="tensorrt: build a plan that runs on other GPUs too (not on a Jetson)."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="tensorrt-rtx: compute capabilities to build for, such as 8.6,8.9.  [default: all supported]",
        ),
    ] = None,
    tf32: Annotated[
        bool,
        typer.Option("--tf32", help="tensorrt, tensorrt-rtx: allow FP32 convolutions to round their inputs to TF32."),
    ] = False,
) -> None:
    """Build an engine, test it on the golden frames, and store the engine and the result in the bundle."""
    from adedge.export.build import Gates, build_engine
    from adedge.export.builders import BuildOptions
    from adedge.export.verify import one_sided_golden
    from adedge.runtime.engines import read_record

    options = BuildOptions(
        batch=None if batch is None else parse_batch(batch),
        workspace_bytes=workspace,
        dla_core=dla_core,
        opt_level=opt_level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        compute_capabilities=tuple(part.strip() for part in (compute_capability or "").split(",") if part.strip()),
        tf32=tf32,
    )
    requested = options.compute_capabilities
    gates = Gates(max_auroc_drop=max_auroc_drop, max_flips=max_flips)
    key = EngineKey(target, precision)
    with progress(f"build {key}") as step:
        bundle = build_engine(Bundle.open(path), key, options, gates, step)
    record = read_record(bundle, key)
    output.print(_table(bundle, record))
    for attempt in record.attempts:
        warn(f"an earlier attempt failed: {attempt}")
    if missing := [one for one in requested if one not in record.compute_capabilities]:
        raise EngineError(
            f"the engine was not built for compute capability {', '.join(missing)} (see above): it runs on GPUs of "
            f"{', '.join(record.compute_capabilities)} only"
        )
    if record.self_test is None:
        note(record.status)
    elif bundle.manifest.threshold(key) is None:
        note(f"no decision threshold for {key} yet: fit one with '{command_line('calibrate', path, 'PICTURES')}'")
    elif (warning := one_sided_golden(bundle)) is not None:
        warn(warning)


def parse_batch(text: str) -> tuple[int, int, int]:
    """'1,4,8' -> (1, 4, 8). Raises `UsageError`."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--batch {text}: give three numbers MIN,OPT,MAX, such as 1,4,8")
    smallest, optimal, largest = (int(part) for part in parts)
    return smallest, optimal, largest


def _table(bundle: Bundle, record: EngineRecord) -> Table:
    """The engine and its deviation from PyTorch, one fact per row."""
    table = Table("engine", str(record.key))
    test = record.self_test
    rows = {
        "file": f"{record.plan} ({bundle.manifest.files[record.plan].bytes / 1e6:.2f} MB)",
        "graph": record.graph,
        "built": f"{record.path}, {record.build_seconds:.1f} s, version {record.library_version}",
        "for": ", ".join(record.compute_capabilities) or record.machine,
        "batch": ", ".join(map(str, record.batch)),
        **({"layers": ", ".join(f"{count} {name}" for name, count in record.layers.items())} if record.layers else {}),
        "map error": f"{test.map_error:.2e}" if test else "not run here",
        "score error": f"{test.score_error:.2e}" if test else "not run here",
        "verdict flips": f"{test.flips} of {test.frames}" if test and test.flips is not None else "unknown",
        "AUROC change": f"{test.auroc_change:+.4f}" if test and test.auroc_change is not None else "unknown",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
