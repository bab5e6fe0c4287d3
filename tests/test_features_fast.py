"""`tokkit features` in bulk: encoder processes, fast modes and what they keep, workers on several GPUs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_double import Double, DoubleConfig, options
from feature_models import picture, save
from shard_corpus import Corpus, snapshot, write_corpus, write_tokenizers

from tokkit.errors import ItemError, UsageError
from tokkit.features import load_feature_encoder
from tokkit.features.base import FeatureOptions, ItemFeatures, Prepared, RunOptions
from tokkit.features.manifest import load_cache_manifest
from tokkit.features.store import open_cache
from tokkit.pipelines import placing
from tokkit.pipelines.batching import LocalEncoder
from tokkit.pipelines.features import FeaturesConfig, FeaturesResult, features
from tokkit.pipelines.features_batches import FeatureBatches, StoringEncoder
from tokkit.pipelines.features_calibration import FeaturesTwice, FeatureSums
from tokkit.pipelines.placing import OnDevices
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.unit import UnitJob
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.pipelines.wire import packed, receive_parts, send_parts, unpacked
from tokkit.shards.manifest import FeatureCalibrationEntry

SILENT = SilentProgress()
SHAPES = [(40, 28), (28, 28), (33, 70), (64, 20), (50, 50)]


class World:
    """The corpus, the text model, and a tiny CLIP with random weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus: Corpus = write_corpus(folder / "corpus")
        self.text, _ = write_tokenizers(folder / "tokenizers")
        self.clip = folder / "clip"
        self.clip.mkdir()
        torch.manual_seed(0)
        save("clip", self.clip)

    def run(self, out: Path, **more: Any) -> FeaturesResult:
        """A run with the real encoder."""
        settings = options(self.corpus.folder, self.text, out) | {"encoder": str(self.clip)} | more
        return features(FeaturesConfig.model_validate(settings), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def half(world: World) -> FeaturesResult:
    """A run in float16."""
    return world.run(world.folder / "half", precision="fp16")


# ---- fast modes


def test_what_a_fast_mode_keeps_is_in_the_manifest(world: World, half: FeaturesResult) -> None:
    exact = world.run(world.folder / "exact")
    assert exact.manifest.calibrations == []
    (entry,) = load_cache_manifest(half.out).calibrations
    assert isinstance(entry, FeatureCalibrationEntry)
    assert (entry.precision, entry.acceleration, entry.numeric) == ("fp16", "none", half.manifest.numeric_fingerprint)
    assert entry.items > 10
    assert 1e-6 < entry.error <= entry.worst_error < 0.02
    assert 0.999 < entry.cosine < 1
    assert 0.98 < entry.agreement < 1
    assert verify(VerifyConfig(directory=half.out), SILENT).ok
    assert half.manifest.semantic_fingerprint == exact.manifest.semantic_fingerprint
    assert half.manifest.numeric["precision"] == "fp16"
    a, b = open_cache(exact.out), open_cache(half.out)
    assert len(a) == len(b) > 10
    differs = [float(np.abs(a.dense(i) - b.dense(i)).max()) for i in range(len(a))]
    assert 0 < max(differs) < 0.05


def test_a_mode_that_changes_too_much_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FeatureBatches.encode_padded

    def wrong(self: FeatureBatches, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        found = honest(self, items, batch_size)
        for item in found:
            item.features[0] *= 2
        return found

    monkeypatch.setattr(FeatureBatches, "encode_padded", wrong)
    with pytest.raises(UsageError, match=r"fp16 is within [2-9]\d\.\d\d% of fp32's features .* less than --min-agreement 0.98"):
        world.run(tmp_path / "out", precision="fp16")
    assert list((tmp_path / "out" / "commits").glob("*.json")) == []


def test_what_is_compared() -> None:
    sums, exact = FeatureSums(), np.array([[3.0, 4.0], [0.0, 0.0]])
    sums.compare(exact, exact)
    assert (sums.error, sums.worst, sums.cosine, sums.seen) == (0.0, 0.0, 1.0, 1)
    sums.compare(np.array([[-4.0, 3.0], [0.0, 0.0]]), exact)
    assert (sums.tokens, sums.seen) == (4, 2)
    assert sums.cosine == 0
    assert sums.worst == pytest.approx(2**0.5)
    assert sums.error == pytest.approx(1.0)


class Overflows(Double):
    """Its features of wide pictures are not finite."""

    def _one(self, item: Prepared) -> ItemFeatures:
        found = super()._one(item)
        if item.tiles is not None:
            found.features[3, 2] = np.inf
        return found


def test_what_float16_cannot_hold_is_encoded_in_float32() -> None:
    exact = Double()
    batches = FeatureBatches(Overflows(), 4, lambda: exact)
    items = [exact.prepare(picture(*shape)) for shape in SHAPES]
    found = batches.encode_padded(items, 4)
    assert batches.overflowed == 2
    for ours, expected in zip(found, exact.encode(items, 4), strict=True):
        assert np.array_equal(ours.features, expected.features)
    twice = FeaturesTwice(batches)
    twice.encode_padded(items, 4)
    assert (twice.sums.items, twice.sums.error) == (5, 0.0)
    plain = FeatureBatches(Overflows(), 4)
    assert not np.isfinite(plain.encode_padded(items, 4)[0].features).all()


def test_what_cannot_be_is_told(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tf32 needs an NVIDIA GPU"):
        world.run(tmp_path / "a", precision="tf32")
    with pytest.raises(UsageError, match="graphs needs an NVIDIA GPU"):
        world.run(tmp_path / "b", acceleration="graphs")
    with pytest.raises(UsageError, match="these are to be bfloat16"):
        world.run(tmp_path / "c", precision="fp16", options={"precision": "bfloat16"})
    (tmp_path / "qwen").mkdir()
    save("qwen2-vl", tmp_path / "qwen")
    with pytest.raises(UsageError, match="a shape of its own"):
        load_feature_encoder(tmp_path / "qwen", run=RunOptions("fp32", "compile"))


@pytest.mark.slow
def test_compiled_blocks_give_nearly_the_same_in_every_slot(world: World) -> None:
    exact = load_feature_encoder(world.clip, FeatureOptions(pooled="projected"))
    ours: Any = load_feature_encoder(world.clip, FeatureOptions(pooled="projected"), run=RunOptions("fp32", "compile"))
    assert ours.fingerprint == exact.fingerprint
    items = [exact.prepare(picture(*shape)) for shape in SHAPES]
    together, apart = ours.encode(items, 4), [ours.encode([item], 4)[0] for item in items]
    for a, b, c in zip(together, apart, exact.encode(items, 4), strict=True):
        assert np.array_equal(a.features, b.features)
        np.testing.assert_allclose(a.features, c.features, atol=1e-4)
        np.testing.assert_allclose(a.pooled, c.pooled, atol=1e-4)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "dinov2", "qwen2-vl", "mllama"])
def test_every_family_runs_in_float16(tmp_path: Path, family: str) -> None:
    save(family, tmp_path)
    exact = load_feature_encoder(tmp_path)
    half = load_feature_encoder(tmp_path, run=RunOptions("fp16"))
    assert half.fingerprint == exact.fingerprint
    items = [exact.prepare(picture(*shape)) for shape in ((28, 28), (56, 28))]
    for a, b in zip(half.encode(items, 2), exact.encode(items, 2), strict=True):
        assert a.features.dtype == np.float32
        error = np.linalg.norm(a.features - b.features) / np.linalg.norm(b.features)
        assert 0 < error < 0.02


# ---- whoever encodes


@pytest.mark.slow
def test_encoder_processes_give_the_same_bytes(world: World, half: FeaturesResult, tmp_path: Path) -> None:
    again = world.run(tmp_path / "half", precision="fp16", workers=2, encoders="process", encoder_processes=2)
    assert snapshot(again.out) == snapshot(half.out)
    assert again.summary["encoder"]["batches"] > 0  # type: ignore[index]


def test_an_encoder_process_for_a_worker_that_has_no_model(world: World, tmp_path: Path) -> None:
    corpus = options(world.corpus.folder, world.text, tmp_path / "process")
    settings = corpus | {"workers": 1, "encoders": "process"}
    alone = features(DoubleConfig.model_validate(corpus | {"out": tmp_path / "alone"}), SILENT)
    shared = features(DoubleConfig.model_validate(settings), SILENT)
    assert snapshot(shared.out) == snapshot(alone.out)
    assert shared.summary["encoder"]["batches"] > 0  # type: ignore[index]


class Slow:
    """A device on which batches are under way until they are asked for."""

    places = 2

    def __init__(self) -> None:
        self.log: list[str] = []

    def encode_padded(self, pictures: Sequence[Any], batch_size: int) -> Any:
        raise AssertionError("it begins")

    def begin(self, pictures: Sequence[Any]) -> Slow.Under:
        self.log.append(f"begin {pictures[0]}")
        return Slow.Under(self, pictures[0])

    class Under:
        def __init__(self, device: Slow, name: int) -> None:
            self.device, self.name = device, name

        def ready(self) -> bool:
            return False

        def codes(self) -> list[int]:
            self.device.log.append(f"codes {self.name}")
            return [self.name]


def test_a_batch_is_begun_before_the_one_before_is_there() -> None:
    device: Any = Slow()
    local = LocalEncoder(device, 1)
    assert local.depth == 2
    local.submit([1])  # type: ignore[list-item]
    local.submit([2])  # type: ignore[list-item]
    assert not local.arrived()
    assert [list(local.collect()), list(local.collect())] == [[1], [2]]
    assert device.log == ["begin 1", "begin 2", "codes 1", "codes 2"]


def test_items_keep_their_sizes_through_batches_under_way() -> None:
    encoder = Double()
    storing = StoringEncoder(LocalEncoder(FeatureBatches(encoder, 2), 2), "fp16", "image")  # type: ignore[arg-type]
    groups = [[(40, 28), (28, 28)], [(33, 70)]]
    for group in groups:
        storing.submit([encoder.prepare(picture(*shape)) for shape in group])
    for group in groups:
        found = [one.item for one in storing.collect()]
        assert [(item.width, item.height) for item in found if item is not None] == group
    bad = StoringEncoder(LocalEncoder(FeatureBatches(Double(1e6), 2), 2), "fp16", "image")  # type: ignore[arg-type]
    bad.submit([encoder.prepare(picture(40, 28))])
    (one,) = bad.collect()
    assert isinstance(one.error, ItemError)
    assert one.error.reason == "features-overflow"


# ---- several GPUs


class FakeWorker:
    """Remembers what it was given."""

    def __init__(self, task: UnitJob, stall_seconds: float) -> None:
        self.task, self.alive = task, True


def test_workers_are_dealt_out_to_the_gpus(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "Worker", FakeWorker)
    config: Any = None
    job = UnitJob(config, {}, None, None, "cuda", "")  # type: ignore[arg-type]
    hosting = OnDevices(["cuda:0", "cuda:2"])
    workers: list[Any] = [hosting.worker(job, 1.0) for _ in range(5)]
    assert [worker.task.device for worker in workers] == ["cuda:0", "cuda:2", "cuda:0", "cuda:2", "cuda:0"]
    workers[1].alive = workers[3].alive = False
    replaced: list[Any] = [hosting.worker(job, 1.0) for _ in range(2)]
    assert [worker.task.device for worker in replaced] == ["cuda:2", "cuda:2"]


# ---- the wire


def test_arrays_come_out_as_they_went_in() -> None:
    here, there = multiprocessing.Pipe()
    item = Double().prepare(picture(40, 28))
    sent = {
        "codes": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
        "turned": np.arange(6, dtype=np.float16).reshape(2, 3).T,
        "empty": np.zeros((0, 7), np.float32),
        "item": item,
    }
    parts = packed(sent)
    assert len(parts) > 3  # the arrays are beside the pickle
    send_parts(here, parts)
    found = unpacked(receive_parts(there, len(parts)))
    for name in ("codes", "turned", "empty"):
        assert found[name].dtype == sent[name].dtype  # type: ignore[attr-defined]
        assert np.array_equal(found[name], sent[name])
    assert [view.kind for view in found["item"].views] == [view.kind for view in item.views]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found["item"].views, item.views, strict=True))
    assert not found["codes"].flags.writeable
