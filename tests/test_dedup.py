"""The library parts of deduplication: the same decisions as a naive reference, whatever the memory and the cut into units."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tokkit.dedup.decisions import Decisions
from tokkit.dedup.exact import label_shared, partition_of_key
from tokkit.dedup.find import Found, find_duplicates
from tokkit.dedup.index import IndexBuilder, ItemKeys, UnitIndex
from tokkit.dedup.near import components, masks
from tokkit.dedup.perceptual import NO_HASH, picture_hash
from tokkit.dedup.records import BYTES, CONTENT, LOOKS, REFERENCE, TEXT, Records
from tokkit.dedup.spill import Spill
from tokkit.errors import DataError

RELAXED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def key(*what: object) -> bytes:
    return sha256(repr(what).encode()).digest()[:16]


@dataclass(frozen=True)
class Doc:
    """A document as deduplication sees it; ``content`` None: it takes no part."""

    content: int | None
    text: int | None
    pair: bool
    items: tuple[tuple[int, int], ...] = ()  # bytes, looks


Place = tuple[int, int, int]


@dataclass
class Naive:
    """The rule of :mod:`tokkit.dedup.decide`, by dictionaries, one document after another."""

    looks: dict[int, int]
    held: dict[tuple[int, object], Place] = field(default_factory=dict)
    found: dict[Place, tuple[int, Place]] = field(default_factory=dict)

    def take(self, unit: int, position: int, doc: Doc, kinds: set[int]) -> None:
        if doc.content is None:
            return
        labels = [(CONTENT, doc.content)] if CONTENT in kinds else []
        labels += [(TEXT, doc.text)] if TEXT in kinds and doc.text is not None else []
        for label in labels:
            if label in self.held:
                self.found[unit, position, -1] = (label[0], self.held[label])
                return
        before = dict(self.held)
        mine: dict[Place, tuple[int, Place]] = {}
        for number, (content, looks) in enumerate(doc.items):
            wanted = [(BYTES, content)] if BYTES in kinds else []
            wanted += [(LOOKS, self.looks[looks])] if LOOKS in kinds and looks else []
            known = next((label for label in wanted if label in self.held), None)
            if known is not None:
                mine[unit, position, number] = (known[0], self.held[known])
            for label in wanted:
                if known is None:
                    self.held.setdefault(label, (unit, position, number))
        if doc.items and len(mine) == len(doc.items) and (doc.pair or doc.text is None):
            self.held = before
            self.found |= mine
            return
        if doc.pair and mine:
            for number, (content, looks) in enumerate(doc.items):
                self.held.setdefault((BYTES, content), (unit, position, number))
                if LOOKS in kinds and looks:
                    self.held.setdefault((LOOKS, self.looks[looks]), (unit, position, number))
        else:
            self.found |= mine
        for label in labels:
            self.held[label] = (unit, position, -1)


def naive_components(hashes: Sequence[int], distance: int) -> dict[int, int]:
    """The least hash of each hash's component."""
    left, component = set(hashes), {}
    while left:
        seed = min(left)
        todo = {seed}
        while todo:
            one = todo.pop()
            left.discard(one)
            component[one] = seed
            todo |= {other for other in left if (one ^ other).bit_count() <= distance}
    return component


def write(folder: Path, units: Sequence[Sequence[Doc]], kinds: set[int]) -> list[Path]:
    paths = []
    for number, docs in enumerate(units):
        builder = IndexBuilder(content=CONTENT in kinds, text=TEXT in kinds, items=BYTES in kinds, looks=LOOKS in kinds)
        for position, doc in enumerate(docs):
            if doc.content is None:
                builder.leave_out(f"f#{position}")
                continue
            items = [ItemKeys(i, key("bytes", content), looks) for i, (content, looks) in enumerate(doc.items)]
            builder.add(
                f"f#{position}",
                pair=doc.pair,
                has_text=doc.text is not None,
                content=key("content", doc.content),
                text=key("text", doc.text),
                sound=len(items),
                items=items,
            )
        paths.append(folder / f"{number:05d}.index")
        builder.write(paths[-1], {"unit": number})
    return paths


