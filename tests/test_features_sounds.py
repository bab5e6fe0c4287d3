"""`tokkit features` on sounds: each clip's own features by a Whisper encoder, and a reason for each that has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from feature_models import save
from shard_corpus import picture
from sound_corpus import BAD, CLIPS, clip, write_sounds
from sources_helpers import tar_bytes

from tokkit.documents import Audio
from tokkit.errors import UsageError
from tokkit.features import load_feature_encoder
from tokkit.features.base import FeatureOptions
from tokkit.features.store import open_cache
from tokkit.media.audio import load_audio
from tokkit.pipelines.features import FeaturesConfig, FeaturesResult, features
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.pipelines.verify import VerifyConfig, verify

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeaturesResult]:
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "whisper").mkdir()
    save("whisper", folder / "whisper")
    write_sounds(folder / "sounds")
    (folder / "train").mkdir()
    (folder / "train" / "a.txt").write_text("\n".join(f"Clip number {i} says nothing else" for i in range(300)))
    train_text(TrainTextConfig(inputs=(str(folder / "train"),), out=folder / "text.model", vocab_size=300), SILENT)
    options = {"inputs": [str(folder / "sounds")], "text_tokenizer": folder / "text.model", "workers": 0, "batch_size": 2}
    more = {"encoder": str(folder / "whisper"), "out": folder / "out", "dedup": ["documents"]}
    return folder, features(FeaturesConfig.model_validate(options | more), SILENT)


def test_every_sound_has_one_outcome_and_a_bad_one_its_reason(made: tuple[Path, FeaturesResult]) -> None:
    _, result = made
    (source,) = result.manifest.sources
    assert source.documents == {"committed": CLIPS - len(BAD), "rejected": len(BAD)}
    lines = [json.loads(line) for path in (result.out / "rejects").iterdir() for line in path.read_text().splitlines()]
    assert {e["locator"].partition("#")[2]: e["reason"] for e in lines if e["level"] == "item"} == BAD
    assert "sounds" in result.manifest.numeric
    assert verify(VerifyConfig(directory=result.out), SILENT).ok


def test_features_are_the_encoders_own(made: tuple[Path, FeaturesResult]) -> None:
    folder, result = made
    encoder = load_feature_encoder(folder / "whisper", FeatureOptions())
    assert encoder.sample_rate is not None
    by_hash = {Audio(data, "").hash: data for data in (clip(n)[1] for n in range(CLIPS))}
    seen = 0
    for split in result.manifest.splits:
        cache = open_cache(result.out, split)
        rows = [row for table in cache.document_tables(["locator"]) for row in table.column("locator").to_pylist()]
        for number in range(len(rows)):
            for index in cache.document(number).items:
                row = cache.entry(index)
                samples = load_audio(by_hash[row.hash], encoder.sample_rate, 1)[0]
                expected = encoder.encode([encoder.prepare(samples)], 2)[0]
                assert np.array_equal(cache.features(index), expected.features.astype(np.float16))
                seen += 1
    assert seen == CLIPS - len(BAD)


def test_a_picture_that_the_encoder_does_not_take_has_no_duplicates(made: tuple[Path, FeaturesResult], tmp_path: Path) -> None:
    folder, _ = made
    members = [(f"{i:03d}.png", picture(i % 2)) for i in range(6)]
    members += [(f"{i:03d}.{clip(i % 2)[0]}", clip(i % 2)[1]) for i in range(6, 10)]
    members += [(f"{i:03d}.txt", f"number {i % 2}".encode()) for i in range(10)]
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "00000.tar").write_bytes(tar_bytes(sorted(members)))
    more = {"inputs": [str(tmp_path / "mixed")], "out": tmp_path / "out", "encoder": str(folder / "whisper"), "workers": 0}
    options = more | {"text_tokenizer": folder / "text.model"}
    mixed = features(FeaturesConfig.model_validate(options | {"dedup": ["documents"]}), SILENT)
    assert mixed.manifest.sources[0].documents == {"committed": 2, "duplicate": 2, "filtered": 6}
    found = verify(VerifyConfig(directory=mixed.out), SILENT)
    assert found.ok, found.problems
    refused = FeaturesConfig.model_validate(options | {"dedup": ["images"], "out": tmp_path / "refused"})
    with pytest.raises(UsageError, match=r"--dedup images compares pictures, and with .*whisper, which takes audio"):
        features(refused, SILENT)
