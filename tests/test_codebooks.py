"""Several codes at each position, and codes of more than 16 bits, through every job: train, encode, shard, verify, look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_corpus import picture, write_corpus, write_tokenizers

from tokkit.errors import DataError
from tokkit.interleave import ImageCodes, Layout, decode
from tokkit.media.images import decode_image
from tokkit.packing.policy import SplitPolicy
from tokkit.pipelines.codec import DecodeConfig, EncodeConfig, decode_pictures, encode_pictures
from tokkit.pipelines.evaluate import EvaluateConfig, evaluate
from tokkit.pipelines.inspect import InspectConfig, inspect_document
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.train_vq import TrainVQConfig, train_vq
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import open_shards
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.engine import Engine, Step
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()

KINDS = {
    "residual-vq": ("residual-vq-tiny", {"quantizer.codebook_size": 200, "quantizer.codebooks": 3}),
    "residual-fsq": ("residual-fsq-tiny", {"quantizer.levels": [5, 5, 5]}),
    "lfq-2^18": ("lfq-tiny", {"quantizer.bits": 18}),
    "vq-70000": ("vq-tiny", {"quantizer.codebook_size": 70_000}),
}
every = pytest.mark.parametrize("kind", KINDS)
QUICK = ("residual-fsq", "vq-70000")  # of whole runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "in")
    write_tokenizers(folder / "tokenizers")
    (folder / "pictures").mkdir()
    for seed in range(6):
        (folder / "pictures" / f"{seed}.png").write_bytes(picture(seed, (64, 64)))
    return folder


def tokenizer_for(kind: str, folder: Path) -> Path:
    preset, overrides = KINDS[kind]
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(configure(preset, overrides, 32))
    with torch.no_grad():  # random weights use a handful of codes; a wider last layer spreads them
        tokenizer.quant_conv.weight.mul_(30)
    tokenizer.save(folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_shard_verify_inspect_pack(corpus: Path, tmp_path: Path, kind: str) -> None:
    vq = tokenizer_for(kind, tmp_path)
    tokenizer = load_image_tokenizer(vq)
    out = tmp_path / "out"
    text = corpus / "tokenizers" / "text.model"
    config = ShardConfig(inputs=[str(corpus / "in")], out=out, text_tokenizer=text, image_tokenizer=vq, workers=1, batch_size=4)
    shard(config, SILENT)
    assert verify(VerifyConfig(directory=out), SILENT).problems == []

    vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")
    assert [block.size for block in vocabulary.codebooks("image")] == [tokenizer.codebook_size] * tokenizer.codebooks
    manifest = load_manifest(out)
    assert manifest.tokenizers["image"].detail["codebooks"] == tokenizer.codebooks
    assert manifest.dtype == ("uint16" if vocabulary.size <= 65_536 else "int32")

    shards = open_shards(out, "train")
    layout = Layout(manifest.layout.image, manifest.layout.image_grid)  # type: ignore[arg-type]
    highest, found = 0, 0
    for number in range(shards.num_documents):
        row = shards.row(number)
        spans = [s for s in row["spans"] if s["modality"] == "image"]  # type: ignore[attr-defined]
        parts = [p for p in decode(shards.tokens(number), vocabulary, layout) if isinstance(p, ImageCodes)]
        assert len(spans) == len(parts)
        for span, part in zip(spans, parts, strict=True):
            assert part.codes.shape == (tokenizer.codebooks, *tokenizer.grid)
            assert (span["codebooks"], span["length"]) == (tokenizer.codebooks, part.codes.size + 2)
            highest, found = max(highest, int(part.codes.max())), found + 1
        if row["source"] == "pairs":
            key = int(str(row["locator"]).rpartition("#")[2])
            pixels = tokenizer.config.preprocessing.apply(decode_image(picture(key)))
            alone = tokenizer.encode_padded([pixels], 4)[0]
            assert np.array_equal(parts[0].codes, alone.reshape(parts[0].codes.shape))
    assert found > 20
    if tokenizer.codebook_size > 65_536:
        assert highest > 65_535

    shown = inspect_document(InspectConfig(directory=out, document="0", out=tmp_path / "shown"), SILENT)
    assert {p.shape for p in shown.parts if p.kind == "image"} <= {(tokenizer.codebooks, *tokenizer.grid)}
    assert "data:image/png" in (out / "report.html").read_text()
    plans = pack(PackConfig(directory=out, seq_len=512, split_policy=SplitPolicy.OVERLONG), SILENT)
    assert plans.splits


@every
def test_encode_and_decode_pictures(corpus: Path, tmp_path: Path, kind: str) -> None:
    vq = tokenizer_for(kind, tmp_path)
    tokenizer = load_image_tokenizer(vq)
    books = () if tokenizer.codebooks == 1 else (tokenizer.codebooks,)
    for source, codes in ((corpus / "pictures", tmp_path / "c.npz"), (corpus / "pictures" / "1.png", tmp_path / "c.npy")):
        encode_pictures(EncodeConfig(tokenizer=vq, input=source, out=codes, batch_size=4), SILENT)
        assert json.loads(codes.with_name(codes.name + ".json").read_text())["codebooks"] == tokenizer.codebooks
        loaded = np.load(codes)
        arrays = {name: loaded[name] for name in loaded} if codes.suffix == ".npz" else {"c": loaded}
        assert {a.shape for a in arrays.values()} == {(*books, *tokenizer.grid)}
        done = decode_pictures(DecodeConfig(tokenizer=vq, codes=codes, out=tmp_path / codes.suffix, batch_size=4), SILENT)
        for name, file in done.files.items():
            expected = tokenizer.decode(torch.from_numpy(arrays[name][None]))[0].numpy()
            decoded = np.asarray(decode_image((tmp_path / codes.suffix / file).read_bytes()))
            assert np.abs(decoded.astype(int) - expected.astype(int)).max() <= 1  # other batch shapes, other roundings
    if tokenizer.codebooks > 1:
        np.savez(tmp_path / "flat.npz", x=np.zeros(tokenizer.grid, dtype=np.int32))
        with pytest.raises(DataError, match=rf"not integers \[{tokenizer.codebooks}, rows, columns\]"):
            decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "flat.npz", out=tmp_path / "x"), SILENT)
        stacked = np.stack([np.load(tmp_path / "c.npy")] * 2)
        np.save(tmp_path / "stack.npy", stacked)
        done = decode_pictures(DecodeConfig(tokenizer=vq, codes=tmp_path / "stack.npy", out=tmp_path / "s"), SILENT)
        assert len(done.files) == 2


@pytest.mark.parametrize("preset", ["residual-vq-tiny", "residual-fsq-tiny", "simvq-tiny", "lfq-tiny"])
def test_train_evaluate(corpus: Path, tmp_path: Path, preset: str) -> None:
    out = tmp_path / "vq"
    options = {"architecture.channels": 16, "architecture.z_channels": 16}
    result = train_vq(
        TrainVQConfig(
            inputs=(str(corpus / "in" / "pairs"),),
            out=out,
            preset=preset,
            overrides=options,
            resolution=32,
            steps=30,
            batch_size=4,
            threads=1,
            val_fraction=0.2,
        ),
        SILENT,
    )
    assert 0 < result.codebook_usage <= 1
    assert 1 <= result.perplexity <= result.codebook_size
    tokenizer = load_image_tokenizer(out)
    assert not [name for name in tokenizer.weights() if "learner" in name]
    report = evaluate(
        EvaluateConfig(tokenizers=(out,), inputs=(str(corpus / "in" / "pairs"),), out=tmp_path / "eval", batch_size=4), SILENT
    )
    scores = report.tokenizers[0]
    assert scores.tokens == tokenizer.codebooks * tokenizer.grid[0] * tokenizer.grid[1]
    assert scores.codebook.codebooks == tokenizer.codebooks
    assert scores.psnr.mean == pytest.approx(result.val_psnr or 0, abs=6)


class StoppedError(Exception):
    pass


class StopsAtEight(Engine):
    def step(self, done: float) -> Step:
        if self.steps == 8:
            raise StoppedError
        return super().step(done)


@pytest.mark.parametrize(
    ("preset", "extra"),
    [
        ("residual-vq-tiny", {}),
        ("residual-fsq-tiny", {}),
        ("simvq-tiny", {}),
        ("lfq-tiny", {}),
        ("vq-tiny", {"quantizer.update": "gradient"}),
    ],
)
def test_training_goes_on_where_it_stopped(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, extra: dict[str, object]
) -> None:
    """Interrupted after a checkpoint and gone on with: the same weights as in one go."""
    from tokkit.pipelines import train_vq as module

    def config(name: str, resume: bool = False) -> TrainVQConfig:
        return TrainVQConfig(
            inputs=(str(corpus / "in" / "pairs"),),
            out=tmp_path / name,
            preset=preset,
            overrides={"architecture.channels": 16, "architecture.z_channels": 16, **extra},
            resolution=32,
            steps=12,
            batch_size=4,
            threads=1,
            checkpoint_every=5,
            resume=resume,
        )

    whole = train_vq(config("whole"), SILENT)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Engine", StopsAtEight)
        with pytest.raises(StoppedError):
            train_vq(config("parts"), SILENT)
    assert train_vq(config("parts", resume=True), SILENT).fingerprint == whole.fingerprint