def run(
    units: Sequence[Sequence[Doc]], kinds: set[int], distance: int, memory: int
) -> tuple[Found, dict[Place, tuple[int, Place]]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = write(folder, units, kinds)
        found = find_duplicates(
            paths,
            folder / "decisions",
            scratch=folder / "scratch",
            memory=memory,
            distance=distance if LOOKS in kinds else None,
        )
        decisions = Decisions.open(folder / "decisions", len(paths), check=True)
        rows = {}
        for unit in range(len(paths)):
            mine = decisions.of_unit(unit)
            assert (np.lexsort((mine["item"], mine["position"])) == np.arange(len(mine))).all()
            for row in mine.tolist():
                rows[unit, row[0], row[1]] = (row[2], (row[3], row[4], row[5]))
        assert sum(found.duplicates) == len(decisions) == len(rows)
        return found, rows


HASHES = st.builds(
    lambda base, flips: int(np.bitwise_xor.reduce(np.array([base, *(1 << f for f in flips)], dtype=np.uint64))),
    st.sampled_from([0x0F0F_F0F0_1234_5678, 0xFFFF_0000_FF00_F0F0, 0x8000_0000_0000_0001]),
    st.lists(st.integers(0, 63), max_size=5),
)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[Doc], list[int]]:
    """Documents, and where they are cut into units. Equal bytes look equal; equal content has equal text and items."""
    hashes = draw(st.lists(HASHES, min_size=1, max_size=8, unique=True))
    looks = [draw(st.sampled_from([NO_HASH, *hashes])) for _ in range(5)]
    small = st.integers(0, 4)
    item = small.map(lambda n: (n, looks[n]))
    doc = st.builds(
        Doc,
        st.one_of(st.just(0), st.none()),
        st.one_of(st.none(), st.integers(0, 3)),
        st.booleans(),
        st.lists(item, max_size=3).map(tuple),
    )
    pool = draw(st.lists(doc, min_size=1, max_size=6))
    docs = draw(st.lists(st.one_of(st.sampled_from(pool), doc), max_size=14))
    docs = [d if d.content is None else Doc(hash((d.text, d.items)), d.text, d.pair, d.items) for d in docs]
    cuts = draw(st.lists(st.integers(0, len(docs)), max_size=4))
    return docs, sorted(cuts)


def cut(docs: Sequence[Doc], cuts: Sequence[int]) -> list[list[Doc]]:
    edges = [0, *cuts, len(docs)]
    return [list(docs[a:b]) for a, b in pairwise(edges)]


KINDS = st.sampled_from(
    [{CONTENT}, {TEXT}, {BYTES}, {BYTES, LOOKS}, {CONTENT, TEXT}, {CONTENT, BYTES}, {TEXT, BYTES, LOOKS}, {0, 1, 2, 3}]
)


@RELAXED
@given(corpora(), KINDS, st.integers(0, 4), st.sampled_from([1, 700, 1 << 30]))
def test_the_decisions_are_those_of_the_naive_reference(
    corpus: tuple[list[Doc], list[int]], kinds: set[int], distance: int, memory: int
) -> None:
    docs, cuts = corpus
    looks = sorted({h for d in docs if d.content is not None for _, h in d.items if h})
    naive = Naive(naive_components(looks, distance))
    units = cut(docs, cuts)
    for unit, mine in enumerate(units):
        for position, doc in enumerate(mine):
            naive.take(unit, position, doc, kinds)
    assert run(units, kinds, distance, memory)[1] == naive.found


def test_a_document_of_nothing_but_duplicates_is_nobodys_original() -> None:
    """Neither of the last two stays, so the second of them cannot be a duplicate of the first."""
    docs = [Doc(1, 1, False, ((1, 0),)), Doc(2, None, False, ((1, 0),)), Doc(2, None, False, ((1, 0),))]
    _, found = run([docs], {CONTENT, BYTES}, 0, 1 << 30)
    assert found == {(0, 1, 0): (BYTES, (0, 0, 0)), (0, 2, 0): (BYTES, (0, 0, 0))}


