"""Which models are known, and how a folder becomes an encoder.

A family is told by ``model_type`` in ``config.json``. Of a larger model (CLIP with its text tower, LLaVA, BLIP-2, Qwen2-VL,
Llama 3.2 Vision, Whisper with its decoder) only the encoder is built and filled. Another family is an entry in ``BUILDERS``.
Folders of our own image tokenizers are :mod:`tokkit.features.latents`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.errors import DataError, UsageError
from tokkit.features.base import FeatureOptions, Layer, Resampler, RunOptions
from tokkit.features.checkpoints import HINT, licence_of, load_part, read_config, resolve, weights_digest
from tokkit.features.encoder import TowerEncoder
from tokkit.features.latents import is_tokenizer, latent_encoder
from tokkit.features.mel import AudioPreparer, read_audio_preprocessing
from tokkit.features.preprocessing import ImagePreparer, ImagePreprocessing, read_preprocessing
from tokkit.features.towers import (
    Hidden,
    LlamaTower,
    NaflexTower,
    PatchTower,
    QwenTower,
    Tower,
    WhisperTower,
    unit_length,
)
from tokkit.hub import name_of
from tokkit.precision import check_precision

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Names of parameters in a larger model's file, and in the part's own.
VISION_TOWER = {r"^(model\.)?vision_tower\.(vision_model\.)?": ""}
VISION_MODEL = {r"^(model\.)?vision_model\.": ""}
VISUAL = {r"^(model\.)?visual\.": ""}
WHISPER_ENCODER = {r"^(model\.)?encoder\.": ""}


@dataclass(frozen=True)
class Source:
    """A model's folder, on its way to an encoder."""

    folder: Path
    name: str
    config: Any
    options: FeatureOptions
    device: torch.device
    run: RunOptions

    @property
    def vision(self) -> Any:
        """The configuration of the vision tower."""
        return getattr(self.config, "vision_config", None) or self.config

    def usual_layers(self, otherwise: Layer) -> tuple[Layer, ...]:
        """Those that a LLaVA model's own configuration names, else the family's."""
        told = getattr(self.config, "vision_feature_layer", None)
        if told is None:
            return (otherwise,)
        return (told,) if isinstance(told, int) else tuple(told)

    @property
    def keeps_cls(self) -> bool:
        """Whether the class token stays where nothing else is usual: as asked for, or as a LLaVA model's configuration says."""
        full = getattr(self.config, "vision_feature_select_strategy", None) == "full"
        return full if self.options.keep_cls is None else self.options.keep_cls

    def ready(self, model: nn.Module) -> nn.Module:
        """In the asked-for precision, on its device."""
        return model.to(self.device, torch.float16 if self.run.precision == "fp16" else PRECISIONS[self.options.precision])


@dataclass(frozen=True)
class Built:
    """A tower and what of it goes into the fingerprint."""

    tower: Tower
    family: str
    digest: str
    layers: tuple[Layer, ...] = ()


def load(
    source: str | Path, options: FeatureOptions, *, device: str | torch.device, allow_download: bool, run: RunOptions
) -> TowerEncoder:
    """The inside of :func:`tokkit.features.load_feature_encoder`."""
    folder, device = resolve(source, allow_download), torch.device(device)
    check_precision(run.precision, device)
    if run.precision != "fp32" and options.precision != "float32":
        raise UsageError(
            f"--precision {run.precision} is a faster way to float32's features, and these are to be {options.precision}"
        )
    if is_tokenizer(folder):
        return latent_encoder(folder, options, device, _resampler(options, device), run)
    try:
        import transformers  # noqa: F401 - a clear message comes before anything else
    except ImportError:
        raise UsageError(HINT) from None
    config = read_config(folder)
    here = Source(folder, name_of(source, folder), config, options, device, run)
    build = BUILDERS.get(config.model_type)
    if build is None:
        raise UsageError(
            f"{source}: no encoder is known for a model of type {config.model_type!r}; known are {', '.join(BUILDERS)}"
        )
    _refuse_foreign_options(here)
    if config.model_type == "whisper":
        audio = AudioPreparer(read_audio_preprocessing(folder), options)
        if (
            audio.preprocessing.feature_size != config.num_mel_bins
            or audio.preprocessing.frames != 2 * config.max_source_positions
        ):
            raise DataError(f"{folder}: preprocessor_config.json and config.json do not agree on mel bands or window")
        return _encoder(here, build(here, None), audio)
    preprocessing = read_preprocessing(folder)
    return _encoder(here, build(here, preprocessing), ImagePreparer(preprocessing, options))


def _encoder(here: Source, built: Built, preparer: ImagePreparer | AudioPreparer) -> TowerEncoder:
    about = {
        "name": here.name,
        "licence": licence_of(here.folder),
        "family": built.family,
        "weights": built.digest,
        "layers": list(built.layers),
    }
    return TowerEncoder(built.tower, preparer, here.options, about, _resampler(here.options, here.device), here.run)


