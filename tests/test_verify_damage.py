"""`tokkit verify` against damage: every class of file, every kind of damage, and the code that each must be told by.

Two kinds. Damage that happens to files (bits, cuts, losses, swaps) shows in checksums. Damage that a writer at fault would do,
or somebody who makes all checksums fit afterwards (:func:`forge`), does not: it has to be seen in the contents.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_corpus import write_corpus, write_tokenizers

from tokkit.pipelines.finish import folder_digest
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import Code, VerifyConfig, VerifyResult, verify
from tokkit.shards.manifest import load_manifest
from tokkit.shards.megatron import HEADER, index_bytes
from tokkit.shards.native import DOCUMENT_SCHEMA, ROW_GROUP, open_shards
from tokkit.storage import pretty_json, record_json, sha256_file
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()


@dataclass(frozen=True)
class World:
    """A finished output, and one of other inputs and another vocabulary."""

    good: Path
    other: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("damage")
    corpus = write_corpus(folder / "corpus").folder
    text, image = write_tokenizers(folder / "tokenizers")
    settings = {"text_tokenizer": text, "workers": 1, "unit_bytes": 6000, "batch_size": 4, "report_documents": 0, "seed": 3}
    for name, more in {
        "good": {"inputs": ["pairs", "documents", "texts", "audio"], "image_tokenizer": image, "shard_tokens": 1500},
        "other": {"inputs": ["texts", "pairs"], "text_vocab_size": 500, "shard_tokens": 600},
    }.items():
        inputs = [str(corpus / source) for source in more["inputs"]]  # type: ignore[attr-defined]
        options = settings | more | {"inputs": inputs, "out": folder / name, "val_fraction": 0.2, "pack": 64}
        shard(ShardConfig.model_validate(options), SILENT)
        settings_of_rows = {"seq_len": 60, "name": "rows", "split_policy": "never", "materialize": True}
        pack(PackConfig.model_validate({"directory": folder / name, **settings_of_rows}), SILENT)
    return World(folder / "good", folder / "other")


@pytest.fixture
def out(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.good, tmp_path / "out"))


def look(out: Path, **options: object) -> VerifyResult:
    return verify(VerifyConfig.model_validate({"directory": out, "decode_at_most": 5, **options}), SILENT)


def codes(out: Path) -> set[str]:
    """The codes found."""
    return set(look(out).counts)


def test_the_undamaged_output_has_no_problem(out: Path) -> None:
    result = look(out)
    assert result.ok
    assert result.skipped == []
    assert result.checked["packing plans"] == 4
    assert result.checked["packed rows"] > 0
    assert result.checked["document names compared"] == result.checked["documents"] + 9  # 4 pairs, 2 texts, 3 sounds


# ---- what happens to files


FILES = {
    "manifest.json": {Code.MANIFEST},
    "config.json": {Code.CHECKSUM},
    "vocabulary.json": {Code.CHECKSUM},
    "tokens/train/00000.bin": {Code.CHECKSUM},
    "tokens/train/00001.idx": {Code.CHECKSUM},
    "tokens/val/00000.parquet": {Code.CHECKSUM},
    "commits/00001.json": {Code.CHECKSUM, Code.COMMIT, Code.OUTCOMES, Code.FINGERPRINT, Code.REJECTS, Code.SIZE},
    "rejects/LAST": {Code.REJECTS},
    "packs/seq64-overlong/train/plan.json": {Code.PACK},
    "packs/seq64-overlong/train/pack_offsets.npy": {Code.PACK},
    "packs/seq64-overlong/val/piece_document.npy": {Code.PACK},
    "packs/seq64-overlong/train/piece_start.npy": {Code.PACK},
    "packs/seq64-overlong/train/piece_length.npy": {Code.PACK},
    "packs/rows/train/left_out.jsonl": {Code.PACK},
    "packs/rows/train/rows/rows.json": {Code.PACK},
    "packs/rows/train/rows/rows.bin": {Code.PACK},
    "packs/rows/val/rows/cu_seqlens.npy": {Code.PACK},
}
MISSING = {"manifest.json": Code.UNFINISHED, "packs/": Code.PACK}
CUT = {"manifest.json": Code.MANIFEST, "commits/": Code.COMMIT, "packs/": Code.PACK}


def the_file(out: Path, name: str) -> Path:
    """LAST is the last of the folder."""
    path = out / name
    return max(path.parent.iterdir()) if path.name == "LAST" else path


def expected(name: str, table: dict[str, Code], otherwise: Code) -> Code:
    return next((code for prefix, code in table.items() if name.startswith(prefix)), otherwise)


def test_the_table_has_every_class_of_file(out: Path) -> None:
    def kind(name: str) -> tuple[str, ...]:
        parts = name.split("/")
        return (parts[0], Path(parts[-1]).suffix if parts[0] in ("tokens", "commits", "rejects") else parts[-1])

    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    there = {kind(n) for n in files if not n.startswith("run/") and n != "report.html"}
    listed = {kind(n.replace("LAST", "00000.jsonl")) for n in FILES}
    assert there == listed


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_wherever_it_is(out: Path, name: str) -> None:
    path = the_file(out, name)
    data = path.read_bytes()
    if not data:
        pytest.skip("an empty file has no bits")
    places = np.unique(np.linspace(0, len(data) - 1, 5).astype(int)).tolist()
    for bit, at in enumerate(places):
        changed = bytearray(data)
        changed[at] ^= 1 << bit % 8
        path.write_bytes(changed)
        result = look(out)
        assert not result.ok, (at, bit)
        assert set(result.counts) & FILES[name], (at, bit, result.counts)
        look(out, checksums=False)  # is not asked to find it, but must not fall over it


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", ["the end", "everything", "nothing, but more is there"])
def test_a_file_of_another_size_is_found(out: Path, name: str, cut: str) -> None:
    path = the_file(out, name)
    data = path.read_bytes()
    path.write_bytes({"the end": data[: -max(1, len(data) // 5)], "everything": b""}.get(cut, data + b"\0"))
    if path.read_bytes() == data:
        pytest.skip("it was empty before")
    assert expected(name, CUT, Code.SIZE) in codes(out)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(out: Path, name: str) -> None:
    the_file(out, name).unlink()
    result = look(out)
    code = expected(name, MISSING, Code.MISSING_FILE)
    assert code in result.counts
    problem = next(p for p in result.problems if p.code == code)
    assert the_file(out, name).parent.name in problem.where or "/" not in name


@pytest.mark.parametrize("name", [n for n in FILES if n != "rejects/LAST"])
def test_a_file_of_another_output_is_found(out: Path, world: World, name: str) -> None:
    shutil.copy(world.other / name, out / name)
    found = codes(out)
    if name.startswith("tokens"):
        assert found & {Code.SIZE, Code.CHECKSUM}
    elif name == "manifest.json":
        assert {Code.FINGERPRINT, Code.VOCABULARY, Code.EXTRA_FILE} <= found
    elif name == "vocabulary.json":
        assert {Code.VOCABULARY} <= found
    elif name == "config.json":
        assert {Code.FINGERPRINT} <= found
    elif name.startswith("commits"):
        assert {Code.OUTCOMES} <= found
    elif (out / name).read_bytes() != (world.good / name).read_bytes():
        assert {Code.PACK} <= found


@pytest.mark.parametrize(
    ("one", "two", "code"),
    [
        *[(f"tokens/train/00000.{s}", f"tokens/train/00001.{s}", Code.CHECKSUM) for s in ("bin", "idx", "parquet")],
        ("tokens/train/00000.parquet", "tokens/val/00000.parquet", Code.CHECKSUM),
        ("commits/00001.json", "commits/00002.json", Code.COMMIT),
        ("packs/seq64-overlong/train", "packs/rows/train", Code.PACK),
        ("packs/rows/train", "packs/rows/val", Code.PACK),
    ],
)
def test_two_files_that_changed_places_are_found(out: Path, one: str, two: str, code: Code) -> None:
    (out / one).rename(out / "aside")
    (out / two).rename(out / one)
    (out / "aside").rename(out / two)
    found = codes(out)
    assert code in found or (code == Code.CHECKSUM and Code.SIZE in found)


@pytest.mark.parametrize(
    "name",
    [
        "tokens/train/00099.bin",
        "tokens/notes.txt",
        "tokens/test/00000.bin",
        "commits/00099.json",
        "rejects/00099.jsonl",
        "packs/notes.txt",
        "packs/rows/test/plan.json",
        "packs/rows/train/notes.npy",
        "packs/rows/val/rows/rows.bin.bak",
    ],
)
def test_a_file_that_nothing_names_is_found(out: Path, name: str) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"x")
    assert codes(out) == {Code.EXTRA_FILE}


@pytest.mark.parametrize("name", ["tokens", "tokens/train", "commits", "rejects", "packs/rows/val"])
def test_a_missing_folder_is_found(out: Path, name: str) -> None:
    shutil.rmtree(out / name)
    assert codes(out) & {Code.MISSING_FILE, Code.PACK}


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "commits/00000.json", "tokens/train/00000.bin"])
def test_a_folder_in_a_files_place_is_found(out: Path, name: str) -> None:
    (out / name).unlink()
    (out / name).mkdir()
    assert codes(out) & {Code.MISSING_FILE, Code.COMMIT, Code.VOCABULARY}


def test_damage_in_one_shard_does_not_hide_that_in_another(out: Path) -> None:
    for name in ("tokens/train/00000.bin", "tokens/val/00000.idx"):
        (out / name).write_bytes((out / name).read_bytes()[:-2])
    (out / "tokens" / "train" / "more.bin").write_bytes(b"")
    forge(
        out, lambda files: files.rows("train", 2, lambda rows: rows[0].update(split="val")), checksums_of="tokens/train/00002"
    )
    result = look(out)
    assert result.counts == {Code.SIZE: 2, Code.EXTRA_FILE: 1, Code.SPLIT: 1}
    assert {p.where.split(" ")[0] for p in result.problems} > {"tokens/train/00000.bin", "tokens/val/00000.idx"}
    assert [line.split(":")[0] for line in result.skipped[:2]] == [
        "the contents of tokens/train/00000",
        "the contents of tokens/val/00000",
    ]


# ---- what checksums do not show


class Files:
    """Changes an output's files in ways that leave them readable."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")

    def path(self, split: str, shard: int, suffix: str) -> Path:
        return self.out / "tokens" / split / f"{shard:05d}.{suffix}"

    def tokens(self, split: str, shard: int, change: Callable[[np.ndarray], object]) -> None:
        path = self.path(split, shard, "bin")
        ids = np.fromfile(path, dtype="<u2")
        change(ids)
        ids.tofile(path)

    def rows(self, split: str, shard: int, change: Callable[[list], object], schema: pa.Schema = DOCUMENT_SCHEMA) -> None:
        path = self.path(split, shard, "parquet")
        rows = pq.read_table(path).to_pylist()
        changed = change(rows)
        rows = changed if isinstance(changed, list) else rows
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd", row_group_size=ROW_GROUP)

    def index(self, split: str, shard: int, change: Callable[[bytearray], object]) -> None:
        path = self.path(split, shard, "idx")
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    def json(self, name: str, change: Callable[[dict], object]) -> None:
        path = self.out / name
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(pretty_json(entry))

    def lines(self, name: str, change: Callable[[list], object]) -> None:
        path = self.out / name
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        change(entries)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        unit = f"commits/{path.stem}.json"
        self.json(unit, lambda e: e["payload"]["rejects"].update(bytes=path.stat().st_size, sha256=sha256_file(path)))


