"""`tokkit encode`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

if TYPE_CHECKING:
    from tokkit.pipelines.codec import EncodeResult
    from tokkit.pipelines.sound_codec import EncodeSoundsResult

EXAMPLES = examples(
    "tokkit encode vq/ photo.jpg --out photo.npy",
    "tokkit encode vq/ pictures/ --out codes.npz",
    "tokkit encode vq/ pictures/ --out codes.npz --resolution-policy native --max-area 512x512",
)
SHOWN = 10  # rejected files that are named


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("encode", epilog=EXAMPLES)(encode)


def encode(
    tokenizer: Annotated[Path, typer.Argument(help="Image or audio tokenizer folder.")],
    pictures: Annotated[Path, typer.Argument(metavar="INPUT", help="A picture or sound, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="File of codes: .npz (int32 arrays by file name), or .npy for one file.")],
    batch_size: Annotated[int | None, typer.Option(show_default="16", help="Files in each call of the encoder.")] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.")] = None,
    resolution_policy: Annotated[
        str | None, typer.Option(show_default="crop", help="Of pictures: crop, bucket or native, as in `tokkit shard`.")
    ] = None,
    buckets: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT,...", help="Sizes of --resolution-policy bucket.")
    ] = None,
    min_area: Annotated[
        str | None, typer.Option(help="With native: enlarge smaller pictures to this, pixels or WIDTHxHEIGHT.")
    ] = None,
    max_area: Annotated[str | None, typer.Option(help="With native: reduce larger pictures to this.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn pictures or sounds into codes; for corpora there is `tokkit shard`."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.codec import EncodeConfig, encode_pictures
        from tokkit.pipelines.settings import validated
        from tokkit.tokenizers.audio import is_audio_tokenizer

        options: dict[str, object] = {"tokenizer": tokenizer, "input": pictures, "out": out}
        options |= {"batch_size": batch_size, "device": device}
        options |= {"resolution_policy": resolution_policy, "buckets": buckets, "min_area": min_area, "max_area": max_area}
        config = validated(EncodeConfig, "tokkit encode", options)
        result: EncodeResult | EncodeSoundsResult
        if is_audio_tokenizer(tokenizer):
            from tokkit.pipelines.sound_codec import encode_sounds

            if config.resolution_policy != "crop":
                from tokkit.errors import UsageError

                raise UsageError(f"--resolution-policy is of pictures, and {tokenizer} encodes sounds")
            result = encode_sounds(config, run.progress)
            made = f"{result.sounds:,} sounds"
        else:
            result = encode_pictures(config, run.progress)
            made = f"{result.pictures:,} pictures"
        if run.emit(asdict(result)):
            return
        for unused in result.rejects[:SHOWN]:
            run.console.print(f"not encoded: {unused.file}: {unused.reason}: {unused.message}", markup=False)
        left = f", {len(result.rejects):,} not encoded" if result.rejects else ""
        left += f", {len(result.ignored):,} other files" if result.ignored else ""
        run.console.print(f"{result.out}: codes of {made}{left} (see {result.out}.json)", markup=False)