@RELAXED
@given(corpora(), KINDS, st.integers(0, 4))
def test_nothing_is_lost_and_what_is_kept_is_kept(corpus: tuple[list[Doc], list[int]], kinds: set[int], distance: int) -> None:
    """Every content, text, item and component that could be committed is in the output once at least."""
    docs, cuts = corpus
    units = cut(docs, cuts)
    _, found = run(units, kinds, distance, 1 << 30)
    looks = naive_components(sorted({h for d in docs if d.content is not None for _, h in d.items if h}), distance)
    kept: set[object] = set()
    wanted: set[object] = set()
    gone: set[Place] = set()
    for unit, mine in enumerate(units):
        for position, doc in enumerate(mine):
            if doc.content is None:
                continue
            left = [i for i in range(len(doc.items)) if (unit, position, i) not in found]
            there = (unit, position, -1) not in found and not (
                doc.items and not left and (doc.pair or doc.text is None) and BYTES in kinds
            )
            if there and doc.pair:
                assert len(left) in (0, len(doc.items))
            if not there:
                gone |= {(unit, position, i) for i in range(-1, len(doc.items))}
            labels: list[tuple[object, bool]] = []
            if TEXT in kinds and doc.text is not None:
                labels.append(((TEXT, doc.text), there))
            elif CONTENT in kinds and BYTES not in kinds:
                labels.append(((CONTENT, doc.content), there))
            if BYTES in kinds and TEXT not in kinds:
                for i, (content, hash_) in enumerate(doc.items):
                    label = (LOOKS, looks[hash_]) if LOOKS in kinds and hash_ else (BYTES, content)
                    labels.append((label, there and i in left))
            wanted |= {label for label, _ in labels}
            kept |= {label for label, stays in labels if stays}
    if not (TEXT in kinds and BYTES in kinds):  # a caption may be all that two pairs share; see the reference
        assert wanted == kept
    for place, (_, of) in found.items():
        assert of < place
        assert of not in found
        assert of not in gone


@RELAXED
@given(corpora(), KINDS, st.integers(0, 4), st.lists(st.integers(0, 14), max_size=4))
def test_the_cut_into_units_changes_nothing(
    corpus: tuple[list[Doc], list[int]], kinds: set[int], distance: int, other: list[int]
) -> None:
    docs, cuts = corpus

    def by_number(cuts: Sequence[int]) -> dict[Place, tuple[int, Place]]:
        units = cut(docs, cuts)
        starts = np.cumsum([0, *(len(u) for u in units)])
        _, found = run(units, kinds, distance, 500)
        return {
            (0, int(starts[p[0]]) + p[1], p[2]): (kind, (0, int(starts[o[0]]) + o[1], o[2])) for p, (kind, o) in found.items()
        }

    assert by_number(cuts) == by_number(sorted(min(c, len(docs)) for c in other))


# ---- near pictures


def test_two_pictures_that_look_alike_are_enough() -> None:
    docs = [Doc(1, 1, False, ((1, 0x0F0F),)), Doc(2, 2, True, ((2, 0x0F0E),)), Doc(3, 3, True, ((3, 0xF000),))]
    _, found = run([docs[:1], docs[1:]], {BYTES, LOOKS}, 1, 1 << 30)
    assert found == {(1, 0, 0): (LOOKS, (0, 0, 0))}


@settings(deadline=None, max_examples=60)
@given(st.lists(HASHES, min_size=1, max_size=40, unique=True), st.integers(0, 8), st.sampled_from([1, 1 << 30]))
def test_components_are_those_of_all_pairs(hashes: list[int], distance: int, memory: int) -> None:
    array = np.array(sorted(hashes), dtype=np.uint64)
    expected = naive_components(hashes, distance)
    with TemporaryDirectory() as name:
        found = components(array, distance, memory, Path(name))
        assert {int(h): int(array[c]) for h, c in zip(array, found, strict=True)} == expected


@pytest.mark.parametrize(("distance", "segments"), [(1, 2), (4, 5), (4, 7), (8, 10), (16, 21)])
def test_two_hashes_within_the_distance_agree_in_some_table(distance: int, segments: int) -> None:
    tables = list(masks(distance, segments))
    rng = np.random.default_rng(0)
    for _ in range(50):
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, distance, replace=False).astype(np.uint64))
        assert any(not flips & table for table in tables)


def test_scaled_and_recompressed_pictures_look_alike_and_flat_ones_have_no_looks() -> None:
    pytest.importorskip("imagehash")
    noise = np.random.default_rng(3).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.resize((160, 120)).save(buffer, "JPEG", quality=60)
    again = Image.open(buffer).convert("RGB")
    other = Image.fromarray(noise[::-1, ::-1].copy()).resize((400, 300), Image.Resampling.BICUBIC)
    assert (picture_hash(picture) ^ picture_hash(again)).bit_count() <= 4
    assert (picture_hash(picture) ^ picture_hash(other)).bit_count() > 12
    assert picture_hash(picture).bit_count() == 32
    for colour in ("white", "black", "#336699"):
        assert picture_hash(Image.new("RGB", (64, 64), colour)) == NO_HASH
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert picture_hash(clear) == NO_HASH  # its colours are not seen


