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
    directory: Annotated[Path, typer.Argument(help="Output directory of `tokkit shard`.")],
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
            "where pictures make lengths so coarse that whole documents leave holes). Pictures are never cut.",
        ),
    ] = None,
    max_documents: Annotated[
        int | None, typer.Option(help="Documents that share a row, at most: for what has arrays of a fixed size for each row.")
    ] = None,
    materialize: Annotated[bool, typer.Option("--materialize", help="Also write the rows themselves.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Plan packed sequences: exact best-fit-decreasing, pictures never cut. Costs no encoding; make as many as you like."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_advice, show_packs
        from tokkit.errors import UsageError
        from tokkit.pipelines.pack import AdviseConfig, PackConfig, advise_seq_len
        from tokkit.pipelines.pack import pack as job
        from tokkit.pipelines.settings import validated

        if advise:
            if name is not None or materialize or max_documents is not None:
                raise UsageError("--advise writes nothing: leave out --name, --materialize and --max-documents")
            wanted = {"directory": directory, "seq_lens": tuple(seq_len or ())}
            wanted |= {"split_policy": split} if split is not None else {}
            advice = advise_seq_len(validated(AdviseConfig, "tokkit pack", wanted), run.progress)
            if not run.emit({"directory": str(directory), **asdict(advice)}):
                show_advice(run.console, advice)
            return
        if len(seq_len or ()) != 1:
            raise UsageError("a plan is for one --seq-len; --advise compares several")
        options = {
            "directory": directory,
            "seq_len": seq_len[0] if seq_len else None,
            "name": name,
            "split_policy": split,
            "max_documents": max_documents,
            "materialize": materialize,
        }
        result = job(validated(PackConfig, "tokkit pack", options), run.progress)
        if not run.emit({"directory": str(directory), **asdict(result)}):
            show_packs(run.console, result.splits)