def forge(out: Path, change: Callable[[Files], object], *, checksums_of: str = "") -> None:
    """Change files, and make every checksum and digest fit (of one shard only: ``checksums_of``)."""
    change(Files(out))
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["files"].values():
        entry.update(bytes=(out / entry["name"]).stat().st_size, sha256=sha256_file(out / entry["name"]))
    for split, whole in manifest["splits"].items():
        for number, one in enumerate(whole["shards"]):
            for entry in one["files"].values():
                file = out / "tokens" / split / entry["name"]
                if file.exists() and f"tokens/{split}/{number:05d}".startswith(checksums_of):
                    entry.update(bytes=file.stat().st_size, sha256=sha256_file(file))
    manifest |= {name: folder_digest(out / name) for name in ("commits", "rejects")}
    path.write_text(record_json(manifest))
    for plan in (out / "packs").glob("*/*/plan.json"):
        entry = json.loads(plan.read_text())
        entry["shards"] = _fingerprint(manifest, entry["split"])
        for name, file in entry["files"].items():
            file.update(bytes=(plan.parent / name).stat().st_size, sha256=sha256_file(plan.parent / name))
        plan.write_text(record_json(entry))
        rows = plan.parent / "rows" / "rows.json"
        if rows.exists():
            entry = json.loads(rows.read_text())
            for name, file in entry["files"].items():
                file.update(bytes=(rows.parent / name).stat().st_size, sha256=sha256_file(rows.parent / name))
            rows.write_text(record_json(entry | {"plan": sha256_file(plan)}))


