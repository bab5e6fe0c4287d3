"""Views equal the PIL processors' pixel values to the last bit, for every processor, shape and kind of transparency."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_models import picture
from PIL import Image

from tokkit.errors import DataError, ItemError, UsageError
from tokkit.features.base import FeatureOptions
from tokkit.features.preprocessing import ImagePreparer, parse_preprocessing, read_preprocessing

SHAPES = [(40, 40), (97, 31), (31, 98), (1, 1), (200, 57), (64, 131)]  # (width, height)


def preparer(processor: Any, folder: Path, **options: Any) -> ImagePreparer:
    """Ours, from the file that theirs writes."""
    processor.save_pretrained(folder)
    return ImagePreparer(read_preprocessing(folder), FeatureOptions(**options))


def stacked(ours: ImagePreparer, image: Image.Image) -> np.ndarray:
    return np.stack([view.pixels for view in ours.prepare(image).views])


def _processors() -> dict[str, Any]:
    from transformers import BitImageProcessorPil, BlipImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    crop = {"height": 28, "width": 28}
    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop),
        "clip-odd": CLIPImageProcessorPil(size={"shortest_edge": 31}, crop_size={"height": 28, "width": 25}),
        "clip-small": CLIPImageProcessorPil(size={"shortest_edge": 23}, crop_size=crop),
        "clip-plain": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop, do_normalize=False),
        "clip-raw": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop, do_rescale=False, do_normalize=False),
        "dinov2": BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop, image_mean=[0.485, 0.456, 0.406]),
        "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        "siglip-wide": SiglipImageProcessorPil(size={"height": 24, "width": 40}, resample=2),
        "blip": BlipImageProcessorPil(size={"height": 28, "width": 28}),
        "llava": LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop, do_pad=True),
    }


@pytest.mark.parametrize("name", list(_processors()))
def test_one_view(name: str, tmp_path: Path) -> None:
    theirs = _processors()[name]
    ours = preparer(theirs, tmp_path)
    for shape in SHAPES:
        for mode in ("RGB", "RGBA"):
            image = picture(*shape, mode)
            expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])
            found = stacked(ours, image)
            assert found.dtype == np.float32
            assert np.array_equal(found, expected), (shape, mode)
            assert ours.sizes(*shape) == [found.shape[2:]]


def test_anyres(tmp_path: Path) -> None:
    from transformers import LlavaNextImageProcessorPil

    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    theirs = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=pinpoints)
    ours = preparer(theirs, tmp_path)
    assert ours.tiling == "anyres"
    seen = set()
    for shape in SHAPES:
        image = picture(*shape)
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])[0]
        prepared = ours.prepare(image)
        assert np.array_equal(stacked(ours, image), expected), shape
        assert len(ours.sizes(*shape)) == len(prepared.views) == len(expected)
        assert [view.kind for view in prepared.views] == ["base"] + ["tile"] * (len(expected) - 1)
        seen.add(prepared.tiles)
    assert len(seen) > 2


def test_internvl(tmp_path: Path) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    theirs = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=12)
    ours = preparer(theirs, tmp_path, tiling="internvl")
    counts = set()
    for shape in [*SHAPES, (130, 260)]:
        image = picture(*shape)
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])
        assert np.array_equal(stacked(ours, image), expected), shape
        assert len(ours.sizes(*shape)) == len(expected)
        counts.add(len(expected))
    assert len(counts) > 3
    without = preparer(theirs, tmp_path, tiling="internvl", thumbnail=False)
    assert len(without.sizes(64, 131)) == len(ours.sizes(64, 131)) - 1


def test_native(tmp_path: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 12})
    ours = preparer(theirs, tmp_path)
    from tokkit.features.towers import qwen_patches

    for shape in [s for s in SHAPES if s != (1, 1)]:
        image = picture(*shape)
        expected = theirs(image, return_tensors="np")
        [view] = ours.prepare(image).views
        patches, thw = qwen_patches(view.pixels, 14, 2, 2)
        assert np.array_equal(patches, expected["pixel_values"]), shape
        assert thw == tuple(expected["image_grid_thw"][0])
        assert ours.sizes(*shape) == [view.pixels.shape[1:]]
    with pytest.raises(ItemError, match="image-aspect-ratio"):
        ours.prepare(picture(1000, 3))
    wider = preparer(theirs, tmp_path, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 4)
    assert wider.sizes(500, 500) == [(56, 56)]


def test_naflex(tmp_path: Path) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    theirs = Siglip2ImageProcessorPil(patch_size=14, max_num_patches=12)
    ours = preparer(theirs, tmp_path)
    from tokkit.features.towers import naflex_patches

    for shape in SHAPES:
        image = picture(*shape)
        expected = theirs(image, return_tensors="np")
        [view] = ours.prepare(image).views
        patches, mask = naflex_patches(view.pixels, 14, 12)
        assert np.array_equal(patches, expected["pixel_values"][0]), shape
        assert np.array_equal(mask, expected["pixel_attention_mask"][0])


def test_llama(tmp_path: Path) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    from tokkit.features.tilings import llama_grids

    theirs = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
    ours = preparer(theirs, tmp_path)
    for shape in SHAPES:
        image = picture(*shape)
        expected = theirs(image, return_tensors="np")
        prepared = ours.prepare(image)
        tiles = expected["num_tiles"][0][0]
        assert len(prepared.views) == tiles
        assert np.array_equal(stacked(ours, image), expected["pixel_values"][0, 0, :tiles]), shape
        assert prepared.tiles is not None
        assert llama_grids(4).index(prepared.tiles) + 1 == expected["aspect_ratio_ids"][0, 0]


def test_files_as_they_were_written_long_ago() -> None:
    """A bare number is the shorter side for CLIP, a square for SigLIP; Qwen2-VL's bounds had names of their own."""
    clip = parse_preprocessing({"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}, "x")
    assert (clip.shortest, clip.size, clip.output, clip.filter) == (336, None, (336, 336), "bicubic")
    assert parse_preprocessing({"image_processor_type": "SiglipImageProcessor", "size": 384}, "x").output == (384, 384)
    told = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
    qwen = parse_preprocessing(told, "x")
    assert (qwen.min_pixels, qwen.max_pixels, qwen.patch, qwen.merge) == (3136, 12845056, 14, 2)


def test_what_cannot_be_read_or_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(DataError, match="not a processor"):
        read_preprocessing(tmp_path)
    for entry in (
        {"image_processor_type": "NobodysImageProcessor"},
        {"image_processor_type": "CLIPImageProcessor", "resample": 99},
        {"image_processor_type": "CLIPImageProcessor", "image_mean": [1, 2]},
        {"image_processor_type": "CLIPImageProcessor", "crop_size": {"shortest_edge": 3, "longest_edge": 4}},
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(entry))
        with pytest.raises(DataError, match=r"preprocessor_config\.json"):
            read_preprocessing(tmp_path)
    clip = parse_preprocessing({"image_processor_type": "CLIPImageProcessor"}, "x")
    qwen = parse_preprocessing({"image_processor_type": "Qwen2VLImageProcessor"}, "x")
    for how, options, message in (
        (clip, {"tiling": "native"}, "needs a Qwen2-VL"),
        (qwen, {"tiling": "anyres"}, "takes no other"),
        (clip, {"tiling": "anyres"}, "no multiples"),  # LLaVA-NeXT's pinpoints, of 336, on tiles of 224
        (clip, {"tiling": "internvl", "pad_square": True}, "pad_square"),
    ):
        with pytest.raises(UsageError, match=message):
            ImagePreparer(how, FeatureOptions(**options))
    uncropped = parse_preprocessing({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "x")
    with pytest.raises(DataError, match="no one shape"):
        ImagePreparer(uncropped, FeatureOptions())


def test_a_line_of_pixels_does_not_fill_the_memory() -> None:
    clip = parse_preprocessing({"image_processor_type": "CLIPImageProcessor", "size": 336, "crop_size": 336}, "x")
    with pytest.raises(ItemError, match="image-aspect-ratio"):
        ImagePreparer(clip, FeatureOptions()).prepare(Image.new("RGB", (1, 60000)))
    with pytest.raises(ItemError, match="image-aspect-ratio"):
        ImagePreparer(clip, FeatureOptions(pad_square=True)).prepare(Image.new("RGB", (20000, 40)))
    for tiling in ("anyres", "internvl"):
        assert ImagePreparer(clip, FeatureOptions(tiling=tiling)).prepare(Image.new("RGB", (1, 60000))).views


def test_a_preparer_goes_to_worker_processes() -> None:
    ours = ImagePreparer(parse_preprocessing({"image_processor_type": "CLIPImageProcessor"}, "x"), FeatureOptions())
    sent = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(stacked(sent, picture(50, 70)), stacked(ours, picture(50, 70)))
