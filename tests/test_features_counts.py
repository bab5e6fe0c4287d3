"""Token counts that papers and model cards state, from models of their real geometry (and little width)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokkit.features import load_feature_encoder
from tokkit.features.base import FeatureEncoder, FeatureOptions

THIN = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}


def thin(folder: Path, model: Any, processor: Any, **options: Any) -> FeatureEncoder:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_feature_encoder(folder, FeatureOptions(**options))


def counted(ours: FeatureEncoder, width: int, height: int) -> int:
    """Tokens said beforehand, which are those that come out."""
    said = ours.tokens_of(width, height)
    [item] = ours.encode([ours.prepare(Image.new("RGB", (width, height), (90, 120, 30)))], 1)
    assert item.features.shape == (said, ours.dim)
    assert np.isfinite(item.features).all()
    return said


@pytest.fixture(scope="module")
def clip_l_336(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP ViT-L/14-336's geometry."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip-336")
    model = CLIPVisionModel(CLIPVisionConfig(**THIN, image_size=336, patch_size=14))
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    thin(folder, model, CLIPImageProcessorPil(**size))
    return folder


def test_llava_576_and_llava_next_2880(clip_l_336: Path) -> None:
    """LLaVA-1.5: 24 x 24; 14 % of a context of 4,096. LLaVA-NeXT: a base view and four tiles, five times as many."""
    one = load_feature_encoder(clip_l_336, FeatureOptions(pad_square=True))
    assert counted(one, 640, 480) == 24 * 24 == 576
    assert round(100 * 576 / 4096) == 14
    assert counted(load_feature_encoder(clip_l_336, FeatureOptions(keep_cls=True)), 640, 480) == 577
    five = load_feature_encoder(clip_l_336, FeatureOptions(tiling="anyres", merge="flat"))
    assert counted(five, 1000, 1000) == 5 * 576 == 2880
    assert max(five.tokens_of(w, h) for w in range(50, 3000, 230) for h in range(50, 3000, 230)) == 2880
    next_ = load_feature_encoder(clip_l_336, FeatureOptions(tiling="anyres"))
    assert counted(next_, 1000, 1000) == 2880
    [item] = next_.encode([next_.prepare(Image.new("RGB", (1000, 1000)))], 2)
    assert item.newlines is not None
    assert len(item.features) + len(item.newlines) == 2880 + 48
    assert counted(next_, 640, 480) == 576 + 48 * 36  # rows of padding are left out
    assert 576 * 1024 * 2 == 1_179_648  # bytes of a view in half precision at CLIP-L's width: 1.18 MB


def test_internvl_256_a_tile_and_siglip_729(tmp_path: Path) -> None:
    """InternVL: 448 pixels, 32 x 32 patches, shuffled to 256; SigLIP so400m/14-384: 27 x 27."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**THIN, image_size=448, patch_size=14))
    ours = thin(
        tmp_path / "448",
        model,
        SiglipImageProcessorPil(size={"height": 448, "width": 448}),
        tiling="internvl",
        reductions=[{"kind": "pixel-shuffle"}],
    )
    assert ours.tokens_of(448, 448) == 256
    assert counted(ours, 896, 448) == 3 * 256
    assert max(ours.tokens_of(w, h) for w in range(50, 4000, 330) for h in range(50, 4000, 330)) == 13 * 256
    model = SiglipVisionModel(SiglipVisionConfig(**THIN, image_size=384, patch_size=14))
    assert counted(thin(tmp_path / "384", model, SiglipImageProcessorPil(size={"height": 384, "width": 384})), 99, 400) == 729


def test_qwen2_vl_28_pixels_a_token(tmp_path: Path) -> None:
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 1, "mlp_ratio": 1}
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 1, 1]}
    text = {**THIN, "num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 50, "rope_scaling": rope}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=text))
    ours = thin(tmp_path, model, Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056}))
    assert ours.tokens_of(224, 224) == 64  # the paper's 66 with the two tokens around them
    assert counted(ours, 644, 476) == 23 * 17
    assert ours.tokens_of(8000, 8000) <= 16384


def test_blip2_257_then_32_and_a_perceivers_64(tmp_path: Path) -> None:
    from feature_models import CROP, VISION, save
    from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    model, _ = save("blip2", tmp_path / "blip2")
    model.config.vision_config.image_size, model.config.vision_config.patch_size = 224, 14
    from transformers import Blip2ForConditionalGeneration

    large = BlipImageProcessorPil(size={"height": 224, "width": 224})
    ours = thin(tmp_path / "blip2", Blip2ForConditionalGeneration(model.config), large)
    assert counted(ours, 300, 200) == 257
    resampled = load_feature_encoder(
        tmp_path / "blip2", FeatureOptions(reductions=[{"kind": "resampler", "path": tmp_path / "blip2"}])
    )
    assert counted(resampled, 300, 200) == 32
    save("idefics", tmp_path / "idefics")
    clip = CLIPVisionModel(CLIPVisionConfig(**VISION))
    options = {"reductions": [{"kind": "resampler", "path": tmp_path / "idefics"}]}
    flamingo = thin(tmp_path / "clip", clip, CLIPImageProcessorPil(**CROP), **options)
    assert counted(flamingo, 300, 200) == 64
    views = thin(tmp_path / "clip", clip, CLIPImageProcessorPil(**CROP), **options, tiling="internvl", max_tiles=4)
    assert counted(views, 300, 300) == 5 * 64


def test_llama_vision_1601_a_tile(tmp_path: Path) -> None:
    from transformers import MllamaConfig
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
    from transformers.models.mllama.modeling_mllama import MllamaForConditionalGeneration

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 1}
    few = {"intermediate_layers_indices": [0], "vision_output_dim": 16, "image_size": 560, "patch_size": 14, "max_num_tiles": 4}
    text = {**THIN, "num_key_value_heads": 1, "vocab_size": 50, "cross_attention_layers": [1], "pad_token_id": 0}
    model = MllamaForConditionalGeneration(MllamaConfig(vision_config=vision | few, text_config=text))
    ours = thin(tmp_path, model, MllamaImageProcessorPil(size={"height": 560, "width": 560}, max_image_tiles=4))
    assert ours.tokens_of(500, 500) == 1601
    assert ours.tokens_of(2000, 2000) == 4 * 1601


def test_whisper_1500_frames_in_30_seconds(tmp_path: Path) -> None:
    from feature_models import save

    save("whisper", tmp_path)
    ours = load_feature_encoder(tmp_path)
    assert ours.tokens_of(30 * 16000) == 1500
    assert ours.tokens_of(16000) == 50
    with torch.no_grad():
        [item] = ours.encode([ours.prepare(np.ones(30 * 16000, np.float32))], 1)
    assert item.features.shape == (1500, 8)
