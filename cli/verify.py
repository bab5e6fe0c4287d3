"""`tokkit verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples("tokkit verify shards/", "tokkit verify shards/ --no-checksums --json")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify", epilog=EXAMPLES)(verify)


def verify(
    directory: Annotated[Path, typer.Argument(help="Output directory of `tokkit shard`.")],
    checksums: Annotated[bool, typer.Option(help="Read every byte and compare its SHA-256.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that an output directory agrees with itself: checksums, ids, spans, outcomes, every document once."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.errors import VerificationError
        from tokkit.pipelines.verify import VerifyConfig
        from tokkit.pipelines.verify import verify as job

        result = job(VerifyConfig(directory=directory, checksums=checksums), run.progress)
        if not run.emit({"directory": str(directory), "ok": result.ok, **asdict(result)}):
            run.console.print("checked: " + ", ".join(f"{count:,} {what}" for what, count in result.checked.items()))
            for problem in result.problems:
                run.console.print(f"  - {problem}", style="red")
            if result.ok:
                run.console.print(f"{directory} agrees with itself", style="green")
        if not result.ok:
            if run.json:
                raise typer.Exit(VerificationError.exit_code)
            raise VerificationError(f"{directory}: {result.problem_count} problems found")
