"""``tokkit remove``: a new version without some documents, which adds up and whose other documents are what they were."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_corpus import snapshot, write_corpus, write_tokenizers
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import DataError, UsageError, VerificationError
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.remove import RemoveConfig, RemoveResult, remove
from tokkit.pipelines.remove_list import Matcher, read_names
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import VerifyConfig, VerifyResult, verify
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import open_shards

SILENT = SilentProgress()
GONE_URLS = ["https://example.org/3", "https://example.org/8"]
GONE_PAIRS = ["000000001", "000000012"]


@dataclass(frozen=True)
class World:
    """A finished output, its options, and a folder for new versions."""

    out: Path
    options: dict[str, object]
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("remove")
    corpus = write_corpus(folder / "corpus").folder
    text, image = write_tokenizers(folder / "tokenizers")
    (corpus / "texts" / "again.jsonl").write_text(
        "".join(json.dumps({"id": f"a{n}", "text": t}) + "\n" for n, t in enumerate(["one and the same"] * 2 + ["another"]))
    )
    options: dict[str, object] = {
        "inputs": [str(corpus / name) for name in ("pairs", "documents", "texts", "audio")],
        "text_tokenizer": text,
        "image_tokenizer": image,
        "unit_bytes": 6000,
        "batch_size": 4,
        "workers": 0,
        "seed": 3,
        "val_fraction": 0.2,
        "shard_tokens": 1500,
        "pack": 64,
        "dedup": ["documents"],
        "metadata": ["url", "n"],
        "report_documents": 2,
    }
    shard(ShardConfig.model_validate(options | {"out": folder / "out"}), SILENT)
    rows = {"directory": folder / "out", "seq_len": 60, "name": "rows", "split_policy": "never", "materialize": True}
    pack(PackConfig.model_validate(rows), SILENT)
    return World(folder / "out", options, folder)


def taken(world: World, tmp_path: Path, names: list[str], **more: object) -> RemoveResult:
    """A version without the documents of these names."""
    listed = tmp_path / "names.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    config = {"directory": world.out, "out": tmp_path / "new", "lists": (listed,)} | more
    return remove(RemoveConfig.model_validate(config), SILENT)


def documents(out: Path) -> dict[str, dict[str, tuple[dict[str, object], list[int]]]]:
    """By split and name, every document's row and tokens, in order."""
    found: dict[str, dict[str, tuple[dict[str, object], list[int]]]] = {}
    for split in load_manifest(out).splits:
        shards = open_shards(out, split)
        rows = ((shards.row(n), shards.tokens(n).tolist()) for n in range(shards.num_documents))
        found[split] = {f"{row['source']}/{row['locator']}": (row, tokens) for row, tokens in rows}
    return found


def verified(out: Path, **more: object) -> VerifyResult:
    return verify(VerifyConfig.model_validate({"directory": out} | more), SILENT)


def test_what_is_named_is_gone_and_all_else_is_as_it_was(world: World, tmp_path: Path) -> None:
    before = snapshot(world.out)
    result = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS])
    assert snapshot(world.out) == before
    there, left = documents(world.out), documents(result.out)
    gone = {
        name
        for split in there.values()
        for name, (row, _) in split.items()
        if row["id"] in [*GONE_URLS, *GONE_PAIRS] or json.loads(str(row["metadata"] or "{}")).get("url") in GONE_URLS
    }
    assert len(gone) == 4
    assert result.removal.documents == 4
    assert result.unmatched == []
    for split, rows in there.items():
        assert list(left[split].items()) == [(name, found) for name, found in rows.items() if name not in gone]
    assert result.removal.tokens == sum(len(t) for rows in there.values() for name, (_, t) in rows.items() if name in gone)


def test_the_new_version_is_verified_and_encodes_again(world: World, tmp_path: Path) -> None:
    result = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS])
    found = verified(result.out, reencode=30)
    assert found.problem_count == 0, found.problems
    assert not found.skipped


def test_every_removed_document_and_item_has_its_line(world: World, tmp_path: Path) -> None:
    result = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS])
    lines = [json.loads(line) for path in sorted((result.out / "rejects").iterdir()) for line in path.read_text().splitlines()]
    mine = [line for line in lines if line["reason"] == "removed"]
    assert sorted(line["id"] for line in mine if line["level"] == "document") == sorted([*GONE_URLS, *GONE_PAIRS])
    assert {line["outcome"] for line in mine} == {"filtered"}
    # Document 3 has places 0 to 4, pictures at 0, 2 and 4, and the one at place 2 was lost before: it has its own line.
    of_three = [line for line in lines if line["level"] == "item" and line["id"] == GONE_URLS[0]]
    assert sorted((line["item"], line["reason"]) for line in of_three) == [
        (0, "removed"),
        (1, "image-not-found"),
        (2, "removed"),
    ]
    manifest, old = load_manifest(result.out), load_manifest(world.out)
    assert manifest.documents["filtered"] == old.documents.get("filtered", 0) + 4
    assert sum(manifest.documents.values()) == sum(old.documents.values())
    assert sum(manifest.items["image"].values()) == sum(old.items["image"].values())
    assert manifest.removals == [result.removal]
    assert result.removal.of == old.digest


