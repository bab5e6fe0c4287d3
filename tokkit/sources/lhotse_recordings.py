"""The recordings that lhotse's supervisions speak of: a manifest beside theirs, looked up by id.

``corpus_supervisions_train.jsonl.gz`` belongs to ``corpus_recordings_train.jsonl.gz`` in the same folder: the same name with
the other word, and with another compression where need be. The recordings are read whole into memory, of each only where
its sound lies; the manifests read last are kept, since every unit of the supervisions asks for the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tokkit.errors import ItemError
from tokkit.sources import LINES
from tokkit.sources.compressed import StreamDamage, decompress, is_compressed
from tokkit.sources.lines import LineSplitter
from tokkit.sources.opening import Location, state_of
from tokkit.sources.untrusted import parse_json

SUPERVISIONS, RECORDINGS = "supervisions", "recordings"
_KEPT = ("sources", "duration", "transforms")  # of a recording: where its sound lies
_PIECE = 1 << 20
_REMEMBERED = 2  # manifests

_loaded: dict[tuple[str, int, int], Recordings] = {}  # by path, size and modification time


@dataclass
class Recordings:
    """The recordings of a manifest.

    Attributes:
        name: of the file.
        by_id: what is known of each; None where the manifest has an id twice.
        lacking: for people, why there may be fewer than there should.
    """

    name: str
    by_id: dict[str, Mapping[str, object] | None] = field(default_factory=dict)
    lacking: str = ""

    def find(self, identifier: str) -> Mapping[str, object]:
        """The recording of an id.

        Raises:
            ItemError: ``recording-not-found`` or ``recording-not-unique``.
        """
        if identifier not in self.by_id:
            raise ItemError("recording-not-found", f"{self.name} has none of this id{self.lacking}")
        found = self.by_id[identifier]
        if found is None:
            raise ItemError("recording-not-unique", f"{self.name} has several of this id")
        return found


def recordings_beside(supervisions: Location) -> Location | None:
    """The manifest of the recordings of a manifest of supervisions; None where there is none."""
    return _beside(supervisions, SUPERVISIONS, RECORDINGS)


def supervisions_beside(recordings: Location) -> Location | None:
    """The manifest of the supervisions of a manifest of recordings; None where there is none."""
    return _beside(recordings, RECORDINGS, SUPERVISIONS)


def _beside(path: Location, word: str, other: str) -> Location | None:
    before, found, after = path.name.rpartition(word)
    ending = next((suffix for suffix in sorted(LINES, key=len, reverse=True) if after.lower().endswith(suffix)), "")
    if not found or not ending:
        return None
    stem = before + other + after[: len(after) - len(ending)]
    for suffix in dict.fromkeys((after[len(after) - len(ending) :], *LINES)):
        candidate = path.with_name(stem + suffix)
        if candidate.is_file():
            return candidate
    return None


def load_recordings(manifest: Location) -> Recordings:
    """Read a manifest, or remember it; damage takes the recordings behind it along, and is told where one is looked for.

    Raises:
        OSError: the disk fails.
    """
    stamp = (str(manifest), *state_of(manifest))
    if stamp not in _loaded:
        while len(_loaded) >= _REMEMBERED:
            del _loaded[next(iter(_loaded))]
        _loaded[stamp] = _read(manifest)
    return _loaded[stamp]


def _read(manifest: Location) -> Recordings:
    found, wrong = Recordings(manifest.name), 0
    for line in _lines(manifest):
        if isinstance(line, StreamDamage):
            found.lacking = f"; it is damaged, and not read to its end ({line.message})"
            break
        try:
            fields = parse_json(line) if line is not None else None
        except ItemError:
            fields = None
        if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
            wrong += 1
            continue
        identifier = fields["id"]
        kept = {name: fields[name] for name in _KEPT if name in fields}
        found.by_id[identifier] = None if identifier in found.by_id else kept
    if wrong:
        found.lacking += f"; {wrong:,} of its lines are no recordings"
    return found


def _lines(manifest: Location) -> Iterator[bytes | StreamDamage | None]:
    """Its lines, None for one that is too long, ended by the damage if there is one."""
    splitter = LineSplitter()
    with manifest.open("rb") as file:
        for piece in decompress(file, manifest.name) if is_compressed(manifest.name) else iter(lambda: file.read(_PIECE), b""):
            if isinstance(piece, StreamDamage):
                yield piece
                return
            for _, line in splitter.feed(piece if isinstance(piece, bytes) else piece[1]):
                yield line
    for _, line in splitter.rest():
        yield line
