"""Sizes at which pictures are encoded: how they are chosen, that codes and grids come back exactly, and who may not matter."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import architecture_of, tokenizer_of
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from released_tokenizers import chameleon, emu3, write
from shard_corpus import snapshot, write_corpus, write_tokenizers
from sources_helpers import tar_bytes

from tokkit.cli.main import app
from tokkit.data.packed import PackedDataset, collate
from tokkit.documents import Image as Picture
from tokkit.errors import ConfigError, FingerprintMismatch, MalformedSequence, UnwantedItem, UsageError
from tokkit.interleave import ImageCodes, Layout, TextCodes, decode, encode
from tokkit.media.images import decode_image
from tokkit.media.resolutions import ASPECTS, Buckets, Fitting, Native, buckets_for, parse_size, told
from tokkit.media.transforms import BoxHalving, Preprocessing, ShortestSide
from tokkit.pipelines import attempt, batching, unit
from tokkit.pipelines.assembly import Slot
from tokkit.pipelines.batching import ImageBatcher
from tokkit.pipelines.codec import DecodeConfig, EncodeConfig, decode_pictures, encode_pictures
from tokkit.pipelines.decoding import DecodedImage, DocumentDecoder
from tokkit.pipelines.features import FeaturesConfig
from tokkit.pipelines.prepare import SEMANTIC_OPTIONS
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.resolution import OPTIONS, largest_grid
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import open_shards
from tokkit.shards.spans import picture_grids
from tokkit.storage import read_json
from tokkit.tokenizers.image import bulk as bulk_module
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()
FACTOR = 8  # of the tiny tokenizer
SIDES = st.integers(1, 3000)


# ---- which bucket


def bucket_lists(factor: int = FACTOR) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    side = st.integers(1, 60).map(lambda n: n * factor)
    return st.sets(st.tuples(side, side), min_size=1, max_size=12).map(lambda s: tuple(sorted(s)))


def apart(size: tuple[int, int], width: int, height: int) -> Fraction:
    ratio = Fraction(size[0], size[1]) / Fraction(width, height)
    return max(ratio, 1 / ratio)


@settings(deadline=None, max_examples=150)
@given(sizes=bucket_lists(), width=SIDES, height=SIDES, data=st.data())
def test_the_bucket_is_the_nearest_whatever_the_order(
    sizes: tuple[tuple[int, int], ...], width: int, height: int, data: st.DataObject
) -> None:
    chosen = Buckets(sizes).of(width, height)
    assert chosen in sizes
    nearest = min(apart(size, width, height) for size in sizes)
    assert apart(chosen, width, height) == nearest
    assert Buckets(tuple(data.draw(st.permutations(sizes)))).of(width, height) == chosen


@settings(deadline=None, max_examples=100)
@given(
    ratio=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scales=st.sets(st.integers(1, 20), min_size=1, max_size=6),
    width=SIDES,
    height=SIDES,
)
def test_of_buckets_of_one_shape_the_largest_that_the_picture_fills(
    ratio: tuple[int, int], scales: set[int], width: int, height: int
) -> None:
    """A picture is enlarged only where every bucket of that shape is larger, and then as little as may be."""
    sizes = [(ratio[0] * n * FACTOR, ratio[1] * n * FACTOR) for n in sorted(scales)]
    chosen = Buckets(tuple(sizes)).of(width, height)
    filled = [size for size in sizes if size[0] <= width and size[1] <= height]
    assert chosen == (filled[-1] if filled else sizes[0])


@pytest.mark.parametrize(("size", "factor"), [(128, 8), (256, 16), (512, 16), (256, 8), (32, 8), (384, 16), (16, 16), (96, 4)])
def test_buckets_that_are_made_up_for_a_tokenizer(size: int, factor: int) -> None:
    sizes = buckets_for(size, factor)
    assert (size, size) in sizes
    assert set(sizes) == {(height, width) for width, height in sizes}
    assert 1 <= len(sizes) <= 2 * len(ASPECTS) - 1
    for width, height in sizes:
        assert width % factor == height % factor == 0
        assert 0.8 * size * size <= width * height <= size * size
    if size // factor >= 16:
        for wanted in ASPECTS:
            assert apart(Buckets(sizes).of(*wanted.as_integer_ratio()), *wanted.as_integer_ratio()) < 1.08


# ---- a picture's own size


@st.composite
def bounds(draw: st.DrawFn) -> Native:
    factor = draw(st.sampled_from([1, 4, 8, 16]))
    most = draw(st.integers(factor**2, 600**2))
    return Native(factor, draw(st.integers(1, most)), most)


@settings(deadline=None, max_examples=250)
@given(rule=bounds(), width=SIDES, height=SIDES)
@example(rule=Native(4, 40 * 40, 400 * 400), width=20, height=20)
def test_a_pictures_own_size_within_bounds(rule: Native, width: int, height: int) -> None:
    factor = rule.factor
    try:
        chosen = rule.of(width, height)
    except UnwantedItem as error:
        assert error.reason == "image-resolution"
        # Even as a single row or column it would have more positions than the area allows.
        longer, shorter = max(width, height), min(width, height)
        assert factor * (longer * factor // shorter // factor) * factor > rule.max_area - factor**2
        return
    assert rule.of(height, width) == chosen[::-1]
    assert chosen[0] % factor == chosen[1] % factor == 0
    assert 0 < chosen[0] * chosen[1] <= rule.max_area
    # No crop beyond rounding: at the scale at which the picture covers its size, less than a position is cut from a side.
    scale = max(Fraction(chosen[0], width), Fraction(chosen[1], height))
    assert scale * width - chosen[0] < factor
    assert scale * height - chosen[1] < factor
    whole = width // factor * factor, height // factor * factor
    if rule.min_area <= whole[0] * whole[1] <= rule.max_area:
        assert chosen == whole  # and so it is not resized
    elif whole[0] * whole[1] > rule.max_area:
        assert scale <= 1
        grown = next_size(chosen, width, height, factor)
        assert grown[0] * grown[1] > rule.max_area  # the largest there is
    elif chosen[0] * chosen[1] >= rule.min_area:
        smaller = previous_size(chosen, width, height, factor)
        assert smaller[0] * smaller[1] < rule.min_area  # enlarged as little as may be
    else:
        grown = next_size(chosen, width, height, factor)
        assert grown[0] * grown[1] > rule.max_area  # no size of its shape is between the two


def next_size(size: tuple[int, int], width: int, height: int, factor: int) -> tuple[int, int]:
    """The size that a picture has when it is enlarged until a side gains a position."""
    scale = min(Fraction(size[0] + factor, width), Fraction(size[1] + factor, height))
    return int(scale * width) // factor * factor, int(scale * height) // factor * factor


def previous_size(size: tuple[int, int], width: int, height: int, factor: int) -> tuple[int, int]:
    """The size just before the one at which both sides have their last position."""
    scale = max(Fraction(size[0], width), Fraction(size[1], height))
    return tuple(factor * (ceil(scale * side / factor) - 1) for side in (width, height))  # type: ignore[return-value]


@settings(deadline=None, max_examples=150)
@given(rule=bounds(), width=SIDES, height=SIDES, most=st.floats(1, 40))
def test_the_vocabulary_has_room_for_every_side(rule: Native, width: int, height: int, most: float) -> None:
    assume(max(width, height) / min(width, height) <= most)
    try:
        chosen = rule.of(width, height)
    except UnwantedItem:
        return
    assert max(chosen) <= rule.longest(most)


# ---- pixels


def gradient(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, blue is noise."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = np.random.default_rng(width * height).integers(0, 256, (height, width))
    return Image.fromarray(pixels)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(8, 300),
    height=st.integers(8, 300),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    halving=st.booleans(),
)
def test_a_bucket_is_covered_and_cut_at_the_centre(width: int, height: int, size: tuple[int, int], halving: bool) -> None:
    bucket = size[0] * FACTOR, size[1] * FACTOR
    rule = BoxHalving() if halving else ShortestSide()
    fitting = Fitting(Preprocessing(size=32, resize=rule), Buckets((bucket,)))
    pixels = fitting.apply(gradient(width, height))
    assert pixels.shape == (bucket[1], bucket[0], 3)
    # At the scale at which it just covers, what is shown is the middle part of what was there.
    scale = max(bucket[0] / width, bucket[1] / height)
    for channel, (shown, there) in enumerate(zip(bucket, (width, height), strict=True)):
        share = shown / (scale * there)
        along = pixels[..., channel].mean(axis=0 if channel == 0 else 1)
        middle = 255 * (0.5 + (np.arange(shown) + 0.5 - shown / 2) / shown * share)
        slack = 6 + 2 * 255 / (scale * there) + 255 / there
        assert np.abs(along - middle).max() < slack


def test_within_bounds_the_pixels_are_the_pictures_own() -> None:
    picture = gradient(83, 51)
    pixels = Fitting(Preprocessing(size=32), Native(8, 64, 100 * 100)).apply(picture)
    assert np.array_equal(pixels, np.asarray(picture)[1:49, 1:81])
    smaller = Fitting(Preprocessing(size=32), Native(8, 64, 40 * 40)).apply(picture)
    assert smaller.shape == (32, 48, 3)  # 4 x 6 positions of at most 25
    assert np.array_equal(Fitting(Preprocessing(size=32)).apply(picture), Preprocessing(size=32).apply(picture))


# ---- layouts


VOCABULARY = UnifiedVocabulary.build(50, [20, 30], max_grid=300)


def drawn(height: int, width: int) -> ImageCodes:
    codes = np.random.default_rng(height * 1000 + width).integers(0, 20, (2, height, width))
    return ImageCodes(codes.astype(np.int32), "hash")


def test_how_lumina_lays_a_picture_out() -> None:
    """begin, height, width, rows each with its end, end; several codebooks position by position."""
    ids, (span,) = encode([drawn(2, 3)], VOCABULARY, Layout("grid_rows"))
    rows = [VOCABULARY.encode("image", drawn(2, 3).codes[k], k) for k in (0, 1)]
    interleaved = np.stack(rows, axis=-1).reshape(2, 6).tolist()
    marker = VOCABULARY.marker
    sizes = VOCABULARY.encode("grid", [1, 2]).tolist()
    wanted = [marker("begin_image"), *sizes, *interleaved[0], marker("row_end"), *interleaved[1], marker("row_end")]
    assert ids.tolist() == [marker("begin_document"), *wanted, marker("end_image"), marker("end_document")]
    assert (span.codebooks, span.grid_height, span.grid_width, span.length) == (2, 2, 3, len(wanted) + 1)


@settings(deadline=None, max_examples=60)
@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_shapes_that_only_the_table_tells(shapes: list[tuple[int, int]]) -> None:
    layout = Layout("bare")
    parts = [part for shape in shapes for part in (drawn(*shape), TextCodes(np.array([3], dtype=np.int32)))]
    ids, spans = encode(parts, VOCABULARY, layout)
    grids = [(span.grid_height, span.grid_width) for span in spans if span.modality == "image"]
    assert grids == shapes
    back = decode(ids, VOCABULARY, layout, grids=grids)
    for one, other in zip(parts, back, strict=True):
        assert np.array_equal(one.codes, other.codes)  # type: ignore[union-attr]
    for wrong in (grids[:-1], [*grids[:-1], (0, 5)], [*grids[:-1], (grids[-1][0] + 1, grids[-1][1])]):
        with pytest.raises(MalformedSequence):
            decode(ids, VOCABULARY, layout, grids=wrong)
    nothing = [VOCABULARY.marker(name) for name in ("begin_document", "begin_image", "end_image", "end_document")]
    with pytest.raises(MalformedSequence, match="no image, or its grid beside the tokens"):
        decode(nothing, VOCABULARY, layout, grids=[(0, 5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:2] + ids[3:], "the grid's width"),
        (lambda ids: [*ids[:2], ids[2] + 1, *ids[3:]], "3 rows of 3 positions"),
        (lambda ids: [*ids[:3], ids[3] - 1, *ids[4:]], "2 rows of 2 positions"),
        (lambda ids: [*ids[:-10], *ids[-3:]], "2 rows of 3 positions"),
        (lambda ids: ids[:-3] + ids[-2:], "row_end"),
    ],
)
def test_a_damaged_picture_is_told(change: Any, message: str) -> None:
    ids = encode([drawn(2, 3)], VOCABULARY, Layout("grid_rows"))[0].tolist()
    with pytest.raises(MalformedSequence, match=message):
        decode(change(ids), VOCABULARY, Layout("grid_rows"))


# ---- batches of several shapes


class Recording:
    """An encoder of which every batch's shapes are kept; a picture's code is its first pixel."""

    depth = 2

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self._codes: list[np.ndarray] = []

    def submit(self, pictures: Sequence[np.ndarray]) -> None:
        self.batches.append([p.shape for p in pictures])
        self._codes.append(np.array([p.reshape(-1)[:1] for p in pictures], dtype=np.int32)[:, None])

    def arrived(self) -> bool:
        return False

    def collect(self) -> np.ndarray:
        return self._codes.pop(0)

    def close(self) -> None:
        self._codes.clear()


@settings(deadline=None, max_examples=100)
@given(
    shapes=st.lists(st.integers(1, 4), min_size=1, max_size=40), size=st.integers(1, 5), limit=st.sampled_from([0, 60, 10**9])
)
def test_a_batch_is_of_one_shape_and_every_picture_gets_its_own_code(shapes: list[int], size: int, limit: int) -> None:
    encoder, slots = Recording(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "WAITING_BYTES", limit)
        batcher = ImageBatcher(encoder, size)  # type: ignore[arg-type]
        for number, shape in enumerate(shapes):
            slots.append(Slot(Picture(b"x", str(number))))
            batcher.add(number, slots[-1], np.full((shape, 2, 3), number, dtype=np.uint8))
            while batcher.full():
                batcher.run()
        while (oldest := batcher.oldest) is not None:
            assert oldest == min(n for n, slot in enumerate(slots) if n not in _sent(encoder, shapes))
            batcher.run()
        while batcher.receive():
            pass
    assert [int(slot.codes.item()) for slot in slots if slot.codes is not None] == list(range(len(shapes)))
    assert all(len(set(batch)) == 1 and len(batch) <= size for batch in encoder.batches)
    if limit == 10**9:
        partial = Counter(batch[0] for batch in encoder.batches if len(batch) < size)
        assert max(partial.values(), default=0) <= 1  # only the last of a shape is not full


def _sent(encoder: Recording, shapes: list[int]) -> set[int]:
    """Numbers of the pictures that are in batches already: of each shape the first ones."""
    taken = Counter(shape[0] for batch in encoder.batches for shape in batch)
    places = {shape: [n for n, s in enumerate(shapes) if s == shape] for shape in set(shapes)}
    return {n for shape, numbers in places.items() for n in numbers[: taken[shape]]}


def test_places_of_shapes_that_are_not_in_use_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(configure("fsq-tiny", resolution=32)).eval()
    encoder = BulkEncoder(tokenizer, 2)
    monkeypatch.setitem(bulk_module.KEPT_BYTES, "cpu", 2 * 3 * 32 * 32 * 3)
    pictures = [np.asarray(gradient(8 * width, 32)) for width in (2, 3, 4, 5, 2)]
    for picture in pictures:
        assert np.array_equal(encoder.encode_padded([picture], 2), tokenizer.encode_padded([picture], 2))
        kept = sum(lane.bytes for lane in encoder._lanes.values())
        assert kept <= bulk_module.KEPT_BYTES["cpu"]
        assert picture.shape in encoder._lanes
    assert len(encoder._lanes) < 4


@pytest.mark.slow
def test_a_network_is_compiled_for_every_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles a network for eight shapes unless told otherwise, and goes on without: other codes for later shapes."""
    from torch._dynamo import config

    tokenizer = ImageTokenizer(configure("fsq-tiny", resolution=32)).eval()
    tokenizer.encoder = torch.nn.Conv2d(3, tokenizer.quant_conv.in_channels, 8, stride=8)  # type: ignore[assignment]
    made: list[torch.Size] = []

    def backend(module: Any, inputs: list[torch.Tensor]) -> Any:
        made.append(next(tensor.shape for tensor in reversed(inputs) if tensor.ndim == 4))
        return module.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, dynamic, options: compile_(network, dynamic=dynamic, backend=backend))
    torch._dynamo.reset()
    shapes = [(8 * width, 8 * height) for width in range(1, 5) for height in range(1, 4)]
    with config.patch(recompile_limit=8, accumulated_recompile_limit=16):  # monkeypatch would leave them hidden
        encoder = BulkEncoder(tokenizer, 1, BulkOptions("fp32", "compile"))
        for width, height in shapes:
            encoder.encode_padded([np.asarray(gradient(width, height))], 1)
    assert len(made) == len(shapes)
    torch._dynamo.reset()


