"""`tokkit train-vq`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit train-vq pairs/ --out vq/ --preset fsq-tiny --max-minutes 5",
    "tokkit train-vq 'pairs/*.tar' --out vq/ --preset vq-tiny --resolution 64 --steps 2000 --set quantizer.codebook_size=4096",
    "tokkit train-vq pairs/ --out vq/ --resume",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-vq", epilog=EXAMPLES)(train_vq)


def train_vq(
    inputs: Annotated[
        list[str], typer.Argument(help="Paths, globs, folders or URLs of pictures; FORMAT:PATH names the format.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer: config.json, model.safetensors and metrics.jsonl.")],
    preset: Annotated[
        str | None,
        typer.Option(
            show_default="fsq-tiny",
            help="Where the configuration starts from. For CPUs: fsq-tiny, vq-tiny, simvq-tiny, lfq-tiny, residual-vq-tiny, "
            "residual-fsq-tiny. For GPUs: vq-f16-16k, vq-f8-16k, chameleon-512, f8-256, fsq-f16-64k, fsq-f16-15k, "
            "vqganplus-f16-4k.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with options of this command; flags win over it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the preset, e.g. quantizer.levels=[8,5,5,5].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(show_default="5000, unless --max-minutes", help="Updates; with --max-minutes at most so many.")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End after this time even if steps are left.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="8", help="Pictures in a step.")] = None,
    lr: Annotated[float | None, typer.Option(show_default="the preset's", help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of weights, order and augmentation.")] = None,
    threads: Annotated[
        int | None, typer.Option(show_default="all cores or one, whichever is faster", help="Cores to use.")
    ] = None,
    val_fraction: Annotated[float | None, typer.Option(show_default="0.05", help="Share of pictures held out.")] = None,
    cache_mb: Annotated[int | None, typer.Option(show_default="2048", help="Memory for decoded pictures.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an image tokenizer (encoder, quantizer, decoder) on the pictures of any inputs."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.settings import assignments, from_yaml, validated
        from tokkit.pipelines.train_vq import TrainVQConfig
        from tokkit.pipelines.train_vq import train_vq as job

        options: dict[str, Any] = from_yaml(config) if config is not None else {}
        flags = {
            "inputs": inputs,
            "out": out,
            "preset": preset,
            "steps": steps,
            "max_minutes": max_minutes,
            "resolution": resolution,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "threads": threads,
            "val_fraction": val_fraction,
            "cache_mb": cache_mb,
            "resume": resume or None,
        }
        options.update({key: value for key, value in flags.items() if value is not None})
        if set_:
            given = options.get("overrides", {})
            options["overrides"] = {**given, **assignments(set_)} if isinstance(given, dict) else given
        result = job(validated(TrainVQConfig, str(config or "tokkit train-vq"), options), run.progress)
        if run.emit(asdict(result)):
            return
        psnr = "" if result.val_psnr is None else f", {result.val_psnr:.2f} dB PSNR on {result.held_out:,} held-out pictures"
        run.console.print(
            f"{result.out}: {result.steps:,} steps on {result.pictures:,} pictures{psnr}, "
            f"{100 * result.codebook_usage:.1f} % of {result.codebook_size:,} codes in use"
        )
