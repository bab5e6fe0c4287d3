"""`tokkit train-codec`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session
from tokkit.cli.training import described as described_plan
from tokkit.cli.training import of_codes

if TYPE_CHECKING:
    from tokkit.pipelines.train_codec_plan import TrainCodecPlan

EXAMPLES = examples(
    "tokkit train-codec speech/ --out codec/ --preset codec-tiny --max-minutes 5",
    "tokkit train-codec 'sounds/*.tar' --out codec/ --preset speech-16k-50hz-1book --steps 200000",
    "tokkit train-codec cuts.jsonl.gz --out codec/ --preset encodec-24k --set quantizer.codebooks=8 --batch-size 32",
    "tokkit train-codec 'hours/*.tar' --out codec/ --preset fsq-24k-50hz --stream --steps 200000",
    "tokkit train-codec calls/ --out codec/ --init-from encodec-24k/ --books 2 --books 8 --steps 20000",
    "tokkit train-codec speech/ --out codec/ --preset codec-tiny --max-minutes 5 --resume",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-codec", epilog=EXAMPLES)(train_codec)


def train_codec(
    inputs: Annotated[
        list[str], typer.Argument(help="Sound files, folders of them, or corpora with sounds; FORMAT:PATH names the format.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer: config.json, model.safetensors and metrics.jsonl.")],
    preset: Annotated[
        str | None,
        typer.Option(
            show_default="codec-tiny",
            help="Where the configuration starts from. For CPUs: codec-tiny, codec-fsq-tiny. For GPUs: speech-16k-50hz-1book "
            "and fsq-24k-50hz (1,500 tokens for 30 s), encodec-24k (75 frames a second of 32 codebooks).",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with options of this command; flags win over it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the preset, e.g. quantizer.codebooks=8.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(show_default="5000, unless --max-minutes", help="Updates; with --max-minutes at most so many.")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End after this time even if steps are left.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(show_default="4 for presets for CPUs, 16 with --init-from, else 64", help="Crops in a step."),
    ] = None,
    crop: Annotated[
        float | None, typer.Option(show_default="0.5 for presets for CPUs, else 1", help="Seconds of a crop.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="For inputs larger than memory: read and decode them while training.")
    ] = False,
    workers: Annotated[int | None, typer.Option(show_default="by device", help="Threads that decode, with --stream.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Go on from a tokenizer's folder or a released checkpoint, in place of a preset.")
    ] = None,
    books: Annotated[
        list[int] | None,
        typer.Option(
            show_default="powers of two up to all",
            help="Numbers of codebooks that batches go through, each to be a codec by itself; give it several times.",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(show_default="the preset's; 1e-4 with --init-from", help="Peak learning rate.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(show_default="0.05", help="Share of the run in which the learning rate rises.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(show_default="1", help="Parts of a batch that go through one after another (less memory).")
    ] = None,
    quantize_from: Annotated[
        float | None,
        typer.Option(show_default="0.1", help="Share of the run after which codebooks are set and quantization begins."),
    ] = None,
    time_weight: Annotated[float | None, typer.Option(show_default="0.1", help="Share of the samples' difference.")] = None,
    mel_weight: Annotated[float | None, typer.Option(show_default="1.0", help="Share of the mel spectrograms'.")] = None,
    gan_weight: Annotated[float | None, typer.Option(show_default="3.0", help="Share of the adversarial loss.")] = None,
    feature_weight: Annotated[
        float | None, typer.Option(show_default="3.0", help="Share of the discriminator's features.")
    ] = None,
    gan_start: Annotated[
        float | None,
        typer.Option(
            show_default="0.1; presets for CPUs, --init-from: 1",
            help="Share of the run after which the adversarial loss is on; 1 for never.",
        ),
    ] = None,
    gan_lead_in: Annotated[
        float | None, typer.Option(show_default="0.02", help="How long before that the discriminator learns alone.")
    ] = None,
    discriminator_lr: Annotated[
        float | None, typer.Option(show_default="that of the codec", help="The discriminator's peak learning rate.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(show_default="the preset's", help="Decay of the averaged weights; 0 for none.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default="a GPU where there is one", help="cpu or cuda; several GPUs: torchrun.")
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of weights, order and crops.")] = None,
    threads: Annotated[
        int | None, typer.Option(show_default="all cores or one, whichever is faster", help="Cores to use.")
    ] = None,
    val_fraction: Annotated[float | None, typer.Option(show_default="0.05", help="Share of sounds held out.")] = None,
    cache_mb: Annotated[int | None, typer.Option(show_default="2048", help="Memory for decoded sounds.")] = None,
    log_every: Annotated[int | None, typer.Option(show_default="20", help="Steps between two rows of metrics.jsonl.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(show_default="250", help="Steps between two checkpoints.")] = None,
    keep_last: Annotated[int | None, typer.Option(show_default="2", help="Checkpoints that are kept.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's files too (needs the package).")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained (parameters, tokens, memory, steps), and stop.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an audio tokenizer (encoder, codebooks, decoder) on the sounds of any inputs."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.settings import assignments, from_yaml, validated
        from tokkit.pipelines.train_codec import TrainCodecConfig
        from tokkit.pipelines.train_codec import train_codec as job

        options: dict[str, Any] = from_yaml(config) if config is not None else {}
        flags = {
            "inputs": inputs,
            "out": out,
            "preset": preset,
            "steps": steps,
            "max_minutes": max_minutes,
            "batch_size": batch_size,
            "crop": crop,
            "stream": stream or None,
            "workers": workers,
            "init_from": init_from,
            "books": books or None,
            "lr": lr,
            "warmup": warmup,
            "accumulate": accumulate,
            "quantize_from": quantize_from,
            "time_weight": time_weight,
            "mel_weight": mel_weight,
            "gan_weight": gan_weight,
            "feature_weight": feature_weight,
            "gan_start": gan_start,
            "gan_lead_in": gan_lead_in,
            "discriminator_lr": discriminator_lr,
            "ema": ema,
            "device": device,
            "seed": seed,
            "threads": threads,
            "val_fraction": val_fraction,
            "cache_mb": cache_mb,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "keep_last": keep_last,
            "tensorboard": tensorboard or None,
            "resume": resume or None,
        }
        options.update({key: value for key, value in flags.items() if value is not None})
        if set_:
            given = options.get("overrides", {})
            options["overrides"] = {**given, **assignments(set_)} if isinstance(given, dict) else given
        chosen = validated(TrainCodecConfig, str(config or "tokkit train-codec"), options)
        if dry_run:
            from tokkit.pipelines.train_codec_plan import plan_codec

            plan = plan_codec(chosen)
            if not run.emit(asdict(plan) | {"memory": plan.memory, "tokens_per_second": plan.tokens_per_second}):
                run.console.print(described(plan))
            return
        result = job(chosen, run.progress)
        if run.emit(asdict(result)):
            return
        held_out = ""
        if result.val_mel_distance is not None and result.mean_predictor is not None:
            held_out = (
                f", mel distance {result.val_mel_distance:.3f} on {result.held_out:,} held-out sounds "
                f"(a mean spectrum: {result.mean_predictor:.3f})"
            )
        by_book = ", ".join(f"{value:.0f}" for value in result.perplexity)
        run.console.print(
            f"{result.out}: {result.steps:,} steps on {result.sounds:,} sounds{held_out}, "
            f"perplexity of {result.codebook_size:,} codes by codebook: {by_book}"
        )


def described(plan: TrainCodecPlan) -> str:
    """A plan for a person."""
    sound = "mono" if plan.channels == 1 else "stereo"
    second = (
        f"a second       {plan.sample_rate:,} samples of {sound}, {plan.frame_rate:g} frames, "
        f"{plan.tokens_per_second:,.0f} tokens of {of_codes(plan)}"
    )
    return described_plan(plan, f"crops of {plan.crop:g} s", [second])
