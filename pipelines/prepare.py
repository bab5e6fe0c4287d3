"""What a run's options come to once its tokenizers are known: vocabulary, layout, device and the two fingerprints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokkit.errors import UsageError
from tokkit.interleave import Layout
from tokkit.pipelines.fingerprint import CODE_VERSION, numeric_environment
from tokkit.shards.manifest import TokenizerEntry
from tokkit.sources.resolve import ResolvedInputs
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    import torch

    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.text import TextTokenizer

# The options that decide the output; what is not here may change between a run and its resumption.
SEMANTIC_OPTIONS = {
    "image_layout",
    "pair_order",
    "text_joiner",
    "metadata",
    "val_fraction",
    "seed",
    "image_limits",
    "unit_bytes",
    "shard_tokens",
    "limit",
}


@dataclass(frozen=True)
class Setup:
    """What the options come to once the tokenizers are known."""

    vocabulary: UnifiedVocabulary
    layout: Layout
    tokenizers: dict[str, TokenizerEntry]
    semantic: dict[str, object]
    numeric: dict[str, object]
    device: str


def prepare(config: ShardConfig, resolved: ResolvedInputs) -> Setup:
    """Load the tokenizers once, to know the vocabulary and the fingerprints; workers load them again."""
    from tokkit.tokenizers.text import load_text_tokenizer

    text = load_text_tokenizer(config.text_tokenizer)
    image: ImageTokenizer | None = None
    if config.image_tokenizer is not None:
        from tokkit.tokenizers.image import load_image_tokenizer

        image = load_image_tokenizer(config.image_tokenizer, device="cpu")
    vocabulary, layout = _vocabulary(config, text, image)
    tokenizers = {"text": _text_entry(config.text_tokenizer, text)}
    if image is not None and config.image_tokenizer is not None:
        tokenizers["image"] = _image_entry(config.image_tokenizer, image)
    options = config.model_dump(mode="json", include=SEMANTIC_OPTIONS)
    semantic = {
        "code_version": CODE_VERSION,
        "tokenizers": {kind: entry.fingerprint for kind, entry in tokenizers.items()},
        "vocabulary": vocabulary.fingerprint,
        "sources": [[source.name, source.format] for source in resolved.sources],
        **options,
    }
    device = resolve_device(config.device)
    return Setup(vocabulary, layout, tokenizers, semantic, numeric_environment(device, config.batch_size), str(device))


def _vocabulary(config: ShardConfig, text: TextTokenizer, image: ImageTokenizer | None) -> tuple[UnifiedVocabulary, Layout]:
    text_size = config.text_vocab_size or text.vocab_size
    if text_size < text.vocab_size:
        raise UsageError(f"--text-vocab-size {text_size} is less than the {text.vocab_size} ids of {config.text_tokenizer}")
    vocabulary = UnifiedVocabulary.build(text_size, [image.codebook_size] if image else [])
    grid = image.grid if image is not None and config.image_layout == "plain" else None
    return vocabulary, Layout(config.image_layout, grid)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one; a GPU asked for that is not there is an error."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"--device {name}: there is no such GPU here (torch sees {torch.cuda.device_count()})")
    return device


def _text_entry(path: Path, text: TextTokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        kind=text.kind,
        name=path.resolve().name,
        fingerprint=text.fingerprint,
        licence=text.licence,
        lossless=text.lossless,
        detail={"vocab_size": text.vocab_size},
    )


def _image_entry(path: Path, image: ImageTokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        kind="image",
        name=path.resolve().name,
        fingerprint=image.fingerprint,
        licence=image.config.licence,
        detail={
            "codebook_size": image.codebook_size,
            "grid": list(image.grid),
            "size": image.config.preprocessing.size,
            "downsample": image.downsample,
        },
    )
