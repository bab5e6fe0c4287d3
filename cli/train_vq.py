"""`tokkit train-vq`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session
from tokkit.cli.training import described as described_plan
from tokkit.cli.training import of_codes

if TYPE_CHECKING:
    from tokkit.pipelines.train_vq_plan import TrainVQPlan

EXAMPLES = examples(
    "tokkit train-vq pairs/ --out vq/ --preset fsq-tiny --max-minutes 5",
    "tokkit train-vq 'pairs/*.tar' --out vq/ --preset vq-tiny --resolution 64 --steps 2000 --set quantizer.codebook_size=4096",
    "tokkit train-vq pairs/ --out vq/ --resume",
    "tokkit train-vq 'scans/*.tar' --out vq/ --init-from vq_ds16_c2i.pt --steps 20000",
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
    lr: Annotated[
        float | None, typer.Option(show_default="the preset's; 1e-4 with --init-from", help="Peak learning rate.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(show_default="0.05", help="Share of the run in which the learning rate rises.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(show_default="1", help="Parts of a batch that go through one after another (less memory).")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="For inputs larger than memory: read and decode them while training.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(show_default="by device", help="Processes or threads that decode and crop.")
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Go on from a tokenizer's folder or a released checkpoint, in place of a preset.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            show_default="plain for CPU presets and --init-from, else gan",
            help="plain: reconstruction only. gan: L1, perceptual losses by path, a discriminator, averaged weights.",
        ),
    ] = None,
    loss: Annotated[str | None, typer.Option(show_default="the recipe's", help="Of the pixels: l1 or l2.")] = None,
    lpips_vgg: Annotated[Path | None, typer.Option(help="LPIPS: file of the VGG16 trunk.")] = None,
    lpips_heads: Annotated[Path | None, typer.Option(help="LPIPS: file of the linear heads.")] = None,
    lpips_weight: Annotated[float | None, typer.Option(show_default="1.0", help="Weight of LPIPS.")] = None,
    logit_model: Annotated[
        Path | None, typer.Option(help="Folder of a classifier (ResNet-50) whose logits are compared.")
    ] = None,
    logit_weight: Annotated[float | None, typer.Option(show_default="0.1", help="Weight of that comparison.")] = None,
    gan: Annotated[
        str | None, typer.Option(show_default="the recipe's", help="Discriminator: none, patch, blur or features.")
    ] = None,
    gan_model: Annotated[
        Path | None, typer.Option(help="Folder of the vision transformer (DINO, DINOv2) that --gan features looks through.")
    ] = None,
    gan_loss: Annotated[str | None, typer.Option(show_default="hinge", help="hinge or non-saturating.")] = None,
    gan_weight: Annotated[float | None, typer.Option(show_default="0.1", help="Weight of the adversarial loss.")] = None,
    gan_adaptive: Annotated[
        bool, typer.Option("--gan-adaptive", help="Times the ratio of the gradients at the last layer.")
    ] = False,
    gan_start: Annotated[
        float | None, typer.Option(show_default="0.1", help="Share of the run after which the adversarial loss is on.")
    ] = None,
    gan_lead_in: Annotated[
        float | None, typer.Option(show_default="0.02", help="How long before that the discriminator learns alone.")
    ] = None,
    lecam: Annotated[float | None, typer.Option(show_default="0.001", help="Weight of LeCam; 0 for none.")] = None,
    discriminator_lr: Annotated[
        float | None, typer.Option(show_default="that of the tokenizer", help="The discriminator's peak learning rate.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(show_default="the recipe's", help="Decay of the averaged weights; 0 for none.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default="a GPU where there is one", help="cpu or cuda; several GPUs: torchrun.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(show_default="bf16 on a GPU", help="Of the networks: float32 or bf16.")
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the networks (torch.compile).")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Gradient checkpointing: less memory, about a third more time.")
    ] = False,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of weights, order and augmentation.")] = None,
    threads: Annotated[
        int | None, typer.Option(show_default="all cores or one, whichever is faster", help="Cores to use.")
    ] = None,
    val_fraction: Annotated[float | None, typer.Option(show_default="0.05", help="Share of pictures held out.")] = None,
    cache_mb: Annotated[int | None, typer.Option(show_default="2048", help="Memory for decoded pictures.")] = None,
    log_every: Annotated[int | None, typer.Option(show_default="20", help="Steps between two rows of metrics.jsonl.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(show_default="250", help="Steps between two checkpoints.")] = None,
    keep_last: Annotated[int | None, typer.Option(show_default="2", help="Checkpoints that are kept.")] = None,
    best_by: Annotated[
        str | None,
        typer.Option(
            show_default="lpips where measured, else last with a discriminator, else psnr",
            help="What best/ goes by: psnr, ssim, lpips, or last (the newest validation).",
        ),
    ] = None,
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
            "warmup": warmup,
            "accumulate": accumulate,
            "stream": stream or None,
            "workers": workers,
            "init_from": init_from,
            "recipe": recipe,
            "loss": loss,
            "lpips_vgg": lpips_vgg,
            "lpips_heads": lpips_heads,
            "lpips_weight": lpips_weight,
            "logit_model": logit_model,
            "logit_weight": logit_weight,
            "gan": gan,
            "gan_model": gan_model,
            "gan_loss": gan_loss,
            "gan_weight": gan_weight,
            "gan_adaptive": gan_adaptive or None,
            "gan_start": gan_start,
            "gan_lead_in": gan_lead_in,
            "lecam": lecam,
            "discriminator_lr": discriminator_lr,
            "ema": ema,
            "device": device,
            "precision": precision,
            "compile": compile_ or None,
            "recompute": recompute or None,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
            "keep_last": keep_last,
            "best_by": best_by,
            "tensorboard": tensorboard or None,
        }
        options.update({key: value for key, value in flags.items() if value is not None})
        if set_:
            given = options.get("overrides", {})
            options["overrides"] = {**given, **assignments(set_)} if isinstance(given, dict) else given
        chosen = validated(TrainVQConfig, str(config or "tokkit train-vq"), options)
        if dry_run:
            from tokkit.pipelines.train_vq_plan import plan_vq

            plan = plan_vq(chosen)
            if not run.emit(asdict(plan) | {"memory": plan.memory}):
                run.console.print(described(plan))
            return
        result = job(chosen, run.progress)
        if run.emit(asdict(result)):
            return
        psnr = "" if result.val_psnr is None else f", {result.val_psnr:.2f} dB PSNR on {result.held_out:,} held-out pictures"
        run.console.print(
            f"{result.out}: {result.steps:,} steps on {result.pictures:,} pictures{psnr}, "
            f"{100 * result.codebook_usage:.1f} % of {result.codebook_size:,} codes in use"
        )


def described(plan: TrainVQPlan) -> str:
    """A plan for a person."""
    picture = f"a picture      {plan.size} x {plan.size} px, {plan.tokens:,} tokens of {of_codes(plan)}"
    return described_plan(plan, "pictures", [picture])
