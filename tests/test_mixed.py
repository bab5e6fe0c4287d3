"""Another numeric environment on one output: refused with the difference named, or allowed, measured and written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_world import SILENT, World
from shard_corpus import snapshot

from tokkit.cli.main import app
from tokkit.errors import DataError, FingerprintMismatch, ResumableStop
from tokkit.media.transforms import Preprocessing
from tokkit.pipelines import fingerprint, mixed
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.shard import shard, shard_part
from tokkit.pipelines.verify import Code, VerifyConfig, VerifyResult, verify
from tokkit.shards.manifest import Manifest, load_manifest
from tokkit.shards.native import open_shards
from tokkit.storage import fingerprint_of, read_json, record_json

NEW = "99.9.9"


@contextmanager
def upgraded(*, version: str = NEW, pixels: int = 0) -> Iterator[None]:
    """As if Pillow were another version, which gives other pixels where ``pixels`` is not 0."""
    real, apply = fingerprint.numeric_environment, Preprocessing.apply

    def numeric(*arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = real(*arguments)
        return found | {"packages": {**found["packages"], "pillow": version}}

    def shifted(self: Preprocessing, picture: Any) -> Any:
        return (apply(self, picture).astype(np.int16) + pixels).clip(0, 255).astype(np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokkit.pipelines.prepare.numeric_environment", numeric)
        patch.setattr("tokkit.pipelines.reencode_tokens.numeric_environment", numeric)
        if pixels:
            patch.setattr(Preprocessing, "apply", shifted)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    return world.run(world.folder / "clean")


def joined(world: World, out: Path, *, pixels: int = 0, **options: object) -> Manifest:
    """A third of the units in one environment, the others and the end in another."""
    world.part(out, 0, 3)
    with upgraded(pixels=pixels):
        return shard(world.config(out, allow_mixed=True, **options), SILENT).manifest


def checked(out: Path, **options: object) -> VerifyResult:
    return verify(VerifyConfig.model_validate({"directory": out, **options}), SILENT)


def claim(world: World, out: Path) -> None:
    """Begin a run that commits nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokkit.pipelines.shard.run_units", lambda *a, **k: None)
        shard_part(world.config(out, shard_index=0, shard_count=1), SILENT)
    assert not list((out / "commits").iterdir())


