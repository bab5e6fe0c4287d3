"""Fast modes of encoding: measured on the run's own pictures, written down, refused where they disagree too much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_world import SILENT, World

from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.pipelines import calibration, encoder_service
from tokkit.pipelines.encoder_service import encoder_devices
from tokkit.pipelines.shard import shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import CalibrationEntry, load_manifest
from tokkit.storage import read_json
from tokkit.tokenizers.image.bulk import BulkEncoder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, str]:
    """A run in float16 in one process."""
    return world.run(world.folder / "alone", precision="fp16")


def test_what_a_fast_mode_keeps_is_in_the_manifest(world: World, alone: dict[str, str]) -> None:
    manifest = load_manifest(world.folder / "alone")
    (entry,) = manifest.calibrations
    assert (entry.precision, entry.acceleration, entry.numeric) == ("fp16", "none", manifest.numeric_fingerprint)
    assert entry.pictures > 10
    assert 0.98 < entry.agreement <= 1
    assert manifest.numeric["precision"] == "fp16"
    assert verify(VerifyConfig(directory=world.folder / "alone", reencode=16), SILENT).problems == []


@pytest.mark.slow
def test_a_fast_mode_gives_the_same_bytes_whoever_encodes(world: World, alone: dict[str, str], tmp_path: Path) -> None:
    assert world.run(tmp_path / "out", precision="fp16", workers=2, encoders="process", encoder_processes=2) == alone


def test_float32_is_not_measured(world: World, tmp_path: Path) -> None:
    world.part(tmp_path / "out", 0, 1)
    assert not (tmp_path / "out" / "run" / "calibration").exists()


def test_a_mode_that_changes_too_many_codes_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    honest = BulkEncoder.encode_padded

    def wrong(self: BulkEncoder, pictures: object, batch_size: int) -> object:
        codes = honest(self, pictures, batch_size)  # type: ignore[arg-type]
        codes[:, 0] = (codes[:, 0] + 1) % self.tokenizer.codebook_size
        return codes

    monkeypatch.setattr(BulkEncoder, "encode_padded", wrong)
    with pytest.raises(UsageError, match=r"fp16 keeps 7\d\.\d\d% of fp32's codes .* less than --min-agreement 0\.98"):
        world.run(out, precision="fp16")
    assert list((out / "commits").glob("*.json")) == []
    world.run(out, precision="fp16", min_agreement=0.5)  # measured already; another threshold may take it
    monkeypatch.undo()
    (entry,) = load_manifest(out).calibrations
    assert 0.7 < entry.agreement < 0.8


def test_one_output_is_of_one_precision(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 0, 3)
    with pytest.raises(FingerprintMismatch, match="precision: fp32 -> fp16"):
        shard(world.config(out, precision="fp16"), SILENT)


def test_what_the_device_cannot_do_is_told(world: World, tmp_path: Path) -> None:
    for option, message in (({"precision": "tf32"}, "tf32"), ({"acceleration": "graphs"}, "graphs")):
        with pytest.raises(UsageError, match=f"{message} needs an NVIDIA GPU"):
            world.run(tmp_path / message, **option)


@pytest.mark.parametrize(
    ("pictures_from", "documents", "ranges"),
    [
        (0, 5000, [(0, 8)]),
        (100, 5000, [(0, 8), (8, 64), (64, 512)]),
        (100, 40, [(0, 8), (8, 64)]),
        (9000, 9000, [(0, 8), (8, 64), (64, 512), (512, 4096)]),
    ],
)
def test_it_is_looked_further_where_the_first_documents_hold_no_picture(
    pictures_from: int, documents: int, ranges: list[tuple[int, int]]
) -> None:
    looked = []

    class Processor:
        image = SimpleNamespace(overflowed=0)
        encodes: Any = None

        def probe(self, planned: object, report: object, first: int, last: int) -> int:
            looked.append((first, last))
            self.encodes.sums.pictures += max(0, min(last, documents) - max(first, pictures_from))
            return max(0, min(last, documents) - first)

    found = calibration._Calibrating(Processor(), calibration.CODE_CALIBRATION).process(None, lambda work: None)  # type: ignore[arg-type]
    assert looked == ranges
    assert (found.seen > 0) == (pictures_from < min(documents, 4096))


def test_in_words() -> None:
    entry = CalibrationEntry(
        numeric="n", precision="fp16", acceleration="graphs", pictures=0, codes=0, equal_codes=0, overflowed=0
    )
    assert "not compared" in entry.told()
    told = entry.model_copy(update={"pictures": 3, "codes": 1000, "equal_codes": 992}).told()
    assert told == "fp16 with graphs keeps 99.20% of fp32's codes (992 of 1,000, 3 pictures)"


def test_an_encoder_for_each_gpu_of_the_first_ones_model(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["A", "B", "A"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    assert encoder_devices("cuda", 1) == ["cuda:0", "cuda:2"]
    assert encoder_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert encoder_devices("cpu", 3) == ["cpu"] * 3


@pytest.mark.slow
def test_each_of_several_encoder_processes_is_used(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[encoder_service.EncoderService] = []

    class Kept(encoder_service.EncoderService):
        def close(self) -> None:
            made.append(self)
            super().close()

    monkeypatch.setattr("tokkit.pipelines.encoder_service.EncoderService", Kept)
    world.run(tmp_path / "out", workers=2, encoders="process", encoder_processes=2)
    batches = {service.endpoint.path: service._told[1] for service in made}
    assert len(batches) == 2
    assert all(batches.values())
    assert sum(batches.values()) == read_json(tmp_path / "out" / "run" / "summary.json")["encoder"]["batches"]
