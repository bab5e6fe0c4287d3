"""`tokkit eval`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, Session, examples, session

EXAMPLES = examples(
    "tokkit eval vq/ pairs/ --out eval/ --held-out 0.05",
    "tokkit eval vq/ pictures/ --out eval/ --compare chameleon/ --compare llamagen/ --resolution 256",
    "tokkit eval encodec-24k/ speech/ --out eval/ --books 2 --books 8",
    "tokkit eval vq/ pictures/ --out eval/ --lpips-vgg vgg16.pth --lpips-heads vgg.pth --inception pt_inception-2015-12-05.pth",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", epilog=EXAMPLES)(evaluate)


def evaluate(
    tokenizer: Annotated[Path, typer.Argument(help="Folder of an image or audio tokenizer.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Paths, globs or folders with pictures or sounds; FORMAT:PATH names the format.")
    ],
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
    books: Annotated[
        list[int] | None,
        typer.Option(show_default="all", help="Of audio tokenizers: codebooks to measure with; may be repeated."),
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
    """Measure tokenizers: of images PSNR, SSIM, LPIPS, rFID, of audio SI-SDR, mel distance, STOI, PESQ; use of the codebook."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.errors import UsageError
        from tokkit.pipelines.evaluate import EvaluateConfig
        from tokkit.pipelines.evaluate import evaluate as job
        from tokkit.pipelines.settings import validated
        from tokkit.tokenizers.audio import is_audio_tokenizer

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
        if is_audio_tokenizer(tokenizer):
            _evaluate_audio(run, options, books)
            return
        if books:
            raise UsageError("--books is for audio tokenizers")
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


def _evaluate_audio(run: Session, options: dict[str, object], books: list[int] | None) -> None:
    from tokkit.errors import UsageError
    from tokkit.pipelines.evaluate_audio import EvaluateAudioConfig, evaluate_audio
    from tokkit.pipelines.settings import validated

    taken = ("tokenizers", "inputs", "out", "limit", "device")
    others = [name for name, value in options.items() if value is not None and name not in taken]
    if others:
        raise UsageError(f"{', '.join('--' + name.replace('_', '-') for name in others)}: of image tokenizers only")
    given = {name: options[name] for name in taken} | {"books": tuple(books) if books else None}
    result = evaluate_audio(validated(EvaluateAudioConfig, "tokkit eval", given), run.progress)
    if run.emit(asdict(result)):
        return
    for scores in result.tokenizers:
        figures = [f"mel distance {scores.mel_distance:.4f}"]
        figures += [f"SI-SDR {scores.si_sdr:.2f} dB"] if scores.si_sdr is not None else []
        figures += [f"STOI {scores.stoi:.3f}"] if scores.stoi is not None else []
        figures += [f"PESQ {scores.pesq:.2f}"] if scores.pesq is not None else []
        figures.append(f"perplexity {', '.join(f'{value:,.1f}' for value in scores.perplexity[:8])}")
        told = f"{scores.codebooks} books, {scores.bits_per_second / 1000:.2f} kbit/s"
        run.console.print(f"{scores.label} ({told}): {'; '.join(figures)}; {result.clips:,} clips, {scores.seconds:,.1f} s")
    for name, way in result.missing.items():
        run.console.print(f"{name} not measured: {way}.")
    run.console.print(f"{result.out}/eval.html")
