"""A picture's codes are the same in every slot of its batch: by the tokenizer, and through `tokkit shard`."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_corpus import write_tokenizers
from sources_helpers import tar_bytes

from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.shards.native import open_shards
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer

PRESETS = ["vq-tiny", "fsq-tiny", "residual-vq-tiny", "residual-fsq-tiny"]  # a table, a grid, several codebooks of either
BATCH = 5


def filled(preset: str) -> ImageTokenizer:
    """A small tokenizer of random weights that uses its codebook: tables are filled with what the encoder gives."""
    tokenizer = fresh_tokenizer(configure(preset, {"architecture.channels": 16, "architecture.z_channels": 16}, 32), 0).eval()
    with torch.no_grad():
        tokenizer.quant_conv.weight.mul_(30)
    codes = tokenizer.encode(torch.from_numpy(pictures(64, 1)))
    books = codes.reshape(64, tokenizer.codebooks, -1)
    for book in range(tokenizer.codebooks):
        assert len(torch.unique(books[:, book])) > 20, f"codebook {book} is hardly used"
    return tokenizer


def pictures(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Pictures with structure at several scales, uint8 [count, size, size, 3]."""
    random = np.random.default_rng(seed)
    fine = random.integers(0, 256, (count, size, size, 3))
    coarse = random.integers(0, 256, (count, size // 8, size // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return ((fine + 3 * coarse) // 4).astype(np.uint8)


TOKENIZERS: dict[str, ImageTokenizer] = {}


@pytest.mark.parametrize("preset", PRESETS)
@settings(deadline=None, max_examples=15)
@given(
    item=st.integers(0, 10**6),
    strangers=st.integers(0, 10**6),
    batch=st.integers(1, 9),
    alike=st.booleans(),
)
def test_every_slot_of_a_batch_gives_the_same_codes(preset: str, item: int, strangers: int, batch: int, alike: bool) -> None:
    """Whoever the neighbours are, and whether they are there at all or the batch is padded."""
    if preset not in TOKENIZERS:
        TOKENIZERS[preset] = filled(preset)
    tokenizer = TOKENIZERS[preset]
    (picture,) = pictures(1, item)
    others = [picture] * batch if alike else list(pictures(batch, strangers))
    expected = tokenizer.encode_padded([picture], batch)[0]
    for slot in range(batch):
        placed = [*others[:slot], picture, *others[slot + 1 :]]
        for count in {slot + 1, batch}:
            codes = tokenizer.encode_padded(placed[:count], batch)
            assert codes.dtype == np.int32
            np.testing.assert_array_equal(codes[slot], expected)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_picture_at_every_place_of_a_batch(preset: str, tmp_path: Path) -> None:
    """Two pictures among strangers: in each batch another slot is theirs, and the last batch is not full."""
    chosen, strangers = [png(p) for p in pictures(2, 7)], iter(pictures(100, 8))
    order: list[bytes] = []
    for turn in range(2 * BATCH):
        row = [png(next(strangers)) for _ in range(BATCH)]
        row[turn % BATCH] = chosen[turn // BATCH]
        order += row
    order += [png(next(strangers)), chosen[0], chosen[1]]
    members = [(f"{i:05d}.{e}", d) for i, data in enumerate(order) for e, d in (("png", data), ("txt", b"%d" % i))]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "0.tar").write_bytes(tar_bytes(members))
    text, _ = write_tokenizers(tmp_path / "tokenizers")
    filled(preset).save(tmp_path / "vq")
    options = {"inputs": [str(tmp_path / "pairs")], "out": tmp_path / "out", "text_tokenizer": text, "batch_size": BATCH}
    shard(ShardConfig.model_validate(options | {"image_tokenizer": tmp_path / "vq", "workers": 0}), SilentProgress())
    shards = open_shards(tmp_path / "out")
    found: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for number in range(shards.num_documents):
        (span,) = (span for span in shards.row(number)["spans"] if span["modality"] == "image")
        ids = shards.tokens(number)[span["start"] : span["start"] + span["length"]]
        found[span["item_hash"]].append(tuple(ids.tolist()))
    assert shards.num_documents == len(order)
    repeated = [ids for ids in found.values() if len(ids) > 1]
    assert [len(ids) for ids in repeated] == [BATCH + 1, BATCH + 1]
    assert all(len(set(ids)) == 1 for ids in repeated)
    assert len({ids[0] for ids in found.values()}) == len(found)  # others have other codes
