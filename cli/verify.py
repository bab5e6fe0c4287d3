"""``tokkit verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

if TYPE_CHECKING:
    from rich.console import Console

    from tokkit.pipelines.findings import Agreement, VerifyResult

EXAMPLES = examples(
    "tokkit verify shards/",
    "tokkit verify shards/ --reencode 100",
    "tokkit verify shards/ --reencode 100 --input pairs=/mnt/new/pairs --image-tokenizer /mnt/new/vq",
    "tokkit verify shards/ --no-checksums --json",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", epilog=EXAMPLES)(verify)


def verify(
    directory: Annotated[str, typer.Argument(help="Output directory of `tokkit shard` or `tokkit features`, or its URL.")],
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where an output in an object store is downloaded to meanwhile.")
    ] = None,
    checksums: Annotated[bool, typer.Option(help="Read every byte and compare its SHA-256.")] = True,
    reencode: Annotated[
        int | None, typer.Option(metavar="N", help="Also encode N documents again from the input, and compare.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Chooses the documents of --reencode.", min=0)] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FOLDER", help="Where a source is now, if it was moved; repeat for more."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="STORE", help="Where the picture stores are now, if they were moved; all of them, in order."),
    ] = None,
    text_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    image_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    audio_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Of a feature cache, where it is now, if it was moved.")] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="MODULE:FUNCTION",
            help="A filter that the documents went through; needed for --reencode, all in order.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default="auto", help="For --reencode: auto (the run's kind), cpu, cuda or cuda:N.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that an output agrees with itself and, with --reencode, with its input; lists all problems (docs/verify.md)."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.errors import UsageError, VerificationError
        from tokkit.pipelines.output import folder_of
        from tokkit.pipelines.settings import validated
        from tokkit.pipelines.verify import VerifyConfig
        from tokkit.pipelines.verify import verify as job

        only = {
            "--seed": seed,
            "--input": inputs,
            "--images": images,
            "--text-tokenizer": text_tokenizer,
            "--image-tokenizer": image_tokenizer,
            "--audio-tokenizer": audio_tokenizer,
            "--encoder": encoder,
            "--filter": filters,
        }
        if reencode is None and (extra := [flag for flag, value in {**only, "--device": device}.items() if value]):
            raise UsageError(f"{', '.join(extra)}: only with --reencode N")
        options: dict[str, object] = {"checksums": checksums, "reencode": reencode, "seed": seed}
        options |= {"text_tokenizer": text_tokenizer, "image_tokenizer": image_tokenizer, "device": device}
        options |= {"audio_tokenizer": audio_tokenizer, "encoder": encoder}
        options["filters"] = None if filters is None else tuple(filters)
        options["inputs"] = None if inputs is None else tuple(inputs)
        options["images"] = None if images is None else tuple(images)
        with folder_of(directory, run.progress, scratch) as folder:
            result = job(validated(VerifyConfig, "tokkit verify", options | {"directory": folder}), run.progress)
        problems = "1 problem" if result.problem_count == 1 else f"{result.problem_count:,} problems"
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(result.counts.items()))
        entry = {"directory": str(directory), "ok": result.ok, "problem_count": result.problem_count, **asdict(result)}
        if not run.emit(entry):
            _show(run.console, result)
            if result.ok:
                run.console.print(f"{directory} agrees with itself", style="green")
        if not result.ok:
            if run.json:
                raise typer.Exit(VerificationError.exit_code)
            raise VerificationError(f"{directory}: {problems} found ({codes})")


def _show(console: Console, result: VerifyResult) -> None:
    from rich.text import Text

    from tokkit.pipelines.findings import ADVICE, Code

    if result.checked:
        console.print("checked")
    width = max((len(f"{count:,}") for count in result.checked.values()), default=0)
    for what, count in result.checked.items():
        console.print(f"  {count:>{width},}  {what}")
    if result.reencoded is not None:
        _show_agreement(console, result.reencoded)
    for line in result.skipped:
        console.print(Text(f"not looked at: {line}", style="yellow"))
    for code in Code:
        if code.value not in result.counts:
            continue
        shown, count = [p for p in result.problems if p.code == code], result.counts[code.value]
        console.print()
        console.print(Text.assemble((code.value, "bold red"), f"  {ADVICE[code].meaning}"))
        for problem in shown:
            console.print(Text(f"  - {problem}", style="red"))
        if count > len(shown):
            console.print(f"  ... and {count - len(shown):,} more")
        console.print(Text(f"  what to do: {ADVICE[code].remedy}"))
    console.print()


def _show_agreement(console: Console, agreement: Agreement) -> None:
    from rich.text import Text

    megabytes = f"{agreement.unit_bytes / 1e6:,.{0 if agreement.unit_bytes > 1e8 else 2}f} MB"
    said = (
        f"encoded again: {agreement.documents:,} documents out of {agreement.units_read:,} work units ({megabytes}), "
        f"{agreement.tokens:,} tokens"
    )
    if agreement.codes:
        what = "values of features" if agreement.of_features else "media codes"
        said += f"; {agreement.equal_codes:,} of {agreement.codes:,} {what} are equal"
    if agreement.of_features and agreement.lowest:
        said += f" (the most apart, by {agreement.lowest:.3%} of its size: {agreement.lowest_document})"
    elif agreement.codes and agreement.equal_codes < agreement.codes:
        said += f" ({agreement.share:.3%}; the least in {agreement.lowest_document}: {agreement.lowest:.3%})"
    console.print(Text(said))
    if agreement.differences:
        console.print(Text("the numeric environment is not the recorded one, so what is made of media may differ by rounding:"))
        for line in agreement.differences:
            console.print(Text(f"  - {line}"))
