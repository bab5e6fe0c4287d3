"""`tokkit bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit bench encode vq/ 'corpus/*.tar'",
    "tokkit bench encode vq/ --device cuda --precision fp16 --batch-size 64",
)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(name="bench", help="Measure what this machine does.", no_args_is_help=True)
    group.command("encode", epilog=EXAMPLES)(encode)
    app.add_typer(group)


def encode(
    tokenizer: Annotated[Path, typer.Argument(help="Image tokenizer folder.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[INPUT]...", help="Pictures to decode; without any, some are drawn.")
    ] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(show_default="fp32", help="fp32, tf32 or fp16.")] = None,
    acceleration: Annotated[str | None, typer.Option(show_default="none", help="none, compile or graphs.")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="16", help="Pictures in each call of the encoder.")] = None,
    size: Annotated[int | None, typer.Option(show_default="the tokenizer's", help="Side of the pictures.")] = None,
    seconds: Annotated[float | None, typer.Option(show_default="3", help="For which each stage is measured.")] = None,
    cores: Annotated[int | None, typer.Option(show_default="all", help="That would decode.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """How many pictures a second become codes, what share of the device's peak that is, and which stage sets the pace."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.bench_encode import BenchEncodeConfig, bench_encode
        from tokkit.pipelines.settings import validated

        options = {
            "tokenizer": tokenizer,
            "inputs": inputs,
            "device": device,
            "precision": precision,
            "acceleration": acceleration,
            "batch_size": batch_size,
            "size": size,
            "seconds": seconds,
            "cores": cores,
        }
        found = bench_encode(validated(BenchEncodeConfig, "tokkit bench encode", options), run.progress)
        if run.emit(asdict(found)):
            return
        mode = found.precision + ("" if found.acceleration == "none" else f", {found.acceleration}")
        memory = "" if found.memory_mb is None else f", {found.memory_mb:,.0f} MB at most"
        lines = [
            f"{found.device}, {mode}, {found.size} px, batches of {found.batch_size}{memory}",
            f"  decode   {found.decode * found.cores:10,.1f} pictures/s on {found.cores} cores ({found.decode:,.1f} on one)",
            f"  network  {found.network:10,.1f} pictures/s: {found.gflop:,.1f} GFLOP each, {found.share:.0%} of "
            f"{found.peak:,.2f} TFLOP/s measured",
            f"  copied   {found.copied:10,.1f} pictures/s from memory to codes",
            f"  one      {found.one:10,.1f} pictures/s one at a time in fp32",
        ]
        if found.agreement is not None:
            lines.append(f"  {found.agreement:.2%} of fp32's codes are kept")
        lines.append(f"bound by {found.bound_by}: {found.rate:,.1f} pictures/s")
        run.console.print("\n".join(lines), markup=False)
