"""What all commands share: options, error messages, exit codes, machine-readable output."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tokkit.errors import EXIT_FAILED, EXIT_RESUMABLE, EXIT_USAGE, TokkitError

if TYPE_CHECKING:
    from rich.console import Console

    from tokkit.pipelines.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result and errors.")]


@dataclass(frozen=True)
class Session:
    """One run of a command: where progress goes, and how the result is given."""

    json: bool
    progress: Progress

    @property
    def console(self) -> Console:
        """For the human-readable result, on standard output."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def emit(self, result: Mapping[str, object]) -> bool:
        """With ``--json`` write the result and return True; else the caller shows it to a person."""
        if self.json:
            sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=True, default=str) + "\n")
        return self.json


@contextmanager
def session(*, json: bool, debug: bool, quiet: bool, resumable: bool = False) -> Iterator[Session]:
    """Run a command's body: tokkit's errors become one message and an exit code.

    Args:
        resumable: the same command goes on where an interrupted one stopped: Ctrl-C and SIGTERM then leave with 75.
    """
    from tokkit.pipelines.progress import default_progress

    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield Session(json, default_progress(quiet))
    except TokkitError as error:
        if debug:
            traceback.print_exc()
        _leave(str(error), error.exit_code, json)
    except BrokenPipeError:
        raise  # whoever read our output has left; nothing to tell them
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{error.strerror or error}", EXIT_FAILED, json)
    except KeyboardInterrupt:
        message = "stopped; what is committed is safe, the same command goes on from here" if resumable else "stopped"
        _leave(message, EXIT_RESUMABLE if resumable else 130, json)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _leave(message: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")
    label = {EXIT_USAGE: "usage", EXIT_RESUMABLE: "stopped"}.get(code, "error")
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"tokkit: {label}: {message}\n")
    raise typer.Exit(code)


def examples(*lines: str) -> str:
    """The examples at the end of a command's help, one a line."""
    return "Examples:\n\n" + "\n\n".join(lines)


def size(text: str | None) -> int | None:
    """``64MB``, ``1GiB``, ``500k`` or a plain number, in bytes or tokens.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if text is None:
        return None
    from tokkit.pipelines.settings import parsed_size

    try:
        return int(str(parsed_size(text)))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is {error}") from None
