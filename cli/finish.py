"""`tokkit finish`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --shard-index $SLURM_ARRAY_TASK_ID --shard-count 16",
    "tokkit finish shards/",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("finish", epilog=EXAMPLES)(finish)


def finish(
    directory: Annotated[str, typer.Argument(help="Output directory whose units are all committed, or its URL.")],
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to work on this disk for an output in an object store.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bring a run in parts (--shard-index of tokkit shard or features) to its end: shards, manifest, report."""
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_features, show_manifest, show_packs, show_warnings
        from tokkit.object_store import place_of
        from tokkit.pipelines.features import FeaturesResult
        from tokkit.pipelines.finish_run import FinishConfig
        from tokkit.pipelines.finish_run import finish as job
        from tokkit.pipelines.lacking import warnings_of

        result = job(FinishConfig(directory=place_of(directory), scratch=scratch), run.progress)
        entry = {"out": str(result.out), "manifest": result.manifest.model_dump(mode="json")}
        entry |= {"warnings": warnings_of(result.manifest)}
        if isinstance(result, FeaturesResult):
            if not run.emit(entry):
                show_features(run.console, result.manifest)
                show_warnings(run.console, result.manifest)
            return
        if run.emit(entry | {"packs": {name: asdict(split) for name, split in result.packs.items()}}):
            return
        show_manifest(run.console, result.manifest)
        show_packs(run.console, result.packs)
        show_warnings(run.console, result.manifest)
        run.console.print(f"\n{result.out}/report.html shows documents decoded back from their tokens")