# ---- the job


SHAPES = [
    (40, 33),
    (33, 40),
    (64, 16),
    (16, 64),
    (100, 30),
    (32, 32),
    (90, 60),
    (60, 90),
    (8, 8),
    (20, 13),
    (150, 100),
    (48, 36),
]


def png(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


class World:
    """Pairs with pictures of many shapes in several units, and the interleaved documents of the generated corpus."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        corpus = write_corpus(folder / "corpus").folder
        (folder / "shapes").mkdir()
        self.pictures: dict[str, bytes] = {}
        for part in range(3):
            members = []
            for number in range(20):
                data = png(100 * part + number, SHAPES[(7 * number + part) % len(SHAPES)])
                key = f"{part}{number:03d}"
                self.pictures[f"{part}.tar#{key}"] = data
                members += [(f"{key}.png", data), (f"{key}.txt", f"the picture {key}".encode())]
            members += [(f"{part}999.png", data[:70]), (f"{part}999.txt", b"a broken one")]
            (folder / "shapes" / f"{part}.tar").write_bytes(tar_bytes(members))
        self.inputs = [str(folder / "shapes"), str(corpus / "documents")]

    def config(self, out: Path, **options: object) -> ShardConfig:
        usual: dict[str, object] = {"inputs": self.inputs, "out": out, "text_tokenizer": self.text, "workers": 0}
        usual |= {"image_tokenizer": self.image, "batch_size": 4, "unit_bytes": 20000, "report_documents": 4, "pack": 200}
        return ShardConfig.model_validate(usual | options)

    def run(self, out: Path, **options: object) -> dict[str, str]:
        shard(self.config(out, **options), SILENT)
        return snapshot(out)

    def fitting(self, policy: str) -> Fitting:
        preprocessing = load_image_tokenizer(self.image).config.preprocessing
        return Fitting(preprocessing, {"bucket": Buckets(buckets_for(32, 8)), "native": Native(8, 8**2, 64**2)}[policy])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("resolution"))


@pytest.fixture(scope="module", params=["bucket", "native"])
def ran(request: pytest.FixtureRequest, world: World) -> tuple[str, Path]:
    out = world.folder / request.param
    world.run(out, resolution_policy=request.param)
    return request.param, out


def test_every_picture_has_its_own_codes_and_grid(world: World, ran: tuple[str, Path]) -> None:
    """The tokenizer's codes of the picture as the policy fits it, out of the sequence alone, and the grid in the table."""
    policy, out = ran
    tokenizer, fitting = load_image_tokenizer(world.image), world.fitting(policy)
    manifest = load_manifest(out)
    assert manifest.layout.image == "grid_rows"
    vocabulary, shards = UnifiedVocabulary.load(out / "vocabulary.json"), open_shards(out)
    seen: set[tuple[int, int]] = set()
    for number in range(shards.num_documents):
        row = shards.row(number)
        if str(row["locator"]) not in world.pictures:
            continue
        pixels = fitting.apply(decode_image(world.pictures[str(row["locator"])]))
        (part,) = [p for p in decode(shards.tokens(number), vocabulary, manifest.layout.layout) if isinstance(p, ImageCodes)]
        assert np.array_equal(part.codes[0], tokenizer.encode_padded([pixels], 4)[0])
        grids = picture_grids(row["spans"])  # type: ignore[arg-type]
        assert grids == [part.codes.shape[1:]] == [(pixels.shape[0] // 8, pixels.shape[1] // 8)]
        seen.update(grids)
    assert manifest.documents["committed"] >= len(world.pictures)
    assert manifest.items["image"]["rejected"] == 3 + 1
    assert len(seen) == (5 if policy == "bucket" else 11)
    assert any(height != width for height, width in seen)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_who_encodes(world: World, ran: tuple[str, Path], tmp_path: Path) -> None:
    policy, out = ran
    options = {"resolution_policy": policy, "workers": 2, "encoders": "process", "encoder_processes": 2, "queue_depth": 1}
    assert world.run(tmp_path / "out", **options) == snapshot(out)


def test_nor_on_how_much_may_wait(world: World, ran: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a shape are of one size, so which pictures fill them is nobody's business."""
    policy, out = ran
    monkeypatch.setattr(batching, "WAITING_BYTES", 5000)
    assert world.run(tmp_path / "pixels", resolution_policy=policy) == snapshot(out)
    monkeypatch.setattr("tokkit.pipelines.attempt.PENDING_LIMIT", 5)
    assert world.run(tmp_path / "documents", resolution_policy=policy) == snapshot(out)


def test_what_waits_is_bounded(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a rare shape does not hold up all documents behind it, with the bytes of their pictures."""
    most: list[int] = []

    class Watched(attempt.Attempt):
        def wait(self, *arguments: Any) -> None:
            super().wait(*arguments)
            most.append(self.held)
            assert self.held == sum(len(s.media.data or b"") for p in self.pending for s in p.slots)

    def watched(self: unit.UnitProcessor, *arguments: Any) -> attempt.Attempt:
        return Watched(self, *arguments)

    monkeypatch.setattr(unit.UnitProcessor, "attempt", watched)
    options = {"resolution_policy": "native", "batch_size": 32, "inputs": world.inputs[:1], "unit_bytes": 1 << 20, "pack": None}
    free = world.run(tmp_path / "free", **options)
    largest = max(len(data) for data in world.pictures.values())
    assert max(most) > 5 * largest
    most.clear()
    monkeypatch.setattr(attempt, "HELD_BYTES", 2 * largest)
    assert world.run(tmp_path / "bound", **options) == free
    assert max(most) <= 2 * largest


def test_it_verifies_and_encodes_again(ran: tuple[str, Path]) -> None:
    _, out = ran
    found = verify(VerifyConfig(directory=out, reencode=30), SILENT)
    assert found.problems == []
    assert found.reencoded is not None
    assert found.reencoded.equal_codes == found.reencoded.codes > 100


def test_decoded_pictures_have_their_shape(world: World, ran: tuple[str, Path]) -> None:
    policy, out = ran
    decoder, fitting = DocumentDecoder(out), world.fitting(policy)
    for locator, data in list(world.pictures.items())[:12]:
        document = decoder.decode(*decoder.find(locator))
        (picture,) = [part for part in document.parts if isinstance(part, DecodedImage)]
        assert picture.pixels is not None
        assert picture.pixels.shape == fitting.apply(decode_image(data)).shape
    assert (out / "report.html").read_text().count("data:image/png;base64,") >= 4


def test_packed_rows_say_the_grid_of_every_picture(ran: tuple[str, Path]) -> None:
    """And no picture is cut: its tokens in the row are a whole picture of that grid."""
    _, out = ran
    manifest, vocabulary = load_manifest(out), UnifiedVocabulary.load(out / "vocabulary.json")
    (name,) = [path.name for path in (out / "packs").iterdir()]
    rows = PackedDataset(out, name, images=True)
    batch = collate([rows[i] for i in range(len(rows))])
    shards = open_shards(out)
    stated = [grid for n in range(shards.num_documents) for grid in picture_grids(shards.row(n)["spans"])]  # type: ignore[arg-type]
    found = []
    for row, start, length, grid in zip(
        *(batch[f"images_{column}"].tolist() for column in ("row", "start", "length", "grid")), strict=True
    ):
        ids = batch["input_ids"][row][start : start + length].numpy()
        (part,) = decode(ids, vocabulary, manifest.layout.layout, whole=False)
        assert isinstance(part, ImageCodes)
        assert list(part.codes.shape[1:]) == grid
        found.append(tuple(grid))
    assert sorted(found) == sorted(stated)
    assert len(set(found)) > 4


def test_a_grid_that_the_tokens_do_not_have_is_found(world: World, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tokkit.storage import digest_of, pretty_json, sha256_file

    out = tmp_path / "out"
    world.run(out, resolution_policy="bucket", inputs=world.inputs[:1], pack=None)
    (path,) = (out / "tokens" / "train").glob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    span = next(s for s in rows[3]["spans"] if s["modality"] == "image")
    span["grid_height"], span["grid_width"] = span["grid_width"] + 1, span["grid_height"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    manifest = read_json(out / "manifest.json")
    entry = manifest["splits"]["train"]["shards"][0]["files"]["parquet"]
    entry |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    manifest["digest"] = digest_of({key: value for key, value in manifest.items() if key != "digest"})
    (out / "manifest.json").write_bytes(pretty_json(manifest).encode())
    problems = verify(VerifyConfig(directory=out), SILENT).problems
    assert any("states other shapes" in p.message or "state other shapes" in p.message for p in problems), problems


def test_crop_is_what_it_was(world: World, tmp_path: Path) -> None:
    """Without a policy nothing of it is in the output: the same fingerprint, and so the same directory to go on with."""
    world.run(tmp_path / "out", inputs=world.inputs[:1])
    manifest = load_manifest(tmp_path / "out")
    assert set(OPTIONS).isdisjoint(manifest.semantic)
    assert set(OPTIONS).isdisjoint(SEMANTIC_OPTIONS)
    assert (manifest.layout.image, manifest.layout.image_grid) == ("plain", (4, 4))
    assert world.run(tmp_path / "again", inputs=world.inputs[:1], resolution_policy="crop") == snapshot(tmp_path / "out")
    tokenizer = load_image_tokenizer(world.image)
    shards, vocabulary = open_shards(tmp_path / "out"), UnifiedVocabulary.load(tmp_path / "out" / "vocabulary.json")
    pixels = tokenizer.config.preprocessing.apply(decode_image(world.pictures[str(shards.row(0)["locator"])]))
    part = next(p for p in decode(shards.tokens(0), vocabulary, manifest.layout.layout) if isinstance(p, ImageCodes))
    assert np.array_equal(part.codes[0], tokenizer.encode_padded([pixels], 4)[0])


def test_an_output_is_of_one_policy(world: World, ran: tuple[str, Path], tmp_path: Path) -> None:
    policy, out = ran
    before = snapshot(out)
    other = {"bucket": "native", "native": "bucket"}[policy]
    differing: list[dict[str, object]] = [{"resolution_policy": other}, {"resolution_policy": "crop"}]
    differing.append({"buckets": ["32x32"]} if policy == "bucket" else {"max_area": "56x56"})
    for options in differing:
        with pytest.raises(FingerprintMismatch, match=r"resolution_policy|buckets|max_area"):
            world.run(out, **({"resolution_policy": policy} | options))
    # What the tokenizer suggests, in any order, is the same configuration when it is named.
    named = {"buckets": told(reversed(buckets_for(32, 8)))} if policy == "bucket" else {"min_area": 64, "max_area": "64x64"}
    world.run(out, resolution_policy=policy, **named)
    assert snapshot(out) == before


@pytest.mark.parametrize("layout", ["rows", "grid", "bare"])
def test_other_layouts_tell_the_same_pictures(world: World, ran: tuple[str, Path], layout: str, tmp_path: Path) -> None:
    policy, out = ran
    world.run(tmp_path / "out", resolution_policy=policy, image_layout=layout, inputs=world.inputs[:1])
    assert verify(VerifyConfig(directory=tmp_path / "out", reencode=5), SILENT).problems == []
    one, other = DocumentDecoder(out), DocumentDecoder(tmp_path / "out")
    for locator in list(world.pictures)[::7]:
        found = [
            part.codes
            for decoder in (one, other)
            for part in decoder.decode(*decoder.find(locator)).parts
            if isinstance(part, DecodedImage)
        ]
        assert np.array_equal(*found)


def test_a_trial_goes_by_the_tokens_there_are(world: World, tmp_path: Path) -> None:
    """Pictures differ in their number of codes; the estimate of a trial over all of it is what there is."""
    inputs = world.inputs[:1]
    whole = shard(world.config(tmp_path / "whole", resolution_policy="native", inputs=inputs), SILENT).manifest
    trial = shard(world.config(tmp_path / "trial", resolution_policy="native", inputs=inputs, limit=10**6), SILENT).manifest
    assert trial.trial is not None
    tokens = whole.splits["train"].tokens
    estimate = trial.trial["estimated_tokens"]
    assert isinstance(estimate, int)
    assert abs(estimate - tokens) <= 0.01 * tokens


def test_a_picture_without_any_size_is_filtered(world: World, tmp_path: Path) -> None:
    """A strip that is 30 positions long where one is wide, at an area of 16 positions."""
    (tmp_path / "in").mkdir()
    members = [
        (f"{n}.{e}", d) for n, size in enumerate([(8, 240), (30, 30)]) for e, d in (("png", png(n, size)), ("txt", b"x"))
    ]
    (tmp_path / "in" / "0.tar").write_bytes(tar_bytes(members))
    options = {"resolution_policy": "native", "max_area": "32x32", "image_limits": {"max_aspect": 100}, "pack": None}
    world.run(tmp_path / "out", inputs=[str(tmp_path / "in")], **options)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.documents == {"committed": 1, "filtered": 1}
    (line,) = (tmp_path / "out" / "rejects" / "00000.jsonl").read_text().splitlines()[:1]
    assert json.loads(line)["reason"] == "image-resolution"
    assert verify(VerifyConfig(directory=tmp_path / "out", reencode=2), SILENT).problems == []


def test_what_does_not_go_together_is_told(world: World, tmp_path: Path) -> None:
    for options, message in (
        ({"buckets": "32x32"}, "goes with --resolution-policy bucket"),
        ({"min_area": 64, "resolution_policy": "bucket"}, "goes with --resolution-policy native"),
        ({"min_area": 65, "max_area": 64, "resolution_policy": "native"}, "less than min_area"),
        ({"buckets": "32", "resolution_policy": "bucket"}, "is no size; write width x height"),
        ({"buckets": "32x0", "resolution_policy": "bucket"}, "is no size"),
        ({"buckets": "16384x8", "resolution_policy": "bucket"}, "more than 8,192 pixels"),
        ({"buckets": [], "resolution_policy": "bucket"}, "name 1 to 256 sizes"),
        ({"max_area": "9x", "resolution_policy": "native"}, "is no size"),
        ({"max_area": 1 << 40, "resolution_policy": "native"}, "max_area"),
        ({"resolution_policy": "native", "acceleration": "compile"}, "take --resolution-policy bucket"),
        ({"resolution_policy": "squeeze"}, "resolution_policy"),
    ):
        base = {"inputs": ["x"], "out": tmp_path, "text_tokenizer": world.text}
        with pytest.raises(ConfigError, match=message):
            validated(ShardConfig, "tokkit shard", base | options)
    for options, message in (
        ({"buckets": "32x36", "resolution_policy": "bucket"}, r"--buckets 32x36: sides must be multiples of 8"),
        ({"max_area": 63, "resolution_policy": "native"}, "--max-area 63: less than the 8 x 8 pixels"),
        ({"image_layout": "plain", "resolution_policy": "native"}, "--image-layout plain has nothing that tells the shape"),
        ({"image_layout": "plain", "resolution_policy": "bucket"}, "--image-layout plain has nothing"),
        ({"image_layout": "emu3", "resolution_policy": "bucket"}, "--image-layout emu3 cannot be written"),
    ):
        with pytest.raises(UsageError, match=message):
            world.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValidationError, match="resolution_policy: of token shards"):
        FeaturesConfig.model_validate(
            {"inputs": ["x"], "out": tmp_path, "text_tokenizer": world.text, "encoder": "x", "resolution_policy": "native"}
        )


@pytest.mark.parametrize(("buckets", "grid"), [("40x24", (3, 5)), ("16x16,32x32", None)])
def test_plain_where_it_can_be_read_back(world: World, tmp_path: Path, buckets: str, grid: tuple[int, int] | None) -> None:
    """One shape, or squares only."""
    options = {"resolution_policy": "bucket", "buckets": buckets, "image_layout": "plain", "inputs": world.inputs[:1]}
    world.run(tmp_path / "out", **options)
    assert load_manifest(tmp_path / "out").layout.image_grid == grid
    assert verify(VerifyConfig(directory=tmp_path / "out", reencode=3), SILENT).problems == []


def test_room_for_grids_in_the_vocabulary(world: World, tmp_path: Path) -> None:
    """The ids of grid sizes are as many as before where these are enough, and more where they are not."""
    bounded = {"resolution_policy": "native", "max_area": "512x512", "inputs": world.inputs[:1], "pack": None}
    world.run(tmp_path / "out", **bounded)
    wide = UnifiedVocabulary.load(tmp_path / "out" / "vocabulary.json").block("grid").size
    fitting = Fitting(Preprocessing(size=32), Native(8, 64, 512 * 512))
    assert wide == largest_grid(fitting, 8, 20.0) > 128
    assert largest_grid(world.fitting("native"), 8, 20.0) == largest_grid(None, 8, 20.0) == 128


# ---- released vocabularies


@pytest.mark.parametrize("model", ["emu3", "chameleon"])
def test_a_released_models_own_layout(world: World, tmp_path: Path, model: str) -> None:
    """Emu3 writes sizes into the sequence; Chameleon has nothing for them, so that they are in the table, and only if asked."""
    tokenizer_of(architecture_of((1, 1, 2)), codes=64).save(tmp_path / "vq")
    file = write({"emu3": emu3, "chameleon": chameleon}[model](64), tmp_path / "tokenizer.json")
    options: dict[str, object] = {"vocabulary_from": file, "text_tokenizer": file, "image_tokenizer": tmp_path / "vq"}
    options |= {"resolution_policy": "bucket", "inputs": world.inputs[:1], "pack": None}
    if model == "chameleon":
        with pytest.raises(UsageError, match="or bare, for shapes that are in the document table only"):
            world.run(tmp_path / "out", **options)
        options["image_layout"] = "bare"
    world.run(tmp_path / "out", **options)
    assert load_manifest(tmp_path / "out").layout.image == ("emu3" if model == "emu3" else "bare")
    assert verify(VerifyConfig(directory=tmp_path / "out", reencode=3), SILENT).problems == []


# ---- tokkit encode and decode, and the command line


@pytest.mark.parametrize("policy", ["bucket", "native"])
def test_files_of_codes_of_many_shapes(world: World, policy: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([*SHAPES, *SHAPES]):
        (folder / f"{number:02d}.png").write_bytes(png(number, size))
    config = {
        "tokenizer": world.image,
        "input": folder,
        "out": tmp_path / "c.npz",
        "batch_size": 3,
        "resolution_policy": policy,
    }
    assert encode_pictures(EncodeConfig.model_validate(config), SILENT).pictures == 2 * len(SHAPES)
    described = read_json(tmp_path / "c.npz.json")
    assert described["grid"] is None
    assert described["resolution"]["resolution_policy"] == policy
    fitting, tokenizer = world.fitting(policy), load_image_tokenizer(world.image)
    with np.load(tmp_path / "c.npz") as codes:
        assert len(codes.files) == 2 * len(SHAPES)
        for name in codes.files:
            pixels = fitting.apply(decode_image((folder / name).read_bytes()))
            assert np.array_equal(codes[name], tokenizer.encode_padded([pixels], 3)[0])
    decoded = decode_pictures(DecodeConfig(tokenizer=world.image, codes=tmp_path / "c.npz", out=tmp_path / "back"), SILENT)
    for name, file in decoded.files.items():
        wanted = fitting.apply(decode_image((folder / name).read_bytes())).shape
        assert Image.open(tmp_path / "back" / file).size == (wanted[1], wanted[0])


def test_the_commands(capfd: pytest.CaptureFixture[str], world: World, tmp_path: Path) -> None:
    arguments = ["shard", world.inputs[0], "--out", tmp_path / "out", "--text-tokenizer", world.text]
    arguments += ["--image-tokenizer", world.image, "--workers", 0, "--resolution-policy", "bucket"]
    arguments += ["--buckets", "48X16,16x48,32x32,32x32", "-q"]
    with pytest.raises(SystemExit) as caught:
        app([*map(str, arguments)])
    assert caught.value.code in (0, None), capfd.readouterr().err
    manifest = load_manifest(tmp_path / "out")
    assert manifest.semantic["buckets"] == ["16x48", "32x32", "48x16"]
    capfd.readouterr()
    (tmp_path / "a.png").write_bytes(png(0, (90, 60)))
    arguments = ["encode", world.image, tmp_path / "a.png", "--out", tmp_path / "a.npy", "--resolution-policy", "native"]
    with pytest.raises(SystemExit) as caught:
        app([*map(str, arguments), "--max-area", "48x48"])
    assert caught.value.code in (0, None), capfd.readouterr().err
    assert np.load(tmp_path / "a.npy").shape == (5, 7)  # of at most 36


def test_sizes_in_writing() -> None:
    assert parse_size("320x192") == parse_size(" 320X192 ") == (320, 192)
    assert told([(320, 192)]) == ["320x192"]
    for wrong in ("", "x", "32", "32x", "-1x2", "0x8", "1x2x3", "１x２", "1.5x2"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(wrong)


# ---- real pictures, broken ones among them


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["bucket", "native"])
def test_broken_pictures_are_what_they_are_to_crop(world: World, shared_data: Path, tmp_path: Path, policy: str) -> None:
    """Damaged, odd and hostile files, and files of every format and mode: the same outcomes for the same reasons."""
    inputs = [str(shared_data / "bad" / "images"), str(shared_data / "image_formats")]
    found = {}
    for name in ("crop", policy):
        options = {"inputs": inputs, "resolution_policy": name, "max_reject_ratio": 1.0, "pack": None, "report_documents": 0}
        shard(world.config(tmp_path / name, **options), SILENT)
        manifest = load_manifest(tmp_path / name)
        found[name] = manifest.documents, [source.reasons for source in manifest.sources]
        assert manifest.documents["committed"] > 100
        assert manifest.documents["rejected"] > 10
    assert found[policy] == found["crop"]
    assert verify(VerifyConfig(directory=tmp_path / policy, reencode=20), SILENT).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["bucket", "native"])
def test_a_run_over_real_corpora(world: World, shared_data: Path, tmp_path: Path, policy: str) -> None:
    """Photographs, charts and documents with pictures: each at the nearest shape, whoever does it, and no token unaccounted."""
    names = ("images_webdataset", "interleaved_obelics", "interleaved_obelics_inline")
    inputs = [str(shared_data / name) for name in names]
    options = {"inputs": inputs, "resolution_policy": policy, "unit_bytes": 4 << 20, "pack": 1024, "batch_size": 8}
    world.run(tmp_path / "one", **options, workers=1)
    assert world.run(tmp_path / "two", **options, workers=2, queue_depth=3, encoders="process") == snapshot(tmp_path / "one")
    found = verify(VerifyConfig(directory=tmp_path / "one", reencode=40), SILENT)
    assert found.problems == []
    shards = open_shards(tmp_path / "one")
    grids = Counter(grid for n in range(shards.num_documents) for grid in picture_grids(shards.row(n)["spans"]))  # type: ignore[arg-type]
    assert sum(grids.values()) > 1000
    sizes = set(buckets_for(32, 8))
    if policy == "bucket":
        assert {(columns * 8, rows * 8) for rows, columns in grids} == sizes
    else:
        assert len(grids) > 10
        assert max(rows * columns for rows, columns in grids) <= 64
    assert sum(share for (rows, columns), share in grids.items() if rows != columns) > 500