def test_an_upgrade_is_refused_and_the_difference_named(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    before = snapshot(out)
    pillow = read_json(out / "config.json")["numeric"]["packages"]["pillow"]
    with upgraded():
        with pytest.raises(FingerprintMismatch) as caught:
            world.run(out)
        assert f"  - packages.pillow: {pillow} -> {NEW}\n" in str(caught.value)
        assert "--allow-mixed" in str(caught.value)
        assert caught.value.exit_code == 1
        assert snapshot(out) == before
        with pytest.raises(FingerprintMismatch, match="another numeric environment"):
            world.run(Path(shutil.copytree(world.folder / "clean", tmp_path / "finished")))
    assert snapshot(tmp_path / "finished") == clean
    assert world.run(out) == clean


def test_another_configuration_is_refused_all_the_same(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    with upgraded(), pytest.raises(FingerprintMismatch, match="seed: 0 -> 1"):
        world.run(out, allow_mixed=True, seed=1)


def test_without_another_environment_it_changes_nothing(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    assert world.run(tmp_path / "out", allow_mixed=True) == clean
    with upgraded():  # nothing was left for it to do
        assert world.run(tmp_path / "out", allow_mixed=True) == clean


def test_an_upgrade_that_changes_nothing_agrees_in_everything(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = joined(world, out).mixed
    assert found is not None
    first = read_json(out / "config.json")
    units = {environment.fingerprint: environment.units for environment in found.environments}
    new = next(name for name in units if name != first["numeric_fingerprint"])
    assert units == {first["numeric_fingerprint"]: 5, new: 10}
    numeric = {environment.fingerprint: environment.numeric for environment in found.environments}
    assert numeric[new]["packages"]["pillow"] == NEW  # type: ignore[index]
    assert numeric[first["numeric_fingerprint"]] == first["numeric"]
    for index in range(15):
        assert read_json(out / "commits" / f"{index:05d}.json")["numeric"] == (
            new if index % 3 else first["numeric_fingerprint"]
        )
    (agreement,) = found.agreements
    assert (agreement.committed_in, agreement.encoded_again_in) == (first["numeric_fingerprint"], new)
    assert (agreement.equal_documents, agreement.equal_tokens) == (agreement.documents, agreement.tokens)
    assert agreement.equal_codes == agreement.codes > 0
    assert 10 < agreement.documents <= 64
    assert 1 <= agreement.units <= 5
    tokens = {name: digest for name, digest in snapshot(out).items() if name.startswith(("tokens/", "rejects/", "packs/"))}
    assert tokens.items() <= clean.items()
    assert len(tokens) > 10
    assert checked(out).ok
    again = checked(out, reencode=20)
    assert again.ok
    assert again.reencoded is not None
    assert 0 < again.reencoded.exact < 20
    assert any(NEW in line for line in again.reencoded.differences)


def test_the_agreement_is_what_two_whole_runs_differ_in(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade that gives other pixels; what it says is counted again from a run in each environment."""
    monkeypatch.setattr(mixed, "MOST_DOCUMENTS", 1000)
    inputs = {"inputs": world.inputs[:2]}
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    world.run(one, **inputs)
    with upgraded(pixels=3):
        world.run(two, **inputs)
    shard_part(world.config(out, **inputs, shard_index=0, shard_count=2), SILENT)
    done = {int(path.stem) for path in (out / "commits").iterdir()}
    with upgraded(pixels=3):
        found = shard(world.config(out, **inputs, allow_mixed=True), SILENT).manifest.mixed
    assert found is not None
    (agreement,) = found.agreements
    documents = equal = tokens = same = 0
    for split in ("train", "val"):
        shards = open_shards(one, split), open_shards(two, split)
        for number in range(shards[0].num_documents):
            if shards[0].row(number)["unit"] in done:
                ids = shards[0].tokens(number), shards[1].tokens(number)
                documents, tokens = documents + 1, tokens + len(ids[0])
                equal, same = equal + bool((ids[0] == ids[1]).all()), same + int((ids[0] == ids[1]).sum())
    assert (agreement.documents, agreement.equal_documents) == (documents, equal)
    assert (agreement.tokens, agreement.equal_tokens) == (tokens, same)
    assert agreement.tokens - agreement.equal_tokens == agreement.codes - agreement.equal_codes > 0  # text is the same
    assert agreement.equal_codes > 0
    assert agreement.lowest < 1
    for split in ("train", "val"):  # each unit is of the environment that its record names
        mine, shards = open_shards(out, split), (open_shards(one, split), open_shards(two, split))
        for number in range(mine.num_documents):
            whose = shards[0] if mine.row(number)["unit"] in done else shards[1]
            assert (mine.tokens(number) == whose.tokens(number)).all()
    assert checked(out).ok


def test_the_same_history_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    joined(world, tmp_path / "one", pixels=3)
    out = tmp_path / "two"
    world.part(out, 0, 3)

    class StopError(Exception):
        pass

    def stop(*arguments: object, **options: object) -> None:
        raise StopError

    for place in ("tokkit.pipelines.shard.run_units", "tokkit.pipelines.shard.coalesce"):
        with upgraded(pixels=3), pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, stop)
            with pytest.raises(StopError):
                world.run(out, allow_mixed=True)
    with upgraded(pixels=3):
        assert world.run(out, allow_mixed=True) == snapshot(tmp_path / "one")


def test_what_was_left_out_as_a_duplicate_is_left_out_when_it_is_encoded_again(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.inputs[1], tmp_path / "again")
    options = {"inputs": [world.inputs[1], str(tmp_path / "again")], "dedup": ["images"]}
    out = tmp_path / "out"
    shard_part(world.config(out, **options, shard_index=1, shard_count=2), SILENT)
    with upgraded():
        manifest = shard(world.config(out, **options, allow_mixed=True), SILENT).manifest
    assert manifest.items["image"]["duplicate"] > 10
    assert manifest.mixed is not None
    (agreement,) = manifest.mixed.agreements
    assert agreement.equal_documents == agreement.documents > 10
    assert checked(out).ok


@pytest.mark.slow
def test_worker_processes_compare_too(world: World, tmp_path: Path) -> None:
    joined(world, tmp_path / "one")
    joined(world, tmp_path / "two", workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_the_first_environment_may_end_what_another_has_joined(world: World, tmp_path: Path) -> None:
    """It need not allow anything: the output is mixed already. It compares, where the other had nothing to compare with."""
    out = tmp_path / "out"
    claim(world, out)
    with upgraded():
        shard_part(world.config(out, allow_mixed=True, shard_index=0, shard_count=3), SILENT)
    found = shard(world.config(out), SILENT).manifest.mixed
    assert found is not None
    first = read_json(out / "config.json")["numeric_fingerprint"]
    assert [agreement.encoded_again_in for agreement in found.agreements] == [first]
    assert found.agreements[0].documents > 10
    assert checked(out).ok


def test_environments_that_were_not_compared_are_before_the_end(world: World, tmp_path: Path) -> None:
    """Two that began at the same time; `tokkit finish` cannot encode, and says so."""
    out = tmp_path / "out"
    claim(world, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokkit.pipelines.shard.measure", lambda run, records: None)
        with upgraded():
            shard_part(world.config(out, allow_mixed=True, shard_index=0, shard_count=2), SILENT)
        world.part(out, 1, 2)
        with pytest.raises(ResumableStop, match="2 numeric environments that were not compared"):
            finish(FinishConfig(directory=out), SILENT)
        assert not (out / "manifest.json").exists()
        found = shard(world.config(out), SILENT).manifest.mixed
    assert found is not None
    assert found.agreements[0].equal_tokens == found.agreements[0].tokens > 0
    finish(FinishConfig(directory=out), SILENT)
    assert checked(out).ok


def test_three_environments(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    with upgraded(version="98"):
        shard_part(world.config(out, allow_mixed=True, shard_index=1, shard_count=3), SILENT)
    with upgraded(version="99"):
        found = shard(world.config(out, allow_mixed=True), SILENT).manifest.mixed
    assert found is not None
    assert [environment.units for environment in found.environments] == [5, 5, 5]
    assert len({agreement.committed_in for agreement in found.agreements}) == 2
    assert len(found.agreements) == 3
    assert checked(out).ok


def test_all_units_by_another_than_the_first(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim(world, out)
    with upgraded():
        found = shard(world.config(out, allow_mixed=True), SILENT).manifest.mixed
    assert found is not None
    assert sorted(environment.units for environment in found.environments) == [0, 15]
    assert found.agreements == []
    assert checked(out).ok


def test_people_are_told(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    joined(world, out, pixels=3)
    with pytest.raises(SystemExit) as caught:
        app(["inspect", str(out)])
    shown = capfd.readouterr().out
    assert not caught.value.code
    page = (out / "report.html").read_text()
    mixture = load_manifest(out).mixed
    assert mixture is not None
    for text in (shown, page):
        assert "Numeric environments (--allow-mixed)" in text
        for environment in mixture.environments:
            assert environment.fingerprint[:12] in text
        assert f"{mixture.agreements[0].equal_codes:,} of {mixture.agreements[0].codes:,} media codes" in text
    assert "Numeric environments" not in (world.folder / "clean" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["environments"][0].update(units=1), "units were encoded in"),
        (lambda m: m["environments"][0]["numeric"].update(device="x"), "are not those of its fingerprint"),
        (lambda m: m["environments"].pop(0), "numeric environment"),
        (lambda m: m["agreements"].clear(), "was not compared with any other"),
        (lambda m: m["agreements"][0].update(equal_tokens=10**9), "more is equal than was compared"),
        (lambda m: m["agreements"][0].update(committed_in="0" * 64), "did not take part"),
    ],
)
def test_what_cannot_be_is_found(world: World, tmp_path: Path, change: Any, says: str) -> None:
    out = tmp_path / "out"
    if not (world.folder / "mixed").exists():
        joined(world, world.folder / "mixed")
    shutil.copytree(world.folder / "mixed", out)
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest["mixed"])
    (out / "manifest.json").write_text(record_json(manifest))
    problems = [problem for problem in checked(out).problems if problem.code == Code.FINGERPRINT]
    assert any(says in problem.message for problem in problems)


def test_what_was_written_down_and_is_lost_or_damaged_is_told(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    with upgraded():
        for index in (1, 2):
            shard_part(world.config(out, allow_mixed=True, shard_index=index, shard_count=3), SILENT)
    folder = out / "run" / mixed.FOLDER
    environment = next(path for path in folder.iterdir() if not path.name.startswith("agreement"))
    agreement = next(path for path in folder.iterdir() if path.name.startswith("agreement"))
    content = environment.read_bytes()
    environment.write_text("{}")
    with pytest.raises(DataError, match="is damaged: its content is not that of its name"):
        finish(FinishConfig(directory=out), SILENT)
    environment.unlink()
    with pytest.raises(DataError, match="does not say what the numeric environment"):
        finish(FinishConfig(directory=out), SILENT)
    environment.write_bytes(content)
    agreement.write_text("{}")
    with pytest.raises(DataError, match="remove it, it is measured again"):
        finish(FinishConfig(directory=out), SILENT)
    agreement.unlink()
    with upgraded():
        found = shard(world.config(out, allow_mixed=True), SILENT).manifest.mixed
    assert found is not None
    assert fingerprint_of(found.environments[0].numeric) == found.environments[0].fingerprint
    assert checked(out).ok