# ---- files and partitions


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=6), st.integers(1, 9), st.sampled_from([1, 200, 1 << 20]))
def test_partitions_give_back_what_they_were_given_in_order(blocks: list[list[int]], partitions: int, memory: int) -> None:
    with TemporaryDirectory() as name, Spill(Path(name) / "s", np.dtype("<i8"), partitions, memory) as spill:
        for block in blocks:
            values = np.array(block, dtype=np.int64)
            spill.add(values, values % partitions)
        everything = [v for block in blocks for v in block]
        for partition in range(partitions):
            read = [int(v) for b in spill.read(partition, 3) for v in b]
            assert read == [v for v in everything if v % partitions == partition]
        if memory == 1 and len(everything) > 1:
            assert spill.spilled
        elif memory == 1 << 20:
            assert not spill.spilled


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 4), st.integers(1, 9))
def test_shared_keys_are_numbered_whatever_the_blocks(numbers: list[int], partitions: int, rows: int) -> None:
    references = np.zeros(len(numbers), REFERENCE)
    references["key"] = [key(number) for number in numbers]
    references["position"] = np.arange(len(numbers))
    found: list[tuple[int, int]] = []
    with TemporaryDirectory() as name, Spill(Path(name) / "s", REFERENCE, partitions, 1 << 20) as spill:
        spill.add(references, partition_of_key(references["key"], partitions))

        def emit(places: Records) -> None:
            found.extend(zip(places["label"].tolist(), places["position"].tolist(), strict=True))

        free = label_shared(spill, rows, emit, 5)
    groups: dict[int, set[int]] = {}
    for label, position in found:
        groups.setdefault(label, set()).add(position)
    expected = [{i for i, n in enumerate(numbers) if n == number} for number in set(numbers)]
    assert sorted(map(sorted, groups.values())) == sorted(sorted(g) for g in expected if len(g) > 1)
    assert sorted(groups) == list(range(5, free))


def test_a_key_that_everything_has_takes_no_more_memory_than_a_block() -> None:
    docs = [[Doc(7, None, False) for _ in range(500)] for _ in range(4)]
    found, rows = run(docs, {CONTENT}, 0, 8 * 29 * 16)
    assert found.duplicates == (1999, 0, 0, 0)
    assert set(rows.values()) == {(CONTENT, (0, 0, -1))}


def test_a_damaged_index_is_found(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [[Doc(1, 2, False, ((3, 4),))]], {0, 1, 2, 3})
    index = UnitIndex.open(path, {"unit": 0}, check=True)
    assert (index.documents, index.locator(0)) == (1, "f#0")
    with pytest.raises(DataError, match="something else"):
        UnitIndex.open(path, {"unit": 1})
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    UnitIndex.open(path)
    with pytest.raises(DataError, match="checksum"):
        UnitIndex.open(path, check=True)
    for bad in (good[:-1], good + b"x", b"", json.dumps({"format": "x"}).encode() + b"\n"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="damaged"):
            UnitIndex.open(path)


def test_damaged_decisions_are_found(tmp_path: Path) -> None:
    paths = write(tmp_path, [[Doc(1, 2, False)], [Doc(1, 2, False)]], {CONTENT})
    target = tmp_path / "decisions"
    find_duplicates(paths, target, scratch=tmp_path / "s", memory=1000)
    good = target.read_bytes()
    assert Decisions.open(target, 2, check=True).of_unit(1).tolist() == [(0, -1, CONTENT, 0, 0, -1)]
    with pytest.raises(DataError, match="another run"):
        Decisions.open(target, 3)
    target.write_bytes(good[:70] + bytes([good[70] ^ 1]) + good[71:])
    with pytest.raises(DataError, match="checksum"):
        Decisions.open(target, 2, check=True)
    for bad in (good[:-1], good[:10], b"x" * len(good)):
        target.write_bytes(bad)
        with pytest.raises(DataError, match="damaged"):
            Decisions.open(target, 2)


def test_records_that_are_gone_from_the_disk_are_missed(tmp_path: Path) -> None:
    """A process that was suspended may find its files removed: that must not pass for an empty partition."""
    with Spill(tmp_path / "s", np.dtype("<i8"), 2, 800) as spill:
        spill.add(np.arange(100, dtype="<i8"), np.zeros(100, np.int64))
        assert spill.spilled
        path = next((tmp_path / "s").iterdir())
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(OSError, match="not as long as it was written"):
            list(spill.read(0, 1000))
        path.unlink()
        with pytest.raises(FileNotFoundError):
            list(spill.read(0, 1000))
        list(spill.read(1, 1000))
