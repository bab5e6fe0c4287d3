"""`tokkit pack`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit pack shards/ --seq-len 4096",
    "tokkit pack shards/ --seq-len 8192 --name long --materialize",
    "tokkit pack shards/ --advise",
    "tokkit pack shards/ --advise --split fill --seq-len 4096 --seq-len 6144 --seq-len 8448",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pack", epilog=EXAMPLES)(pack)


def pack(
    directory: Annotated[str, typer.Argument(help="Output directory of `tokkit shard`, or its URL.")],
    seq_len: Annotated[
        list[int] | None, typer.Option(help="Tokens in a row; with --advise repeat for more, or leave out.")
    ] = None,
    advise: Annotated[
        bool,
        typer.Option("--advise", help="Write nothing, and say what sequence lengths would come to: padding, cuts, and why."),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the plan under packs/; default by its settings.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            show_default="overlong",
            help="What is cut: never (documents longer than a row are left out), overlong (only these), or fill (others too, "
            "where pictures make lengths so coarse that whole documents leave holes). Pictures are never cut, sounds between "
            "frames alone.",
        ),
    ] = None,
    max_documents: Annotated[
        int | None, typer.Option(help="Documents that share a row, at most: for what has arrays of a fixed size for each row.")
    ] = None,
    align: Annotated[
        int | None,
        typer.Option(
            show_default="1",
            help="Let every document take a multiple of so many places, for context parallelism (twice its size).",
        ),
    ] = None,
    mixing: Annotated[
        float | None,
        typer.Option(
            show_default="0.0",
            help="Share of the documents, the longest, that are put into rows in a drawn order, so that these are of "
            "many lengths in a row (0.5 to 0.8, say); the rest fill the holes. 0 puts like to like, and fills best.",
        ),
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            show_default="error",
            help="What becomes of documents with a picture, or a sound that is not cut, longer than a row: error (nothing is "
            "planned), or leave-out (they are left out of the plan, and listed).",
        ),
    ] = None,
    materialize: Annotated[bool, typer.Option("--materialize", help="Also write the rows themselves.")] = False,
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to work on this disk for an output in an object store.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Plan packed sequences: exact best-fit-decreasing, pictures never cut. Costs no encoding; make as many as you like."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_advice, show_packs
        from tokkit.errors import UsageError
        from tokkit.object_store import is_url
        from tokkit.pipelines.pack import AdviseConfig, PackConfig, advise_seq_len
        from tokkit.pipelines.pack import pack as job
        from tokkit.pipelines.pack_stored import advise_stored, pack_stored
        from tokkit.pipelines.settings import validated

        if advise:
            asked = {"name": name, "max-documents": max_documents, "align": align, "mixing": mixing, "too-long": too_long}
            given = [f"--{key}" for key, value in asked.items() if value is not None] + ["--materialize"] * materialize
            if given:
                raise UsageError(f"--advise writes nothing: leave out {', '.join(given)}")
            wanted: dict[str, object] = {"seq_lens": tuple(seq_len or ())}
            wanted |= {"split_policy": split} if split is not None else {}
            if is_url(directory):
                advice = advise_stored(directory, wanted, run.progress, scratch)
            else:
                local = validated(AdviseConfig, "tokkit pack", wanted | {"directory": directory})
                advice = advise_seq_len(local, run.progress)
            if not run.emit({"directory": directory, **asdict(advice)}):
                show_advice(run.console, advice)
            return
        if len(seq_len or ()) != 1:
            raise UsageError("a plan is for one --seq-len; --advise compares several")
        options: dict[str, object] = {
            "seq_len": seq_len[0] if seq_len else None,
            "name": name,
            "split_policy": split,
            "max_documents": max_documents,
            "align": align,
            "mixing": mixing,
            "too_long": too_long,
            "materialize": materialize,
        }
        if is_url(directory):
            result = pack_stored(directory, options, run.progress, scratch)
        else:
            result = job(validated(PackConfig, "tokkit pack", options | {"directory": directory}), run.progress)
        if not run.emit({"directory": directory, **asdict(result)}):
            show_packs(run.console, result.splits)
