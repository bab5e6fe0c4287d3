"""`tokkit demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples("tokkit demo", "tokkit demo --out look/ --train-seconds 20")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", epilog=EXAMPLES)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo-out"),
    train_seconds: Annotated[
        float | None, typer.Option(show_default="70.0", help="Time to train the image and the audio tokenizer.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes for sharding; default one a core.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go the whole way on a small corpus drawn on the spot: train tokenizers, shard, pack, verify, look."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_manifest, show_packs, show_summary, show_trained
        from tokkit.pipelines.demo import DemoConfig
        from tokkit.pipelines.demo import demo as job
        from tokkit.pipelines.settings import validated

        options = {"out": out, "train_seconds": train_seconds, "workers": workers}
        result = job(validated(DemoConfig, "tokkit demo", options), run.progress)
        if run.emit(
            {
                "seconds": result.seconds,
                "train_text": asdict(result.text),
                "train_vq": asdict(result.vq),
                "train_codec": None if result.codec is None else asdict(result.codec),
                "no_sound": result.no_sound,
                "verified": asdict(result.verified),
                "summary": result.shards.summary,
                "packs": {name: asdict(split) for name, split in result.shards.packs.items()},
                "manifest": result.shards.manifest.model_dump(mode="json"),
                "report": str(result.report),
                "look": {modality: str(folder) for modality, folder in result.look.items()},
            }
        ):
            return
        show_trained(run.console, result)
        show_manifest(run.console, result.shards.manifest)
        show_packs(run.console, result.shards.packs)
        show_summary(run.console, result.shards.summary)
        checked = ", ".join(f"{count:,} {what}" for what, count in result.verified.checked.items())
        run.console.print(f"\nverified: {checked}")
        if result.no_sound:
            run.console.print(f"warning: the demo went without sound: {result.no_sound}", style="yellow")
        if result.codec is not None:
            heard = Path(result.codec.out) / "samples"
            run.console.print(f"listen to sounds that the audio tokenizer never saw, and to what came back: {heard}")
        folders = " and ".join(str(folder) for folder in result.look.values())
        run.console.print(f"documents decoded back from their tokens, as files: {folders}")
        run.console.print(f"and as a page: {result.report}", style="bold")