def _fingerprint(manifest: dict, split: str) -> str:
    """As :attr:`tokkit.shards.native.TokenShards.fingerprint`, of shards that may not be readable any more."""
    shards = manifest["splits"].get(split, {"shards": []})["shards"]
    text = "".join(shard["files"][suffix]["sha256"] for shard in shards for suffix in ("bin", "parquet"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def span_of(row: dict, modality: str) -> dict:
    return next(s for s in row["spans"] if s["modality"] == modality)


def first_with(files: Files, modality: str) -> tuple[int, dict, int]:
    """Shard of train, row and first token of a document with such a span."""
    for number in range(99):
        at = 0
        for row in pq.read_table(files.path("train", number, "parquet")).to_pylist():
            if any(s["modality"] == modality for s in row["spans"]):
                return number, row, at
            at += row["tokens"]
    raise AssertionError


def put(modality: str, offset: int, token: Callable[[UnifiedVocabulary], int]) -> Callable[[Files], None]:
    """Put a token into the first span of a modality."""

    def change(files: Files) -> None:
        number, row, at = first_with(files, modality)
        place = at + span_of(row, modality)["start"] + offset
        files.tokens("train", number, lambda ids: ids.__setitem__(place, token(files.vocabulary)))

    return change


def in_span(kind: str, **values: object) -> Callable[[Files], None]:
    """Change fields of the first span of a modality; a function is given the old value."""

    def change(files: Files) -> None:
        number, row, _ = first_with(files, kind)

        def rows(found: list) -> None:
            span = span_of(next(r for r in found if r["locator"] == row["locator"]), kind)
            span.update({k: v(span[k]) if callable(v) else v for k, v in values.items()})

        files.rows("train", number, rows)

    return change


def rewrite(files: Files, split: str, number: int, order: Callable[[int], list[int]]) -> None:
    """Write a shard's documents in another order, or some again or not at all, all three files and the manifest in accord."""
    rows = pq.read_table(files.path(split, number, "parquet")).to_pylist()
    ids = np.fromfile(files.path(split, number, "bin"), dtype="<u2")
    ends = np.cumsum([r["tokens"] for r in rows])
    chosen = order(len(rows))
    np.concatenate([ids[ends[i] - rows[i]["tokens"] : ends[i]] for i in chosen]).tofile(files.path(split, number, "bin"))
    files.rows(split, number, lambda _: [rows[i] for i in chosen])
    lengths = np.array([rows[i]["tokens"] for i in chosen])
    files.path(split, number, "idx").write_bytes(index_bytes(lengths, np.dtype(np.uint16)))

    def manifest(entry: dict) -> None:
        shard = entry["splits"][split]["shards"][number]
        for key, now in (("documents", len(chosen)), ("tokens", int(lengths.sum()))):
            entry["splits"][split][key] += now - shard[key]
            shard[key] = now

    files.json("manifest.json", manifest)


def document_twice(files: Files) -> None:
    """Written twice by one unit, and counted so everywhere."""
    rewrite(files, "train", 0, lambda n: [0, *range(n)])
    row = pq.read_table(files.path("train", 0, "parquet")).to_pylist()[0]
    kinds = {m: sum(s["length"] for s in row["spans"] if s["modality"] == m) for m in ("text", "image")}
    kinds["marker"] = 2
    pictures = sum(s["modality"] == "image" for s in row["spans"])

    def add(counts: dict, key: str, number: int) -> None:
        if number:
            counts[key] = counts.get(key, 0) + number

    def commit(entry: dict) -> None:
        split = entry["splits"]["train"]
        split["documents"] += 1
        split["tokens"] += row["tokens"]
        for kind, number in kinds.items():
            add(split["tokens_by_kind"], kind, number)
        entry["documents"]["committed"] += 1
        entry["counted_documents"] += 1
        if pictures:
            add(entry["items"]["image"], "committed", pictures)
            add(entry["counted_items"], "image", pictures)

    files.json(f"commits/{row['unit']:05d}.json", commit)

    def manifest(entry: dict) -> None:
        for kind, number in kinds.items():
            add(entry["splits"]["train"]["tokens_by_kind"], kind, number)
        source = next(s for s in entry["sources"] if s["name"] == row["source"])
        source["counted_documents"] += 1
        for whole in (source, entry):
            whole["documents"]["committed"] += 1
            if pictures:
                add(whole["items"]["image"], "committed", pictures)
        if pictures:
            add(source["counted_items"], "image", pictures)

    files.json("manifest.json", manifest)


def rejected_and_committed(files: Files) -> None:
    """A reject line is given the name of a document that was committed."""
    name = next(
        p.name
        for p in sorted((files.out / "rejects").iterdir())
        if '"level": "document"' in p.read_text() and '"source": "pairs"' in p.read_text()
    )
    row = next(r for r in pq.read_table(files.path("train", 0, "parquet")).to_pylist() if r["source"] == "pairs")
    files.lines(f"rejects/{name}", lambda ls: next(x for x in ls if x["level"] == "document").update(locator=row["locator"]))


def index_field(place: str, number: int, value: int) -> Callable[[Files], None]:
    """Change one number of the index of the first train shard; ``place`` is lengths, pointers or borders."""

    def change(files: Files) -> None:
        def edit(data: bytearray) -> None:
            count = HEADER.unpack_from(data)[3]
            at = HEADER.size + {"lengths": 0, "pointers": 4 * count, "borders": 12 * count}[place]
            dtype = "<i4" if place == "lengths" else "<i8"
            array = np.frombuffer(data, dtype, count, at)
            array[number] += value

        files.index("train", 0, edit)

    return change


def other_hashes(files: Files) -> None:
    """Documents of val get a hash that train has."""
    files.rows("val", 0, lambda rows: [r | {"hash": "0" * 32} for r in rows])


def columns(schema: pa.Schema) -> Callable[[Files], None]:
    return lambda files: files.rows("train", 0, lambda rows: [{k: r[k] for k in schema.names} for r in rows], schema)


def plan_array(name: str, change: Callable[[np.ndarray], object]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        path = files.out / "packs" / "seq64-overlong" / "train" / f"{name}.npy"
        array = np.load(path)
        change(array)
        np.save(path, array)

    return edit


def rows_array(files: Files) -> None:
    path = files.out / "packs" / "rows" / "train" / "rows" / "rows.bin"
    ids = np.fromfile(path, dtype="<u2")
    ids[3] += 1
    ids.tofile(path)


def commit(unit: int, change: Callable[[dict], object]) -> Callable[[Files], None]:
    return lambda files: files.json(f"commits/{unit:05d}.json", change)


def manifest(change: Callable[[dict], object]) -> Callable[[Files], None]:
    return lambda files: files.json("manifest.json", change)


def other_vocabulary(files: Files) -> None:
    """The manifest names it too; the tokens are still those of the first."""
    vocabulary = UnifiedVocabulary.build(390, [files.vocabulary.block("image").size])
    vocabulary.save(files.out / "vocabulary.json")
    fields = {"vocabulary_size": vocabulary.size, "vocabulary_fingerprint": vocabulary.fingerprint}
    files.json("manifest.json", lambda e: e.update(fields))


FIRST_REJECTS: Callable[[Files], str] = lambda files: f"rejects/{min((files.out / 'rejects').iterdir()).name}"  # noqa: E731

FORGED: dict[str, tuple[Callable[[Files], object], Code]] = {
    "an id outside of the vocabulary": (put("text", 0, lambda v: v.size + 7), Code.ID_RANGE),
    "an unused id": (put("image", 3, lambda v: v.size - 1), Code.ID_RANGE),
    "text in a picture": (put("image", 3, lambda v: 5), Code.ID_RANGE),
    "a picture's code in text": (put("text", 0, lambda v: int(v.encode("image", 3))), Code.ID_RANGE),
    "a marker in text": (put("text", 0, lambda v: v.marker("begin_image")), Code.ID_RANGE),
    "no begin of a picture": (put("image", 0, lambda v: v.marker("end_image")), Code.SPAN),
    "no begin of the document": (lambda f: f.tokens("train", 0, lambda ids: ids.__setitem__(0, 5)), Code.SPAN),
    "no end of the document": (lambda f: f.tokens("val", 0, lambda ids: ids.__setitem__(-1, 5)), Code.SPAN),
    "another vocabulary in both places": (other_vocabulary, Code.SPAN),
    "a span that begins later": (in_span("text", start=lambda n: n + 1), Code.SPAN),
    "a span that is too long": (in_span("text", length=lambda n: n + 1), Code.SPAN),
    "a span that is huge": (in_span("image", length=1 << 60), Code.SPAN),
    "a span of negative length": (in_span("image", length=-5), Code.SPAN),
    "a span before the document": (in_span("image", start=-100), Code.SPAN),
    "a span of another modality": (in_span("image", modality="text"), Code.SPAN),
    "a span of a modality without codes": (in_span("image", modality="video"), Code.SPAN),
    "a span of no modality": (in_span("image", modality="smell"), Code.SPAN),
    "a picture of another grid": (in_span("image", grid_width=99), Code.SPAN),
    "a picture of a huge grid": (in_span("image", grid_width=32767, grid_height=32767), Code.SPAN),
    "a picture of two codebooks": (in_span("image", codebooks=2), Code.SPAN),
    "a picture of nothing": (in_span("image", item_hash=""), Code.SPAN),
    "a text with a grid": (in_span("text", grid_height=1), Code.SPAN),
    "no spans": (lambda f: f.rows("train", 0, lambda rows: rows[0].update(spans=[])), Code.SPAN),
    "a length in the index": (index_field("lengths", 0, 1), Code.INDEX_MISMATCH),
    "a byte offset in the index": (index_field("pointers", 1, 2), Code.INDEX_MISMATCH),
    "a border in the index": (index_field("borders", 1, 1), Code.INDEX_MISMATCH),
    "an index of another dtype": (lambda f: f.index("train", 0, lambda d: d.__setitem__(17, 4)), Code.INDEX_MISMATCH),
    "an index of another version": (lambda f: f.index("train", 0, lambda d: d.__setitem__(9, 2)), Code.UNREADABLE),
    "an index that is none": (lambda f: f.path("train", 0, "idx").write_bytes(b"no index"), Code.UNREADABLE),
    "an index of fewer documents": (
        lambda f: f.path("train", 0, "idx").write_bytes(index_bytes(np.array([10, 20]), np.dtype(np.uint16))),
        Code.INDEX_MISMATCH,
    ),
    "tokens that are missing": (
        lambda f: f.path("train", 0, "bin").write_bytes(f.path("train", 0, "bin").read_bytes()[:-20]),
        Code.INDEX_MISMATCH,
    ),
    "half a token": (lambda f: f.path("train", 0, "bin").open("ab").write(b"x"), Code.UNREADABLE),
    "a table that is none": (lambda f: f.path("train", 0, "parquet").write_bytes(b"PAR1" * 9), Code.UNREADABLE),
    "a table of text": (lambda f: f.path("train", 0, "parquet").write_text("id,source\n"), Code.UNREADABLE),
    "a token count in the table": (
        lambda f: f.rows("train", 0, lambda r: r[0].update(tokens=r[0]["tokens"] + 1)),
        Code.INDEX_MISMATCH,
    ),
    "a negative token count": (lambda f: f.rows("train", 0, lambda r: r[0].update(tokens=-1)), Code.INDEX_MISMATCH),
    "rows in another order": (lambda f: f.rows("train", 0, lambda rows: rows[::-1]), Code.INDEX_MISMATCH),
    "a row that is missing": (lambda f: f.rows("train", 0, lambda rows: rows[1:]), Code.INDEX_MISMATCH),
    "a row twice": (lambda f: f.rows("train", 0, lambda rows: [rows[0], *rows]), Code.INDEX_MISMATCH),
    "a column that is missing": (columns(DOCUMENT_SCHEMA.remove(0)), Code.TABLE),
    "a column of another type": (columns(DOCUMENT_SCHEMA.set(3, pa.field("unit", pa.int64(), nullable=False))), Code.TABLE),
    "row groups of another size": (
        lambda f: pq.write_table(pq.read_table(f.path("train", 0, "parquet")), f.path("train", 0, "parquet"), row_group_size=3),
        Code.TABLE,
    ),
    "documents in another order": (lambda f: rewrite(f, "train", 0, lambda n: list(range(n))[::-1]), Code.ORDER),
    "a document that is missing": (lambda f: rewrite(f, "train", 0, lambda n: list(range(1, n))), Code.OUTCOMES),
    "a document instead of another": (lambda f: rewrite(f, "train", 0, lambda n: [1, *range(1, n)]), Code.DUPLICATE_DOCUMENT),
    "a document twice, counted so": (document_twice, Code.DUPLICATE_DOCUMENT),
    "a document rejected and committed": (rejected_and_committed, Code.DUPLICATE_DOCUMENT),
    "a document of another source": (lambda f: f.rows("train", 0, lambda r: r[0].update(source="texts")), Code.ORDER),
    "a document of another file": (lambda f: f.rows("train", 0, lambda r: r[0].update(locator="elsewhere#1")), Code.ORDER),
    "a document of a unit that is not": (lambda f: f.rows("train", 0, lambda r: r[0].update(unit=99)), Code.ORDER),
    "a document of another unit": (lambda f: f.rows("train", 0, lambda r: r[0].update(unit=r[0]["unit"] + 1)), Code.ORDER),
    "a document of another split": (lambda f: f.rows("val", 0, lambda r: r[0].update(split="train")), Code.SPLIT),
    "documents that belong to train": (other_hashes, Code.SPLIT),
    "a hash that is none": (lambda f: f.rows("train", 0, lambda r: r[0].update(hash="?")), Code.SPLIT),
    "a commit of another unit": (commit(1, lambda e: e["unit"].update(index=2)), Code.COMMIT),
    "a commit with a field too many": (commit(1, lambda e: e.update(mine=1)), Code.COMMIT),
    "a commit that is a list": (lambda f: (f.out / "commits" / "00001.json").write_text("[]"), Code.COMMIT),
    "a commit without payload": (commit(1, lambda e: e["payload"].pop("bin")), Code.COMMIT),
    "a commit of more documents": (commit(0, lambda e: e["documents"].update(committed=99)), Code.OUTCOMES),
    "a commit of fewer pictures": (commit(0, lambda e: e["items"]["image"].update(committed=0)), Code.OUTCOMES),
    "a commit of other tokens": (commit(0, lambda e: e["splits"]["train"].update(tokens=7)), Code.OUTCOMES),
    "a commit of tokens of another kind": (
        commit(0, lambda e: e["splits"]["train"]["tokens_by_kind"].update(text=0)),
        Code.OUTCOMES,
    ),
    "a commit of another numeric environment": (commit(0, lambda e: e.update(numeric="0" * 64)), Code.FINGERPRINT),
    "a census that says more": (commit(0, lambda e: e.update(counted_documents=1000)), Code.OUTCOMES),
    "a census of more pictures": (commit(0, lambda e: e["counted_items"].update(image=1000)), Code.OUTCOMES),
    "a reject line that is missing": (lambda f: f.lines(FIRST_REJECTS(f), lambda lines: lines.pop()), Code.OUTCOMES),
    "a reject line twice": (lambda f: f.lines(FIRST_REJECTS(f), lambda lines: lines.append(lines[-1])), Code.OUTCOMES),
    "a reject of another reason": (lambda f: f.lines(FIRST_REJECTS(f), lambda x: x[0].update(reason="mood")), Code.OUTCOMES),
    "a reject of another outcome": (lambda f: f.lines(FIRST_REJECTS(f), lambda x: x[0].update(outcome="lost")), Code.OUTCOMES),
    "a reject of another source": (lambda f: f.lines(FIRST_REJECTS(f), lambda x: x[0].update(source="moon")), Code.REJECTS),
    "a reject without a level": (lambda f: f.lines(FIRST_REJECTS(f), lambda x: x[0].pop("level")), Code.REJECTS),
    "a reject that is a number": (lambda f: f.lines(FIRST_REJECTS(f), lambda x: x.insert(0, 5)), Code.REJECTS),  # type: ignore[arg-type]
    "totals of the manifest": (manifest(lambda e: e["documents"].update(committed=1)), Code.OUTCOMES),
    "items of the manifest": (manifest(lambda e: e["items"]["image"].update(committed=1)), Code.OUTCOMES),
    "totals of a source": (manifest(lambda e: e["sources"][0]["documents"].update(committed=1)), Code.OUTCOMES),
    "a source's own count": (manifest(lambda e: e["sources"][0].update(counted_documents=1)), Code.OUTCOMES),
    "a source that is missing": (manifest(lambda e: e["sources"].pop(0)), Code.OUTCOMES),
    "container errors": (manifest(lambda e: e.update(container_errors=1)), Code.OUTCOMES),
    "totals of a split": (manifest(lambda e: e["splits"]["val"].update(documents=1)), Code.OUTCOMES),
    "tokens by kind": (manifest(lambda e: e["splits"]["val"]["tokens_by_kind"].update(image=1)), Code.OUTCOMES),
    "a shard that is left out": (manifest(lambda e: e["splits"]["train"]["shards"].pop()), Code.OUTCOMES),
    "a split that is left out": (manifest(lambda e: e["splits"].pop("val")), Code.OUTCOMES),
    "fewer units": (manifest(lambda e: e.update(units=e["units"] - 1)), Code.OUTCOMES),
    "more units": (manifest(lambda e: e.update(units=e["units"] + 1)), Code.MISSING_FILE),
    "units without number": (manifest(lambda e: e.update(units=-1)), Code.MANIFEST),
    "a dtype that is none": (manifest(lambda e: e.update(dtype="float7")), Code.MANIFEST),
    "another dtype": (manifest(lambda e: e.update(dtype="int32")), Code.VOCABULARY),
    "a layout that is none": (manifest(lambda e: e["layout"].update(image="spiral")), Code.MANIFEST),
    "another layout": (manifest(lambda e: e["layout"].update(image="rows")), Code.SPAN),
    "a split called otherwise": (manifest(lambda e: e["splits"].update(test=e["splits"].pop("val"))), Code.MANIFEST),
    "a file from elsewhere": (
        manifest(lambda e: e["splits"]["val"]["shards"][0]["files"]["bin"].update(name="../train/00000.bin")),
        Code.MANIFEST,
    ),
    "another version": (manifest(lambda e: e.update(version=9)), Code.MANIFEST),
    "no checksum of the vocabulary": (manifest(lambda e: e["files"].pop("vocabulary.json")), Code.MANIFEST),
    "a seed that was not": (manifest(lambda e: e["semantic"].update(seed=5)), Code.FINGERPRINT),
    "a batch size that was not": (manifest(lambda e: e["numeric"].update(batch_size=5)), Code.FINGERPRINT),
    "components of the configuration": (
        lambda f: f.json("config.json", lambda e: e["semantic"].update(seed=5)),
        Code.FINGERPRINT,
    ),
    "a configuration that is a list": (lambda f: (f.out / "config.json").write_text("[]"), Code.UNREADABLE),
    "a vocabulary that claims an id twice": (
        lambda f: f.json("vocabulary.json", lambda e: e["markers"].update(padding=0)),
        Code.VOCABULARY,
    ),
    "a vocabulary of another size": (lambda f: f.json("vocabulary.json", lambda e: e.update(size=70000)), Code.VOCABULARY),
    "a vocabulary without blocks": (lambda f: f.json("vocabulary.json", lambda e: e.update(blocks=[])), Code.VOCABULARY),
    "a vocabulary of strange blocks": (lambda f: f.json("vocabulary.json", lambda e: e.update(blocks=[5])), Code.VOCABULARY),
    "a plan with a piece twice": (plan_array("piece_document", lambda a: a.__setitem__(0, a[a != a[0]][0])), Code.PACK),
    "a plan of documents that are not": (plan_array("piece_document", lambda a: a.__setitem__(0, 1 << 40)), Code.PACK),
    "a plan with a piece cut": (plan_array("piece_length", lambda a: a.__setitem__(0, a[0] - 1)), Code.PACK),
    "a plan with pieces that overlap": (
        plan_array("piece_start", lambda a: a.__setitem__(int(np.argmax(a > 0)), a[np.argmax(a > 0)] - 1)),
        Code.PACK,
    ),
    "a plan beyond a document": (plan_array("piece_length", lambda a: a.__setitem__(0, 1 << 30)), Code.PACK),
    "a plan before a document": (plan_array("piece_start", lambda a: a.__setitem__(0, -1)), Code.PACK),
    "a plan with packs in disorder": (plan_array("pack_offsets", lambda a: a.__setitem__(1, a[2])), Code.PACK),
    "a plan with packs too full": (
        lambda f: [f.json(f"packs/{n}/train/plan.json", lambda e: e.update(seq_len=40)) for n in ("seq64-overlong",)],
        Code.PACK,
    ),
    "a plan with other counts": (
        lambda f: f.json("packs/seq64-overlong/train/plan.json", lambda e: e["counts"].update(padding=0)),
        Code.PACK,
    ),
    "a plan of another name": (lambda f: f.json("packs/rows/train/plan.json", lambda e: e.update(name="mine")), Code.PACK),
    "rows of other tokens": (rows_array, Code.PACK),
}


@pytest.mark.parametrize("what", FORGED)
def test_damage_that_checksums_do_not_show_is_found(out: Path, what: str) -> None:
    change, code = FORGED[what]
    forge(out, change)
    result = look(out)
    assert code in result.counts, result.problems
    assert not set(result.counts) & {Code.CHECKSUM, Code.SIZE}  # the forgery is a good one
    assert all(p.where and p.message for p in result.problems)
    look(out, checksums=False, decode_at_most=0)


@pytest.mark.parametrize("what", [w for w, (_, code) in FORGED.items() if code in (Code.ID_RANGE, Code.SPAN)])
def test_what_is_wrong_with_a_document_is_told_with_its_name(out: Path, what: str) -> None:
    forge(out, FORGED[what][0])
    problem = next(p for p in look(out, decode_at_most=0).problems if p.code == FORGED[what][1])
    assert problem.where.startswith(("train document", "val document"))
    assert problem.where.endswith(")")


def test_the_decoders_grammar_finds_wrong_ids_by_itself(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.pipelines.verify_spans import SpanChecker

    def nothing(*_: object) -> Iterator[object]:
        return iter(())

    monkeypatch.setattr(SpanChecker, "check", nothing)
    forge(out, put("image", 3, lambda v: 5))
    assert Code.GRAMMAR in look(out).counts


def test_problems_are_counted_all_and_listed_up_to_a_bound(out: Path) -> None:
    forge(out, lambda files: [files.rows("train", n, lambda rows: [r | {"hash": "?"} for r in rows]) for n in (0, 1)])
    result = look(out)
    documents = sum(s.documents for s in load_manifest(out).splits["train"].shards[:2])
    assert result.counts[Code.SPLIT] == documents > 20
    assert len([p for p in result.problems if p.code == Code.SPLIT]) == 20


def test_the_records_are_readable_by_the_program_that_wrote_them(out: Path) -> None:
    """What forge() does to an undamaged output is no damage: otherwise its tests would pass for nothing."""
    forge(out, lambda files: None)
    assert look(out).ok
    assert CommitRecord.model_validate_json((out / "commits" / "00000.json").read_text())
    assert open_shards(out).num_documents
