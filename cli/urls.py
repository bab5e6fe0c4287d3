"""`tokkit urls`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session, size

EXAMPLES = examples(
    "tokkit urls crawl/*.warc.gz --out urls.parquet",
    "tokkit urls obelics:docs/*.parquet --out urls.parquet --workers 8",
    "tokkit urls crawl/*.warc.gz --images pictures/ --out left.parquet",
    "img2dataset --url_list urls.parquet --input_format parquet --url_col url --caption_col caption "
    "--save_additional_columns '[\"page_url\"]' --output_format webdataset --output_folder pictures",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("urls", epilog=EXAMPLES)(urls)


def urls(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="As for `tokkit shard`: files, folders, globs or URLs.")
    ],
    out: Annotated[Path, typer.Option(help="Parquet file: url, caption (alternative text) and page_url.")],
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE", help="Leave out what is there, as for `tokkit shard`: an earlier download; repeat for more."
        ),
    ] = None,
    unit_size: Annotated[
        str | None, typer.Option(show_default="64MiB", help="Input that a worker takes at a time, e.g. 64MiB.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core. 0 works in this one.")] = None,
    memory: Annotated[
        str | None, typer.Option(show_default="256MiB", help="Memory for bringing URLs together; the rest goes to files.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the pictures that documents name by URL and the corpus does not hold, once each, for img2dataset to download."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.settings import validated
        from tokkit.pipelines.urls import UrlsConfig, list_urls

        options = {
            "inputs": inputs,
            "out": out,
            "images": images,
            "unit_bytes": size(unit_size),
            "workers": workers,
            "memory": size(memory),
        }
        result = list_urls(validated(UrlsConfig, "tokkit urls", options), run.progress)
        if run.emit(asdict(result)):
            return
        run.console.print(
            f"{result.out}: {result.urls:,} URLs of {result.missing:,} missing pictures "
            f"({result.pictures:,} pictures in {result.documents:,} documents)",
            markup=False,
        )
        if result.nameless:
            run.console.print(f"{result.nameless:,} missing pictures have no URL that could be downloaded")
        if result.damaged:
            run.console.print(f"{result.damaged:,} places of the input could not be read", style="yellow")
