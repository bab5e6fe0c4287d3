"""`tokkit inspect` and `tokkit pack` on an output in an object store: what they say of a folder, without its download."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from feature_double import DoubleConfig
from feature_double import options as feature_options
from object_store import BUCKET, Store, serve_quickly
from run_world import SILENT, World
from shard_corpus import snapshot
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.failpoints import VARIABLE
from tokkit.pipelines.features import features
from tokkit.pipelines.inspect import InspectConfig, inspect_document
from tokkit.pipelines.output import described
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.pack_stored import pack_stored

OUT = f"s3://{BUCKET}/data/out"
PREFIX = "data/out"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> Path:
    world.run(world.folder / "clean")
    return world.folder / "clean"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    yield from serve_quickly(monkeypatch, tmp_path / "temporary", tries=2)


def in_parts(store: Store, folder: str) -> None:
    """No file below a folder was read whole."""
    read = [part for method, path, part in store.requests if method == "GET" and f"{PREFIX}/{folder}/" in path]
    assert read
    assert all(part.startswith("bytes=") for part in read)


# ---- inspect


def test_a_document_is_brought_back_without_its_shards(clean: Path, store: Store, tmp_path: Path) -> None:
    store.upload(clean, PREFIX)
    for document in ("0", "val:1", "00000.tar#000000003"):
        here = inspect_document(InspectConfig(directory=clean, document=document, out=tmp_path / "here"), SILENT)
        with described(OUT) as (folder, place):
            config = InspectConfig(directory=folder, document=document, out=tmp_path / "there")
            assert asdict(inspect_document(config, SILENT, place)) == asdict(here)
            assert not (folder / "tokens").exists()
        assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")
    in_parts(store, "tokens")
    shown = CliRunner().invoke(app, ["inspect", OUT, "--json"])
    assert json.loads(shown.stdout) == json.loads(CliRunner().invoke(app, ["inspect", str(clean), "--json"]).stdout)
    assert list((tmp_path / "temporary").rglob("manifest.json")) == []


def test_an_output_that_is_none_or_not_finished_is_told_by_its_url(clean: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{OUT} holds nothing of tokkit's"), described(OUT):
        pass
    store.upload(clean, PREFIX)
    store.remove(f"{PREFIX}/manifest.json")
    shown = CliRunner().invoke(app, ["inspect", OUT])
    assert shown.exit_code == 1
    assert f"{OUT} is not finished" in shown.stderr
    assert str(tmp_path) not in shown.stderr


@pytest.mark.slow
def test_a_document_of_a_feature_cache_too(world: World, store: Store, tmp_path: Path) -> None:
    clean = tmp_path / "cache"
    features(DoubleConfig.model_validate(feature_options(world.corpus.folder, world.text, clean)), SILENT)
    store.upload(clean, PREFIX)
    for number in range(12):
        here = inspect_document(InspectConfig(directory=clean, document=str(number), out=tmp_path / "here"), SILENT)
        with described(OUT) as (folder, place):
            config = InspectConfig(directory=folder, document=str(number), out=tmp_path / "there")
            assert asdict(inspect_document(config, SILENT, place)) == asdict(here)
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")
    assert any(np.load(path).size for path in (tmp_path / "there").glob("features-*.npy"))
    in_parts(store, "features")


# ---- pack


def test_a_plan_is_made_and_uploaded(clean: Path, store: Store, tmp_path: Path) -> None:
    store.upload(clean, PREFIX)
    before = store.snapshot(PREFIX)
    options: dict[str, object] = {"seq_len": 200, "split_policy": "never"}
    told = pack_stored(OUT, options, SILENT)
    in_parts(store, "tokens")
    local = pack(PackConfig(directory=clean, seq_len=200, split_policy="never"), SILENT)  # type: ignore[arg-type]
    assert store.snapshot(PREFIX) == snapshot(clean) != before
    assert told.splits["train"].folder == f"{OUT}/packs/{local.name}/train"
    assert told.splits["train"].packs == local.splits["train"].packs
    store.requests.clear()
    assert not any(split.written for split in pack_stored(OUT, options, SILENT).splits.values())
    assert not [path for method, path, _ in store.requests if method == "PUT" and "/packs/" in path]
    assert not [name for name in store.keys(PREFIX) if name.startswith(("run/leases", "run/alive"))]
    with pytest.raises(FingerprintMismatch, match=f"{OUT}/packs/{local.name}.*is another plan"):
        pack_stored(OUT, {"seq_len": 300, "name": local.name}, SILENT)
    with pytest.raises(UsageError, match="--materialize"):
        pack_stored(OUT, options | {"materialize": True}, SILENT)


@pytest.mark.slow
def test_a_plan_whose_upload_was_killed_is_made_again(clean: Path, store: Store) -> None:
    store.upload(clean, PREFIX)
    flags = [sys.executable, "-m", "tokkit.cli.main", "pack", OUT, "--seq-len", "256", "--quiet"]
    killed = subprocess.run(flags, env=os.environ | {VARIABLE: "before-plan-record"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = {name for name in store.keys(PREFIX) if "seq256" in name}
    assert left
    assert not [name for name in left if name.endswith("plan.json")]
    done = subprocess.run([*flags, "--json"], capture_output=True, check=True)
    assert all(split["written"] for split in json.loads(done.stdout)["splits"].values())
    pack(PackConfig(directory=clean, seq_len=256), SILENT)
    assert store.snapshot(PREFIX) == snapshot(clean)


@pytest.mark.slow
def test_advice_too(clean: Path, store: Store) -> None:
    store.upload(clean, PREFIX)
    here, there = (
        CliRunner().invoke(app, ["pack", str(place), "--advise", "--seq-len", "200", "--json"]) for place in (clean, OUT)
    )
    assert there.exit_code == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout) | {"directory": OUT}
