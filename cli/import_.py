"""`tokkit import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit import vqgan.ckpt --yaml vqgan.yaml --out chameleon/",
    "tokkit import vq_ds16_c2i.pt --out llamagen/ --size 384",
    "tokkit import logs/run/checkpoints/last.ckpt --layout taming --out vqgan/",
    "tokkit import janus-folder/ --layout janus --out janus-vq/",
    "tokkit import encodec_24khz-d7cc33bc.th --out encodec-24k/",
    "tokkit import encodec_48khz-folder/ --out encodec-48k/",
    "tokkit import facebook/encodec_24khz --allow-download --out encodec-24k/",
)


LAYOUT_HELP = "auto; taming, chameleon, chameleon-hf, llamagen, janus for pictures; encodec, encodec-hf, audiocraft for sound."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import", epilog=EXAMPLES)(import_)


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="File as released, the folder of a Hugging Face model, or its name on the hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tokenizer: config.json, model.safetensors and import.json.")],
    layout: Annotated[
        str | None,
        typer.Option(
            show_default="auto",
            help=LAYOUT_HELP,
        ),
    ] = None,
    yaml: Annotated[
        Path | None,
        typer.Option(show_default="one beside the checkpoint", help="Configuration file to hold the weights against."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(show_default="state_dict or model", help="Entry of the file to take, e.g. ema.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(show_default="the yaml's or the layout's", help="Side in pixels that pictures are brought to."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the tokenizer; by default by its layout.")] = None,
    licence: Annotated[
        str | None, typer.Option(show_default="of the layout's released weights", help="Licence of these weights.")
    ] = None,
    unsafe_pickle: Annotated[
        bool, typer.Option("--unsafe-pickle", help="Read a file that holds more than weights; runs whatever code it asks for.")
    ] = False,
    allow_download: Annotated[bool, typer.Option("--allow-download", help="Fetch a model that is named on the hub.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a tokenizer of a released checkpoint (taming, Chameleon, LlamaGen, Janus, EnCodec), with the same codes."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.import_audio import import_audio, is_audio
        from tokkit.pipelines.import_tokenizer import ImportConfig, import_tokenizer
        from tokkit.pipelines.settings import validated

        options = {
            "checkpoint": checkpoint,
            "out": out,
            "layout": layout,
            "yaml": yaml,
            "weights": weights,
            "size": size,
            "name": name,
            "licence": licence,
            "unsafe_pickle": unsafe_pickle,
            "allow_download": allow_download,
        }
        config = validated(ImportConfig, "tokkit import", options)
        if is_audio(config):
            sound = import_audio(config, run.progress)
            if not run.emit(asdict(sound)):
                run.console.print(
                    f"{sound.out}: {sound.name}, {sound.parameters / 1e6:.2f} M parameters, {sound.sample_rate:,} Hz, "
                    f"{'stereo' if sound.channels == 2 else 'mono'}, {sound.frame_rate:g} frames a second of "
                    f"{sound.codebooks} x {sound.codebook_size:,} codes"
                )
                run.console.print(f"licence: {sound.licence or 'not known; say --licence'}", markup=False)
            return
        result = import_tokenizer(config, run.progress)
        if run.emit(asdict(result)):
            return
        rows, columns = result.grid
        run.console.print(
            f"{result.out}: {result.name}, {result.parameters / 1e6:.2f} M parameters, "
            f"{result.config['quantizer']['codebook_size']:,} codes, {rows}x{columns} of them for a picture of "
            f"{result.config['preprocessing']['size']} px{'' if result.has_decoder else '; no decoder'}"
        )
        run.console.print(f"licence: {result.licence}", markup=False)
