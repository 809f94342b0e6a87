"""`adedge demo`: the whole workflow on a real photograph, with the commands that a user would type."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from adedge.cli import app
from adedge.console import console, note
from adedge.escaping import command_line

PRECISIONS = ("fp32", "fp16", "int8")


@app.command("demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed of crops, defects and training.")] = 0,
    frames: Annotated[int, typer.Option(help="Length of the video, in frames.")] = 240,
) -> None:
    """Run the whole workflow, from train to benchmark, on a photograph that comes with scikit-image.

    Takes about ten minutes on two CPU cores. If interrupted, run it again to continue; delete the output folder to
    start over.
    """
    from adedge.data.synthesis import DEMO, write_demo_dataset

    started = time.monotonic()
    data, bundle = output / "data", output / f"{DEMO.texture}.adedge"
    output.mkdir(parents=True, exist_ok=True)
    note(f"writing pictures of {DEMO.texture} to {data}", style="bold")
    write_demo_dataset(data, texture=DEMO.texture, seed=seed)
    if not (bundle / "bundle.json").is_file():
        _adedge("train", "oesdn", data, "-o", bundle, "--seed", seed, *DEMO.train_options)
    _adedge("export", bundle, "--with-scoring")
    _adedge("calibrate", bundle, data, "--false-alarm-rate", DEMO.false_alarm_rate)
    for precision in PRECISIONS:
        _adedge("build-engine", bundle, "--target", "onnxruntime", "--precision", precision)
    for precision in PRECISIONS:
        _adedge("build-engine", bundle, "--target", "tensorrt-rtx", "--precision", precision)
    _adedge("prove", bundle, data)
    source = f"synthetic:{DEMO.texture}?seed={seed}&frames={frames}"
    video, verdicts, rejects = (output / name for name in ("inspection.mp4", "verdicts.jsonl", "rejects"))
    for earlier in (video, verdicts):
        earlier.unlink(missing_ok=True)  # the run would keep them
    results = ("--video", video, "--jsonl", verdicts, "--rejects", rejects)
    _adedge("run", bundle, source, "--target", "onnxruntime", "--precision", "fp32", *results)
    _adedge("benchmark", bundle, "--data", data, "-o", output / "report")
    _adedge("inspect", bundle)
    note(f"done in {(time.monotonic() - started) / 60:.1f} minutes; look at:")
    for path in ("report/report.html", "report/heat-maps.pytorch-fp32.jpg", "inspection.mp4", "rejects"):
        note(f"  {output / path}")


def _adedge(*arguments: object) -> None:
    """Print and run one adedge command; a failure ends the demo with the same exit code."""
    words = [str(argument) for argument in arguments]
    console.print(f"[bold green]$[/bold green] [bold]{escape(command_line(*words))}[/bold]")
    result = subprocess.run([sys.executable, "-m", "adedge", *words])
    if result.returncode != 0:
        raise typer.Exit(result.returncode)