def _resampler(options: FeatureOptions, device: torch.device) -> Any:
    from tokkit.features.resamplers import load_resampler

    for step in options.reductions:
        if isinstance(step, Resampler):
            return load_resampler(step.path, device)
    return None


def _refuse_foreign_options(here: Source) -> None:
    """Options that this family does not have are errors, not silence."""
    options, kind = here.options, here.config.model_type
    merged = kind == "qwen2_vl" and options.merger == "after"
    problems = []
    if options.layers is not None and (kind == "mllama" or merged):
        why = "it has its own list" if kind == "mllama" else "its merger takes the last; use merger='before'"
        problems.append(f"layers: {why}")
    if options.pooled != "none" and kind in ("qwen2_vl", "mllama", "whisper"):
        problems.append(f"pooled: a {kind} encoder has no pooled embedding")
    if options.pooled == "projected" and kind.startswith(("dinov2", "blip")):
        problems.append(f"pooled='projected': a {kind} model has no space that pictures and texts share; use 'pooled'")
    if options.keep_cls and kind in ("qwen2_vl", "whisper", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"):
        problems.append(f"keep_cls: a {kind} encoder has no class token")
    if options.merger == "before" and kind != "qwen2_vl":
        problems.append("merger: only Qwen2-VL has one")
    if kind == "whisper" and (options.tiling is not None or options.pad_square):
        problems.append("tiling: sound is not cut into tiles")
    if problems:
        raise UsageError(f"{here.folder}: " + "; ".join(problems))


# ---- families


def _hidden(here: Source, blocks: nn.ModuleList, usual: tuple[Layer, ...], tied: bool) -> tuple[Hidden, tuple[Layer, ...]]:
    layers = here.options.layers or usual
    hidden = Hidden(blocks, layers, tied=tied, whole=here.options.pooled != "none" or not here.options.tokens)
    return hidden, tuple(hidden.wanted)


def _takes(here: Source, preprocessing: ImagePreprocessing, side: int) -> None:
    """The model's embeddings of positions are for one size only."""
    if preprocessing.output != (side, side):
        height, width = preprocessing.output
        raise DataError(
            f"{here.folder}: its preprocessor makes pictures of {height} x {width}, its model takes {side} x {side}"
        )


def _clip(here: Source, preprocessing: Any) -> Built:
    import transformers

    vision = here.vision
    _takes(here, preprocessing, vision.image_size)
    mapping = VISION_TOWER if vision is not here.config and here.config.model_type != "clip" else None
    pool: Callable[[Any], Tensor] | None = None
    model = load_part(here.folder, transformers.CLIPVisionModel, vision, mapping)
    digest, pooled_dim = weights_digest(model), None
    if here.options.pooled == "projected":
        whole = load_part(here.folder, transformers.CLIPVisionModelWithProjection, vision)
        digest = weights_digest(whole)
        projection = here.ready(whole.visual_projection)
        pool, pooled_dim = (lambda out: unit_length(projection(out.pooler_output))), vision.projection_dim
    elif here.options.pooled == "pooled":
        pool, pooled_dim = (lambda out: out.pooler_output), vision.hidden_size
    hidden, layers = _hidden(here, model.encoder.layers, here.usual_layers(-2), tied=False)
    tower = PatchTower(here.ready(model), hidden, vision, specials=1, keep=here.keeps_cls, pool=pool, pooled_dim=pooled_dim)
    return Built(tower, "clip", digest, layers)


def _siglip(here: Source, preprocessing: Any) -> Built:
    import transformers

    vision = here.vision
    naflex = vision.model_type == "siglip2_vision_model"
    if not naflex:
        _takes(here, preprocessing, vision.image_size)
    elif preprocessing.patch != vision.patch_size:
        raise DataError(f"{here.folder}: patches of {preprocessing.patch} pixels for a model that takes {vision.patch_size}")
    mapping = VISION_TOWER if vision is not here.config and not here.config.model_type.startswith("siglip") else None
    kind = transformers.Siglip2VisionModel if naflex else transformers.SiglipVisionModel
    model = load_part(here.folder, kind, vision, mapping)
    digest = weights_digest(model)
    pool: Callable[[Any], Tensor] | None = None
    if here.options.pooled != "none":
        if not getattr(vision, "vision_use_head", True):
            raise UsageError(f"{here.folder}: pooled: this SigLIP tower has no pooling head")
        projected = here.options.pooled == "projected"
        pool = (lambda out: unit_length(out.pooler_output)) if projected else (lambda out: out.pooler_output)
    hidden, layers = _hidden(here, model.encoder.layers, here.usual_layers("final"), tied=False)
    model, dim = here.ready(model), vision.hidden_size if pool else None
    if naflex:
        tower: Tower = NaflexTower(model, hidden, vision, max_patches=preprocessing.max_patches, pool=pool, pooled_dim=dim)
    else:
        tower = PatchTower(model, hidden, vision, specials=0, keep=False, pool=pool, pooled_dim=dim)
    return Built(tower, "siglip2-naflex" if naflex else "siglip", digest, layers)


def _dinov2(here: Source, preprocessing: Any) -> Built:
    import transformers

    config = here.config
    registers = getattr(config, "num_register_tokens", 0) if config.model_type == "dinov2_with_registers" else 0
    kind = transformers.Dinov2WithRegistersModel if registers else transformers.Dinov2Model
    model = load_part(here.folder, kind, config)
    digest = weights_digest(model)
    wrong = [side for side in preprocessing.output if side % config.patch_size]
    if wrong:
        raise DataError(f"{here.folder}: pictures of {preprocessing.output} are no multiples of patches of {config.patch_size}")
    pooled = here.options.pooled == "pooled"
    hidden, layers = _hidden(here, model.encoder.layer, ("final",), tied=False)
    tower = PatchTower(
        here.ready(model),
        hidden,
        config,
        specials=1 + registers,
        keep=bool(here.options.keep_cls),
        pool=(lambda out: out.pooler_output) if pooled else None,
        pooled_dim=config.hidden_size if pooled else None,
    )
    return Built(tower, config.model_type, digest, layers)


def _blip2(here: Source, preprocessing: Any) -> Built:
    import transformers

    vision = here.vision
    _takes(here, preprocessing, vision.image_size)
    model = load_part(here.folder, transformers.Blip2VisionModel, vision, VISION_MODEL)
    digest, pooled = weights_digest(model), here.options.pooled == "pooled"
    hidden, layers = _hidden(here, model.encoder.layers, ("final",), tied=False)
    tower = PatchTower(
        here.ready(model),
        hidden,
        vision,
        specials=1,
        keep=here.options.keep_cls is not False,
        pool=(lambda out: out.pooler_output) if pooled else None,
        pooled_dim=vision.hidden_size if pooled else None,
    )
    return Built(tower, "blip-2", digest, layers)


def _qwen2_vl(here: Source, preprocessing: Any) -> Built:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    vision = here.vision
    for ours, theirs in (("patch", "patch_size"), ("merge", "spatial_merge_size"), ("temporal", "temporal_patch_size")):
        if getattr(preprocessing, ours) != getattr(vision, theirs):
            raise DataError(f"{here.folder}: preprocessor_config.json and config.json do not agree on {theirs}")
    model = load_part(here.folder, Qwen2VisionTransformerPretrainedModel, vision, VISUAL)
    digest, merged = weights_digest(model), here.options.merger == "after"
    if merged:
        return Built(QwenTower(here.ready(model), None, vision, merged=True), "qwen2-vl", digest, ("merged",))  # type: ignore[arg-type]
    hidden, layers = _hidden(here, model.blocks, ("final",), tied=True)
    return Built(QwenTower(here.ready(model), hidden, vision, merged=False), "qwen2-vl", digest, layers)


def _mllama(here: Source, preprocessing: Any) -> Built:
    from transformers.models.mllama.modeling_mllama import MllamaVisionModel

    vision = here.vision
    _takes(here, preprocessing, vision.image_size)
    if preprocessing.max_tiles != vision.max_num_tiles:
        raise DataError(f"{here.folder}: preprocessor_config.json and config.json do not agree on the number of tiles")
    model = load_part(here.folder, MllamaVisionModel, vision, VISION_MODEL)
    digest = weights_digest(model)
    tower = LlamaTower(here.ready(model), vision, keep=here.options.keep_cls is not False)
    return Built(tower, "llama-3.2-vision", digest, ("final", *vision.intermediate_layers_indices))


def _whisper(here: Source, preprocessing: Any) -> Built:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model = load_part(here.folder, WhisperEncoder, here.config, WHISPER_ENCODER)
    digest = weights_digest(model)
    hidden, layers = _hidden(here, model.layers, ("final",), tied=True)
    return Built(WhisperTower(here.ready(model), hidden, here.config), "whisper", digest, layers)


def _llava(here: Source, preprocessing: Any) -> Built:
    kind = here.vision.model_type
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise UsageError(f"{here.folder}: its vision tower is a {kind}; known are CLIP's and SigLIP's")
    if here.options.pooled == "projected":
        raise UsageError(f"{here.folder}: pooled='projected': a LLaVA model has no space that pictures and texts share")
    return _clip(here, preprocessing) if kind == "clip_vision_model" else _siglip(here, preprocessing)


BUILDERS: dict[str, Callable[[Source, Any], Built]] = {
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
    "siglip2": _siglip,
    "siglip2_vision_model": _siglip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "blip-2": _blip2,
    "qwen2_vl": _qwen2_vl,
    "mllama": _mllama,
    "llava": _llava,
    "llava_next": _llava,
    "whisper": _whisper,
}
