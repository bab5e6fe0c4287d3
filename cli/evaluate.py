"""`tokkit eval`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit eval vq/ pairs/ --out eval/ --held-out 0.05",
    "tokkit eval vq/ pictures/ --out eval/ --compare chameleon/ --compare llamagen/ --resolution 256",
    "tokkit eval vq/ pictures/ --out eval/ --lpips-vgg vgg16.pth --lpips-heads vgg.pth --inception pt_inception-2015-12-05.pth",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    tokenizer: Annotated[Path, typer.Argument(help="Folder of an image tokenizer.")],
    inputs: Annotated[list[str], typer.Argument(help="Paths, globs or folders with pictures; FORMAT:PATH names the format.")],
    out: Annotated[Path, typer.Option(help="Folder for eval.json, eval.html and rejects.jsonl.")],
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another tokenizer, on the same pictures; may be repeated.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(show_default="each tokenizer's own", help="Side of the pictures in pixels.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take at most so many pictures.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Only the pictures that train-vq with this --val-fraction held out.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="8", help="Pictures at once.")] = None,
    lpips_vgg: Annotated[Path | None, typer.Option(help="VGG16 weights for LPIPS, with torchvision's names.")] = None,
    lpips_heads: Annotated[Path | None, typer.Option(help="Linear heads for LPIPS (vgg.pth, version 0.1).")] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception weights for rFID (pt_inception-2015-12-05).")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(show_default="the pictures themselves", help="Pictures to take rFID against; may be repeated."),
    ] = None,
    device: Annotated[str | None, typer.Option(show_default="cpu", help="Where networks run, e.g. cuda.")] = None,
    threads: Annotated[int | None, typer.Option(show_default="all cores", help="Cores to use.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure image tokenizers: PSNR, SSIM, LPIPS, rFID, use of the codebook; figures and a page with pictures."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.evaluate import EvaluateConfig
        from tokkit.pipelines.evaluate import evaluate as job
        from tokkit.pipelines.settings import validated

        options: dict[str, object] = {
            "tokenizers": (tokenizer, *(compare or ())),
            "inputs": inputs,
            "out": out,
            "resolution": resolution,
            "limit": limit,
            "held_out": held_out,
            "batch_size": batch_size,
            "lpips_vgg": lpips_vgg,
            "lpips_heads": lpips_heads,
            "inception": inception,
            "reference": reference,
            "device": device,
            "threads": threads,
        }
        result = job(validated(EvaluateConfig, "tokkit eval", options), run.progress)
        if run.emit(asdict(result)):
            return
        for scores in result.tokenizers:
            figures = [f"PSNR {scores.psnr.mean:.2f} dB"]
            figures += [f"SSIM {scores.ssim.mean:.4f}"] if scores.ssim else []
            figures += [f"LPIPS (vgg16) {scores.lpips.mean:.4f}"] if scores.lpips else []
            figures += [f"rFID {scores.rfid:.2f}"] if scores.rfid is not None else []
            book = scores.codebook
            size = f"{book.codebooks} x {book.size:,}" if book.codebooks > 1 else f"{book.size:,}"
            figures.append(f"{100 * book.usage:.1f} % of {size} codes used, perplexity {book.perplexity:,.0f}")
            run.console.print(f"{scores.label}: {', '.join(figures)}; {result.pictures:,} pictures of {scores.resolution} px")
        for missing in result.missing:
            run.console.print(f"{missing.metric} not measured: {missing.why}. {missing.provide}.")
        run.console.print(f"{result.out}/eval.html")
