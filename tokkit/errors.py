"""The error family: who is to blame decides what happens next.

* :class:`TokkitError` and below are for people: one message that says what went wrong, where, and what to do. The command
  line prints it without a traceback and leaves with the class's ``exit_code``.
* :class:`ItemError` is about one document or media item whose bytes are at fault, now and on every later try. The pipeline
  catches it and writes a reject; it never stops a run by itself.
* :class:`TransientError` is about the surroundings (time-out, memory, I/O): never a reject, the run stays resumable.
* Anything else is a programming error and stops the run at once, with its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RESUMABLE = 75


class TokkitError(Exception):
    """A failure that a person is told of in one message; ``exit_code`` is what the process then leaves with."""

    exit_code = EXIT_FAILED


class UsageError(TokkitError):
    """The command, a flag or a path given by the user is wrong."""

    exit_code = EXIT_USAGE


class MediaTooLongError(UsageError):
    """Documents have media that are longer than the sequences that are asked for.

    Attributes:
        problem: the message without what to do about it.
        needs: a length of sequence that would hold them.
    """

    def __init__(self, problem: str, needs: int, way_out: str) -> None:
        self.problem = problem
        self.needs = needs
        super().__init__(f"{problem}. {way_out}")


class ConfigError(UsageError):
    """A configuration with one or more invalid entries, all of them listed.

    Args:
        where: the file or command the configuration came from.
        problems: one line each, naming the key and what is wrong with its value.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = "\n".join(f"  - {p}" for p in self.problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{where}: {count} in the configuration\n{lines}")


class DataError(TokkitError):
    """A file that tokkit wrote, or was given as trusted (a tokenizer, a manifest, a shard), is damaged or of another format."""


class VerificationError(DataError):
    """Output that does not agree with itself: a checksum, a count or an id range."""


class FingerprintMismatch(TokkitError):  # noqa: N818 - it says what is wrong
    """An existing output was made with another semantic or numeric configuration; the message names the difference."""


class VocabularyError(TokkitError, ValueError):
    """A vocabulary that contradicts itself, or an id or code outside of its range."""


class MalformedSequence(VocabularyError):  # noqa: N818
    """Token ids that are not a well-formed document.

    Attributes:
        position: index of the first token at which no well-formed continuation is possible; equal to the sequence's length
            where the sequence ends too early.
    """

    def __init__(self, position: int, problem: str) -> None:
        self.position = position
        self.problem = problem
        super().__init__(f"token {position}: {problem}")


class ResumableStop(TokkitError):  # noqa: N818
    """The run stopped before its end, everything committed is safe, and the same command goes on from here."""

    exit_code = EXIT_RESUMABLE


class BudgetExceeded(TokkitError):  # noqa: N818
    """More rejects than the run allows: the input, or an option, is probably not what was meant."""


class TransientError(TokkitError):
    """A time-out, lack of memory or I/O error: says nothing of the sample, is retried, and never rejects."""

    exit_code = EXIT_RESUMABLE


class ItemError(Exception):
    """One document or media item whose own bytes are at fault; becomes a recorded reject.

    Args:
        reason: a short slug that rejects are counted by, for example ``image-truncated``.
        message: what was found, for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(f"{reason}: {message}")


class UnwantedItem(ItemError):  # noqa: N818 - as above
    """A media item that is sound as far as was looked at it, but outside of the bounds that were asked for: it is filtered."""