def test_its_tokens_are_those_of_a_run_that_filtered_the_documents(world: World, tmp_path: Path) -> None:
    numbers = ["3", "9", "14"]
    options = world.options | {"where": [f"n != {n}" for n in numbers], "shard_tokens": 10**9, "pack": None, "dedup": []}
    pairs = {"inputs": world.options["inputs"][:1]}  # type: ignore[index]
    shard(ShardConfig.model_validate(options | pairs | {"out": tmp_path / "filtered"}), SILENT)
    shard(ShardConfig.model_validate(options | pairs | {"where": [], "out": tmp_path / "all"}), SILENT)
    listed = tmp_path / "n.jsonl"
    listed.write_text("".join(json.dumps({"number": n}) + "\n" for n in numbers))
    asked = {"directory": tmp_path / "all", "out": tmp_path / "new", "lists": (listed,), "column": "number", "fields": ("n",)}
    remove(RemoveConfig.model_validate(asked), SILENT)
    for split in ("train", "val"):
        for suffix in ("bin", "idx", "parquet"):
            mine, other = (tmp_path / name / "tokens" / split / f"00000.{suffix}" for name in ("new", "filtered"))
            assert mine.read_bytes() == other.read_bytes(), (split, suffix)


def test_shards_that_lose_nothing_are_the_same_files_and_empty_ones_are_gone(world: World, tmp_path: Path) -> None:
    train = load_manifest(world.out).splits["train"].shards
    assert len(train) > 2
    whole = open_shards(world.out, "train")
    first = [str(whole.row(n)["locator"]) for n in range(train[0].documents)]
    result = taken(world, tmp_path, first)
    left = load_manifest(result.out).splits["train"].shards
    assert [shard.documents for shard in left] == [shard.documents for shard in train[1:]]
    for number in range(len(left)):
        for suffix in ("bin", "idx", "parquet"):
            new = result.out / "tokens" / "train" / f"{number:05d}.{suffix}"
            assert new.samefile(world.out / "tokens" / "train" / f"{number + 1:05d}.{suffix}")
    assert verified(result.out).problem_count == 0


def test_plans_and_report_are_made_anew(world: World, tmp_path: Path) -> None:
    result = taken(world, tmp_path, GONE_PAIRS)
    assert sorted(result.packs) == ["rows", "seq64-overlong"]
    assert (result.out / "packs" / "rows" / "train" / "rows" / "rows.bin").exists()
    assert "removed" in (result.out / "report.html").read_text()


def test_a_version_of_a_version(world: World, tmp_path: Path) -> None:
    first = taken(world, tmp_path, GONE_PAIRS)
    (tmp_path / "more.csv").write_text("\ufeffurl,why\n" + "".join(f'{url},"a, b"\n' for url in GONE_URLS), encoding="utf-8")
    asked = {"directory": first.out, "out": tmp_path / "newer", "lists": (tmp_path / "more.csv",)}
    second = remove(RemoveConfig.model_validate(asked), SILENT)
    at_once = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS], out=tmp_path / "at-once")
    assert documents(second.out) == documents(at_once.out)
    assert [entry.documents for entry in load_manifest(second.out).removals] == [2, 2]
    assert verified(second.out).problem_count == 0
    again = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS], out=tmp_path / "x", directory=first.out)
    assert again.elsewhere == {"filtered": 2}
    assert again.removal.documents == 2


