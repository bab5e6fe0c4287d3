"""Input files and tokenizers that change, shrink, are touched or go: between two runs, and while one is under way."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_world import SILENT, World, ended, wait_for
from shard_corpus import snapshot

from tokkit.errors import ConfigError, FingerprintMismatch, TokkitError
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.shard import shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure

FILES = ["pairs/00000.tar", "pairs/00000.parquet", "documents/d.parquet", "texts/a.jsonl.gz", "audio/00000.tar"]
# The only one of its input that can be read on its own (beside documents/d.parquet there are pictures).
ALONE = [name for name in FILES if name not in ("pairs/00000.parquet", "documents/d.parquet")]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(original: World) -> dict[str, str]:
    return original.run(original.folder / "clean")


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    """A copy of the corpus and the tokenizers that may be spoilt."""
    copy = object.__new__(World)
    copy.__dict__.update(original.__dict__)
    for name in ("corpus", "tokenizers"):
        shutil.copytree(original.folder / name, tmp_path / name)
    copy.folder = tmp_path
    copy.inputs = [str(tmp_path / "corpus" / Path(path).name) for path in original.inputs]
    copy.text, copy.image = (tmp_path / path.relative_to(original.folder) for path in (original.text, original.image))
    return copy


def spoil(path: Path, how: str) -> Callable[[], None]:
    """Do something to a file; what is returned undoes it, down to the modification time."""
    content, before = path.read_bytes(), path.stat()

    def restore() -> None:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    if how == "changed":  # same size
        path.write_bytes(content[:-9] + bytes(9 * [content[-9] ^ 1]))
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "longer":
        path.write_bytes(content + b"\0" * 512)
    elif how == "touched":
        os.utime(path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    return restore


HOW = {
    "changed": "changed: {} (another modification time)",
    "touched": "changed: {} (another modification time)",
    "truncated": "changed: {} (",
    "longer": "changed: {} (",
    "empty": "changed: {} (",
    "removed": "gone: {}",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", HOW)
def test_a_file_that_changes_between_two_runs(world: World, tmp_path: Path, name: str, how: str) -> None:
    """Refused and named, whether its unit is committed or not; nothing is done."""
    out = tmp_path / "out"
    world.part(out, 0, 3)
    before = snapshot(out)
    spoil(tmp_path / "corpus" / name, how)
    with pytest.raises(TokkitError) as caught:
        world.run(out)
    if how == "removed" and name in ALONE:  # an input without anything to read is wrong usage
        assert (type(caught.value), caught.value.exit_code) == (ConfigError, 2)
        assert str(tmp_path / "corpus" / name.split("/")[0]) in str(caught.value)
    else:
        assert (type(caught.value), caught.value.exit_code) == (FingerprintMismatch, 1)
        assert f"  - {HOW[how].format(name)}" in str(caught.value)
        assert "restore it, or write to another --out" in str(caught.value)
    assert snapshot(out) == before


def test_the_same_command_goes_on_once_everything_is_back(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    undo = [spoil(tmp_path / "corpus" / name, how) for name, how in zip(FILES, HOW, strict=False)]
    with pytest.raises(FingerprintMismatch) as caught:
        world.run(out)
    assert str(caught.value).count("\n  - ") == len(FILES)  # all at once
    for restore in undo:
        restore()
    assert world.run(out) == clean


def test_a_file_that_is_new_between_two_runs(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    shutil.copyfile(tmp_path / "corpus" / "pairs" / "00000.tar", tmp_path / "corpus" / "pairs" / "00001.tar")
    with pytest.raises(FingerprintMismatch, match=r"new: pairs/00001\.tar"):
        world.run(out)


def test_inputs_may_move(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    """Elsewhere, the same files with the same times are the same input."""
    out = tmp_path / "out"
    world.part(out, 0, 3)
    (tmp_path / "corpus").rename(tmp_path / "moved")
    world.inputs = [path.replace("/corpus/", "/moved/") for path in world.inputs]
    assert world.run(out) == clean


# ---- while a run is under way

# A document in the middle of the first unit of each kind of input, at which the run is held.
HELD = {
    "pairs/00000.tar": "take@00000.tar#000000003",
    "pairs/00000.parquet": "take@00000.tar#000000024",
    "documents/d.parquet": "take@d.parquet:1:1",
    "texts/a.jsonl.gz": "take@a.jsonl.gz@0",
}


def held(world: World, out: Path, point: str, workers: int = 0) -> tuple[object, int]:
    """A run that is stopped at a failpoint, and the process that is."""
    process = world.start(out, workers, point=f"{point}=stop")

    def stopped() -> bool:
        return process.poll() is not None or Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    wait_for(stopped)
    assert process.poll() is None, process.communicate()
    return process, process.pid


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("how", ["changed", "truncated", "touched", "removed"])
def test_a_file_that_changes_while_it_is_read(world: World, clean: dict[str, str], tmp_path: Path, name: str, how: str) -> None:
    """Of what was read of another file nothing is committed, and nothing that only looks damaged becomes a reject."""
    out = tmp_path / "out"
    process, pid = held(world, out, HELD[name])
    restore = spoil(tmp_path / "corpus" / name, how)
    os.kill(pid, signal.SIGCONT)
    code, errors = ended(process)  # type: ignore[arg-type]
    assert code == (75 if how == "removed" else 1), errors
    assert str(tmp_path / "corpus" / name) in errors
    assert ("No such file" if how == "removed" else "has changed while it was being read") in errors
    assert "Traceback" not in errors
    kept = snapshot(out)
    assert kept.items() <= clean.items()
    for path in (out / "commits").iterdir():
        assert Ledger(out).read(int(path.stem)) is not None
    alone = how == "removed" and name in ALONE
    with pytest.raises(
        ConfigError if alone else FingerprintMismatch,
        match="no input|nothing to read|no files|known format" if alone else "gone|changed",
    ):
        world.run(out)
    restore()
    assert world.run(out) == clean
    assert verify(VerifyConfig(directory=out), SILENT).ok


@pytest.mark.parametrize("how", ["truncated", "removed"])
def test_a_sidecar_that_changes_while_its_tar_is_read(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What goes with a file is watched as the file is."""
    from tokkit.sources.webdataset import WebDatasetSource

    out, sidecar = tmp_path / "out", tmp_path / "corpus" / "pairs" / "00000.parquet"
    real, undo = WebDatasetSource.census, []

    def census(self: WebDatasetSource, unit: object, *signs: object) -> object:
        if sidecar.exists() and not undo and self.name == "pairs":
            undo.append(spoil(sidecar, how))
        return real(self, unit, *signs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(WebDatasetSource, "census", census)
        with pytest.raises(Exception, match=r"00000\.parquet") as caught:
            world.run(out)
    assert type(caught.value).__name__ == ("FingerprintMismatch" if how == "truncated" else "ResumableStop")
    assert snapshot(out).items() <= clean.items()
    undo[0]()
    assert world.run(out) == clean


@pytest.mark.parametrize("which", ["text", "image"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_tokenizer_that_changes_after_the_run_has_begun(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, workers: int
) -> None:
    """Workers load tokenizers by themselves, also hours later: another one must not encode."""
    from tokkit.pipelines import shard as module

    out, kept = tmp_path / "out", tmp_path / "kept"
    shutil.copytree(tmp_path / "tokenizers", kept)
    real = module.run_units

    def changed(*arguments: object, **options: object) -> None:
        if which == "image":
            torch.manual_seed(9)
            ImageTokenizer(configure("fsq-tiny", resolution=32)).save(world.image)
        else:
            content = world.text.read_bytes()
            place = content.index(b"quick")
            world.text.write_bytes(content[:place] + b"quack" + content[place + 5 :])
        real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_units", changed)
        with pytest.raises(FingerprintMismatch, match="has changed since the run began"):
            shard(world.config(out, workers=workers), SILENT)
        assert not list((out / "commits").iterdir())
        if workers and which == "image":
            with pytest.raises(FingerprintMismatch, match=r"tokenizers\.image"):
                shard(world.config(out, workers=workers, encoders="process"), SILENT)
    shutil.copytree(kept, tmp_path / "tokenizers", dirs_exist_ok=True)
    assert world.run(out) == clean


@pytest.mark.slow
def test_an_image_tokenizer_that_changes_before_the_encoder_process_loads_it(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokkit.pipelines import encoder_service as module

    out, real = tmp_path / "out", module.EncoderService
    shutil.copytree(world.image, tmp_path / "kept")

    def changed(*arguments: object, **options: object) -> object:
        torch.manual_seed(9)
        ImageTokenizer(configure("fsq-tiny", resolution=32)).save(world.image)
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "EncoderService", changed)
        with pytest.raises(FingerprintMismatch, match="has changed since the run began"):
            shard(world.config(out, workers=1, encoders="process"), SILENT)
    shutil.copytree(tmp_path / "kept", world.image, dirs_exist_ok=True)
    assert world.run(out) == clean
