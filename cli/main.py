"""The `tokkit` command: its commands are listed here, each lies in a file of its own.

Nothing heavy is imported before a command runs, so that help comes at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import tokkit
from tokkit.cli import (
    bench,
    decode,
    demo,
    encode,
    evaluate,
    export,
    features,
    finish,
    import_,
    inspect,
    pack,
    remove,
    shard,
    train_codec,
    train_text,
    train_vq,
    urls,
    verify,
)

app = typer.Typer(
    name="tokkit",
    help="Train tokenizers, or take released ones, and turn web corpora into training-ready token shards or feature caches, "
    "every document exactly once.",
    epilog="Begin with `tokkit demo`. Exit codes: 0 success, 1 failed, 2 wrong usage, 75 stopped and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"tokkit {tokkit.__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


TOKENIZERS = (train_text, train_vq, train_codec, import_, encode, decode)
SHARDS = (shard, features, finish, pack, verify, inspect, export, remove, evaluate, urls)

for module in (*TOKENIZERS, *SHARDS, bench, demo):
    module.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
