"""Small models with random weights, saved as transformers saves them, with the preprocessor's file beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "bos_token_id": 1,
    "eos_token_id": 3,  # 2 would mean an old CLIP, which is read off at the highest id
    "pad_token_id": 0,
}
LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 100}
CROP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
SQUARE = {"size": {"height": 28, "width": 28}}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes and noise, so that filters, offsets and rounding all show."""
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[..., None] % 256
    noise = rng.integers(0, 90, (height, width, len(mode)))
    return Image.fromarray(((smooth + noise) % 256).astype(np.uint8), mode)


def clip() -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)
    config.vision_config.projection_dim = config.text_config.projection_dim = 12
    return CLIPModel(config), CLIPImageProcessorPil(**CROP)


def clip_vision() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**VISION)), CLIPImageProcessorPil(**CROP)


def siglip() -> tuple[Any, Any]:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    return SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)), SiglipImageProcessorPil(**SQUARE)


def siglip2() -> tuple[Any, Any]:
    from transformers import Siglip2Config, Siglip2Model
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    model = Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT))
    return model, Siglip2ImageProcessorPil(patch_size=7, max_num_patches=20)


def dinov2() -> tuple[Any, Any]:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    vision = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"image_size": 35}
    return Dinov2Model(Dinov2Config(**vision)), BitImageProcessorPil(**CROP)


def dinov2_registers() -> tuple[Any, Any]:
    from transformers import BitImageProcessorPil, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    vision = {k: v for k, v in VISION.items() if k != "intermediate_size"}
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**vision, num_register_tokens=3)), BitImageProcessorPil(**CROP)


def blip2() -> tuple[Any, Any]:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessorPil

    former = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    opt = {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**former, "encoder_hidden_size": 16, "vocab_size": 10},
        text_config={**opt, "vocab_size": 300, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    )
    model = Blip2ForConditionalGeneration(config)
    model.query_tokens.data.normal_()
    return model, BlipImageProcessorPil(**SQUARE)


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = {"depth": 3, "embed_dim": 16, "hidden_size": 24, "num_heads": 2, "mlp_ratio": 2, "patch_size": 7}
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 1, 1]}
    text = {**LANGUAGE, "hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": rope}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=text))
    return model, Qwen2VLImageProcessorPil(patch_size=7, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 14 * 14 * 16})


def mllama() -> tuple[Any, Any]:
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "intermediate_layers_indices": [0, 2],
        "vision_output_dim": 48,
        "max_num_tiles": 4,
    }
    text = {**LANGUAGE, "num_key_value_heads": 1, "num_hidden_layers": 2, "cross_attention_layers": [1], "pad_token_id": 0}
    model = MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text))
    with torch.no_grad():  # gates and embeddings of tiles begin at zero, which would hide a mistake
        for name, parameter in model.named_parameters():
            if "gate" in name or "tile_positional" in name or "tile_embedding" in name:
                parameter.normal_()
    return model, MllamaImageProcessorPil(**SQUARE, max_image_tiles=4)


def llava_next() -> tuple[Any, Any]:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil

    config = LlavaNextConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config={**LANGUAGE, "model_type": "llama"},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextForConditionalGeneration(config), LlavaNextImageProcessorPil(**CROP, image_grid_pinpoints=PINPOINTS)


def whisper() -> tuple[Any, Any]:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ids = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(d_model=8, encoder_layers=2, decoder_layers=1, num_mel_bins=80, **heads, **ids)
    return WhisperForConditionalGeneration(config), WhisperFeatureExtractor(feature_size=80)


def idefics() -> tuple[Any, Any]:
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    vision = {"embed_dim": 16, "image_size": 28, "patch_size": 7, "num_hidden_layers": 1, "num_attention_heads": 2}
    perceiver = {"use_resampler": True, "resampler_n_latents": 64, "resampler_depth": 2, "resampler_n_heads": 2}
    config = IdeficsConfig(
        vocab_size=60,
        additional_vocab_size=2,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        cross_layer_interval=1,
        use_resampler=True,
        vision_config={**vision, "intermediate_size": 16},
        perceiver_config={**perceiver, "resampler_head_dim": 8},
    )
    return IdeficsForVisionText2Text(config), None


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": clip,
    "clip-vision": clip_vision,
    "siglip": siglip,
    "siglip2": siglip2,
    "dinov2": dinov2,
    "dinov2-registers": dinov2_registers,
    "blip2": blip2,
    "qwen2-vl": qwen2_vl,
    "mllama": mllama,
    "llava-next": llava_next,
    "whisper": whisper,
    "idefics": idefics,
}


def save(name: str, folder: Path) -> tuple[Any, Any]:
    """Write a model and its preprocessor, and give both back; the same weights each time."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(7)
    model, processor = MODELS[name]()
    with torch.no_grad():  # biases begin at zero, embeddings of classes as well
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    model.eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return model, processor
