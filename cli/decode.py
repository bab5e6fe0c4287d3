"""`tokkit decode`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples("tokkit decode vq/ codes.npz --out pictures/")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("decode", epilog=EXAMPLES)(decode)


def decode(
    tokenizer: Annotated[Path, typer.Argument(help="Folder of the tokenizer that the codes were made with.")],
    codes: Annotated[Path, typer.Argument(help="File of codes from `tokkit encode`, or any .npy of [rows, columns].")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures (PNG) or sounds (WAV).")],
    batch_size: Annotated[int | None, typer.Option(show_default="16", help="Pictures in each call of the decoder.")] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn codes back into pictures or sounds."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.codec import DecodeConfig, decode_pictures
        from tokkit.pipelines.settings import validated
        from tokkit.tokenizers.audio import is_audio_tokenizer

        options = {"tokenizer": tokenizer, "codes": codes, "out": out, "batch_size": batch_size, "device": device}
        config = validated(DecodeConfig, "tokkit decode", options)
        if sound := is_audio_tokenizer(tokenizer):
            from tokkit.pipelines.sound_codec import decode_sounds

            result = decode_sounds(config, run.progress)
        else:
            result = decode_pictures(config, run.progress)
        if not run.emit(asdict(result)):
            run.console.print(f"{result.out}: {len(result.files):,} {'sounds' if sound else 'pictures'}", markup=False)
