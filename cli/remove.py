"""`tokkit remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit remove shards/ --list takedown.txt --out shards-v2/",
    "tokkit remove shards/ --list requests.csv --column page_url --field url --field page --out shards-v2/ --originals",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("remove", epilog=EXAMPLES)(remove)


def remove(
    directory: Annotated[Path, typer.Argument(help="A finished output of tokkit shard or tokkit features; it is not changed.")],
    lists: Annotated[
        list[Path],
        typer.Option(
            "--list",
            help="Names of documents, one a line, or a .csv, .tsv, .jsonl or .parquet with a column id, url, locator or hash; "
            "repeat for more.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Where the new version goes; an unfinished one of the same removal is gone on with.")
    ],
    column: Annotated[str | None, typer.Option(help="Of lists that are tables, the column with the names.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(show_default="url", help="Metadata field of the shards whose values are names; repeat for more."),
    ] = None,
    originals: Annotated[
        bool,
        typer.Option(
            "--originals", help="Where a name is that of a duplicate, remove the document that was kept in its place too."
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing where a name stands for no document.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take documents out of a finished output (take-down requests): a new version, complete and verifiable."""
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_removal
        from tokkit.pipelines.remove import RemoveConfig
        from tokkit.pipelines.remove import remove as job

        settings = RemoveConfig(
            directory=directory,
            out=out,
            lists=tuple(lists),
            column=column,
            fields=tuple(field) if field else ("url",),
            originals=originals,
            strict=strict,
        )
        result = job(settings, run.progress)
        if run.emit(result.as_json()):
            return
        show_removal(run.console, result)
