"""What ``tokkit verify`` can find: the codes, what each means and what to do, and the result that gathers them.

A code is stable: scripts may act on it. The table in ``docs/verify.md`` is this one (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

SHOWN = 20  # problems kept of each code; the others are counted


class Code(StrEnum):
    """The kinds of problems."""

    UNFINISHED = "unfinished"
    MANIFEST = "manifest"
    MISSING_FILE = "missing-file"
    EXTRA_FILE = "extra-file"
    SIZE = "size"
    CHECKSUM = "checksum"
    UNREADABLE = "unreadable"
    FINGERPRINT = "fingerprint"
    VOCABULARY = "vocabulary"
    TABLE = "table"
    INDEX_MISMATCH = "index-mismatch"
    ID_RANGE = "id-range"
    SPAN = "span"
    GRAMMAR = "grammar"
    ORDER = "order"
    SPLIT = "split"
    DUPLICATE_DOCUMENT = "duplicate-document"
    COMMIT = "commit"
    REJECTS = "rejects"
    OUTCOMES = "outcomes"
    FEATURES = "features"
    PACK = "pack"
    INPUT_CHANGED = "input-changed"
    REENCODE = "reencode"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a code means, and what to do about it."""

    meaning: str
    remedy: str


RESTORE = (
    "restore the file from a copy; or remove manifest.json and commits/ and run the same `tokkit shard` or `tokkit features` "
    "command, which encodes everything anew, to the same bytes"
)
REPORT = "the writer was at fault, or somebody edited files and checksums: make the output anew, and report it"
REPACK = "remove the plan's folder and run `tokkit pack` again; nothing is encoded for that"

ADVICE: dict[Code, Advice] = {
    Code.UNFINISHED: Advice(
        "there is no manifest.json: the run has not come to its end",
        "run the same `tokkit shard` or `tokkit features` command again, it goes on where it stopped",
    ),
    Code.MANIFEST: Advice(
        "manifest.json cannot be read, or is not what was written (its own digest differs)",
        RESTORE,
    ),
    Code.MISSING_FILE: Advice(
        "a file that the manifest or a record names is not there",
        RESTORE,
    ),
    Code.EXTRA_FILE: Advice(
        "a file that no record names lies where only the output's own files belong",
        "move it elsewhere: loaders that list the folder would read it",
    ),
    Code.SIZE: Advice(
        "a file is shorter or longer than what was written: a copy was cut short, or bytes were added",
        RESTORE,
    ),
    Code.CHECKSUM: Advice(
        "a file has the right size, but its SHA-256 differs: bits changed on disk or on the way",
        RESTORE,
    ),
    Code.UNREADABLE: Advice(
        "a file cannot be read as what it should be",
        RESTORE,
    ),
    Code.FINGERPRINT: Advice(
        "a fingerprint is not that of its components, or files name different ones: they are of different runs",
        RESTORE,
    ),
    Code.VOCABULARY: Advice(
        "vocabulary.json is not the vocabulary that the tokens were written with",
        "restore it from a copy: read with another vocabulary the ids mean something else",
    ),
    Code.TABLE: Advice(
        "a document table has other columns or row groups than its format says",
        REPORT,
    ),
    Code.INDEX_MISMATCH: Advice(
        "the .idx, the .parquet and the .bin of a shard disagree about where documents begin",
        REPORT,
    ),
    Code.ID_RANGE: Advice(
        "an id is not in the range that its place asks for: it is another modality's, or nothing's",
        REPORT,
    ),
    Code.SPAN: Advice(
        "spans do not cover their document end to end, lack their markers, or state another shape than their tokens have",
        REPORT,
    ),
    Code.GRAMMAR: Advice(
        "a document's ids cannot be decoded, or to other media than its spans say",
        REPORT,
    ),
    Code.ORDER: Advice(
        "documents do not stand in the order of their work units, or not in a unit of their own source and file",
        REPORT,
    ),
    Code.SPLIT: Advice(
        "a document is in another split than its content hash puts it in",
        REPORT,
    ),
    Code.DUPLICATE_DOCUMENT: Advice(
        "a document is there twice, or is both committed and in a reject list",
        REPORT,
    ),
    Code.COMMIT: Advice(
        "a commit record cannot be read, or is of another unit",
        RESTORE,
    ),
    Code.REJECTS: Advice(
        "a reject list cannot be read, or is not the one that its commit record describes",
        RESTORE,
    ),
    Code.OUTCOMES: Advice(
        "documents, media items or tokens do not add up between shards, commit records, reject lists, manifest and the "
        "sources' own count",
        REPORT,
    ),
    Code.FEATURES: Advice(
        "features are not finite, or of another form, shape or place than the index and the manifest say",
        REPORT,
    ),
    Code.PACK: Advice(
        "a packing plan or its rows are damaged, of other shards, or do not hold every document once",
        REPACK,
    ),
    Code.INPUT_CHANGED: Advice(
        "a sampled document is no longer in its input, or says something else there, and cannot be compared",
        "name the input as it was with --input NAME=FOLDER",
    ),
    Code.REENCODE: Advice(
        "a sampled document encoded again from its input gives other tokens, features or another row than the output holds",
        "a few documents: the shards are damaged, make the output anew; all of them: another decoder or option is at work",
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its code, the file, document or unit it is in, and what is wrong there."""

    code: Code
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What encoding sampled documents again came to.

    Attributes:
        documents, tokens: compared.
        codes, equal_codes: media codes (of a feature cache, stored values) compared, and those that were equal.
        lowest, lowest_document: the smallest share of equal codes in one document, and which; empty where all are equal.
            Of a feature cache the largest relative difference of an item, and which.
        units_read, unit_bytes: work units that were read for it, each at most to its end, and their size.
        exact: documents whose numeric environment is the recorded one, where every difference is a problem.
        differences: what differs in the numeric environment, one line each; empty where nothing does.
        of_features: whether a feature cache was compared.
    """

    documents: int
    tokens: int
    codes: int
    equal_codes: int
    lowest: float
    lowest_document: str
    units_read: int
    unit_bytes: int
    exact: int
    differences: list[str]
    of_features: bool = False

    @property
    def share(self) -> float:
        """Share of equal media codes; 1 where there were none."""
        return self.equal_codes / self.codes if self.codes else 1.0


@dataclass
class VerifyResult:
    """What was looked at, by kind, and what was found wrong.

    Attributes:
        checked: how many of each kind were looked at.
        problems: at most 20 of each code, in the order they were found.
        counts: all of them, by code.
        skipped: what could not be looked at because of other problems.
        reencoded: with ``--reencode``, what that came to.
    """

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    reencoded: Agreement | None = None

    @property
    def problem_count(self) -> int:
        return sum(self.counts.values())

    @property
    def ok(self) -> bool:
        return not self.counts

    def look(self, what: str, count: int = 1) -> None:
        """Count what was looked at."""
        self.checked[what] = self.checked.get(what, 0) + count

    def problem(self, code: Code, where: str, message: str) -> None:
        """Write a problem down."""
        self.more(code, 1)
        if self.counts[code] <= SHOWN:
            self.problems.append(Problem(code, where, message))

    def more(self, code: Code, count: int) -> None:
        """Count problems of which no more is said."""
        if count:
            self.counts[code.value] = self.counts.get(code.value, 0) + count

    def room(self, code: Code) -> int:
        """How many more problems of a code are kept."""
        return max(0, SHOWN - self.counts.get(code.value, 0))
