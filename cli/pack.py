"""`tokkit pack`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples("tokkit pack shards/ --seq-len 4096", "tokkit pack shards/ --seq-len 8192 --name long --materialize")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pack", epilog=EXAMPLES)(pack)


def pack(
    directory: Annotated[Path, typer.Argument(help="Output directory of `tokkit shard`.")],
    seq_len: Annotated[int, typer.Option(help="Tokens in a row.")],
    name: Annotated[str | None, typer.Option(help="Name of the plan under packs/; default by its settings.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            show_default="overlong", help="Documents longer than a row: never (left out) or overlong (cut at span edges)."
        ),
    ] = None,
    materialize: Annotated[bool, typer.Option("--materialize", help="Also write the rows themselves.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Plan packed sequences: exact best-fit-decreasing, pictures never cut. Costs no encoding; make as many as you like."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_packs
        from tokkit.pipelines.pack import PackConfig
        from tokkit.pipelines.pack import pack as job
        from tokkit.pipelines.settings import validated

        options = {
            "directory": directory,
            "seq_len": seq_len,
            "name": name,
            "split_policy": split,
            "materialize": materialize,
        }
        result = job(validated(PackConfig, "tokkit pack", options), run.progress)
        if not run.emit({"directory": str(directory), **asdict(result)}):
            show_packs(run.console, result.splits)