def test_a_duplicate_names_its_original_where_asked(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of documents that were not committed: nothing to remove"):
        taken(world, tmp_path, ["a1"])
    kept = taken(world, tmp_path, ["a1", "a2"])
    assert (kept.removal.documents, kept.elsewhere, kept.kept_originals) == (1, {"duplicate": 1}, 1)
    result = taken(world, tmp_path, ["a1", "a2"], originals=True, out=tmp_path / "with")
    assert (result.removal.documents, result.kept_originals) == (2, 0)
    assert verified(result.out).problem_count == 0  # the duplicate's line still names what was removed


def test_by_content_hash_item_hash_and_full_locator(world: World, tmp_path: Path) -> None:
    rows = {name: row for split in documents(world.out).values() for name, (row, _) in split.items()}
    pair, text, other = (next(n for n in rows if n.startswith(source)) for source in ("pairs/", "texts/", "documents/"))
    item = next(span["item_hash"] for span in rows[pair]["spans"] if span["modality"] == "image")  # type: ignore[attr-defined]
    result = taken(world, tmp_path, [item, str(rows[text]["hash"]), other])
    left = {name for split in documents(result.out).values() for name in split}
    assert rows.keys() - left == {pair, text, other}


def test_names_that_stand_for_nothing_are_told(world: World, tmp_path: Path) -> None:
    names = [*GONE_PAIRS, "https://example.org/none", "0000"]
    result = taken(world, tmp_path, names)
    assert result.unmatched == ["0000", "https://example.org/none"]
    assert (result.out / "run" / "unmatched.txt").read_text() == "0000\nhttps://example.org/none\n"
    with pytest.raises(DataError, match=r"'0000', 'https://example\.org/none' stand for no document"):
        taken(world, tmp_path, names, strict=True, out=tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["in-coalesce", "before-manifest", "before-payload-rename:2"])
def test_a_removal_that_is_killed_is_gone_on_with(world: World, tmp_path: Path, point: str) -> None:
    listed = tmp_path / "all.txt"
    listed.write_text("\n".join([*GONE_URLS, *GONE_PAIRS]))
    command = [sys.executable, "-m", "tokkit.cli.main", "remove", str(world.out), "--list", str(listed), "--out"]
    command += [str(tmp_path / "new"), "--quiet"]
    killed = subprocess.run(command, env=os.environ | {"TOKKIT_FAILPOINT": point}, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "new" / "manifest.json").exists()
    with pytest.raises(UsageError, match="is another removal"):
        taken(world, tmp_path, GONE_PAIRS)
    subprocess.run(command, check=True, capture_output=True)
    undisturbed = taken(world, tmp_path, [*GONE_URLS, *GONE_PAIRS], out=tmp_path / "undisturbed")
    assert snapshot(tmp_path / "new") == snapshot(undisturbed.out)
    assert subprocess.run(command, capture_output=True).returncode == 0  # it is complete, which is no error


def test_damage_gets_no_good_checksum(world: World, tmp_path: Path) -> None:
    damaged = shutil.copytree(world.out, tmp_path / "damaged")
    rows = documents(world.out)["train"]
    path = damaged / "tokens" / "train" / "00000.bin"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    name = str(next(iter(rows.values()))[0]["locator"])
    with pytest.raises(VerificationError, match=r"00000\.bin is damaged"):
        taken(world, tmp_path, [name], directory=damaged)


def test_what_cannot_be_is_told(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="itself"):
        taken(world, tmp_path, GONE_PAIRS, out=world.out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(UsageError, match="not empty"):
        taken(world, tmp_path, GONE_PAIRS, out=tmp_path / "full")
    with pytest.raises(UsageError, match="no name in"):
        taken(world, tmp_path, [""])
    pq.write_table(pa.table({"link": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="none of the columns id, url, locator, hash; say --column; there are: link"):
        read_names([tmp_path / "t.parquet"])
    assert read_names([tmp_path / "t.parquet"], "link") == {"x"}
    (tmp_path / "bad.jsonl").write_text("{]\n")
    with pytest.raises(DataError, match="cannot be read as a list of names"):
        read_names([tmp_path / "bad.jsonl"])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="cannot be read as a list of names"):
        read_names([tmp_path / "latin.txt"])


def test_the_command(world: World, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\r\n".join([*GONE_PAIRS, "a1", "nobody"]))
    command = ["remove", str(world.out), "--list", str(tmp_path / "names.txt"), "--out", str(tmp_path / "new")]
    told = CliRunner().invoke(app, [*command, "--quiet"])
    assert told.exit_code == 0, told.output
    assert "2 documents removed" in told.output
    assert "asked for by 4 names" in told.output
    assert "--originals removes these too" in told.output
    assert "unmatched.txt lists them" in told.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json", "--quiet"]).output)
    assert found["removal"]["documents"] == 2
    assert found["unmatched"] == ["nobody"]


TEXT = st.text(st.characters(codec="utf-8"), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT, st.lists(TEXT, max_size=3)), max_size=12), st.sets(TEXT, max_size=6))
def test_only_whole_names_match(rows: list[tuple[str, str, str, str, list[str]]], names: set[str]) -> None:
    spans = pa.list_(pa.struct([("item_hash", pa.string()), ("modality", pa.string())]))
    table = pa.table(
        {
            "id": pa.array([row[0] for row in rows], pa.string()),
            "source": pa.array(["s"] * len(rows), pa.string()),
            "locator": pa.array([row[1] for row in rows], pa.string()),
            "hash": pa.array([row[2] for row in rows], pa.string()),
            "metadata": pa.array([json.dumps({"url": row[3]}) for row in rows], pa.string()),
            "spans": pa.array([[{"item_hash": h, "modality": "image"} for h in row[4]] for row in rows], spans),
        }
    )
    matcher = Matcher(names, ("url",))
    told = [{i, lo, h, url, f"s/{lo}", *items} & names for i, lo, h, url, items in rows]
    assert matcher.rows(table).tolist() == np.flatnonzero([bool(one) for one in told]).tolist()
    assert matcher.found == set().union(*told)
