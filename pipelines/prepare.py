"""What a run's options come to once its tokenizers are known: vocabulary, layout, device and the two fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokkit.chat_templates import PLAIN
from tokkit.dedup.perceptual import hash_versions
from tokkit.errors import UsageError
from tokkit.filters import filter_digests, load_filters
from tokkit.interleave import ImageLayout, Layout, lacking, spell
from tokkit.pipelines.fingerprint import CODE_VERSION, numeric_environment
from tokkit.pipelines.resolution import fitting_of, largest_grid, layout_of, semantic_entry
from tokkit.pipelines.sounds import SoundReader, sound_batch
from tokkit.released_vocabularies import ReleasedVocabulary, released_vocabulary
from tokkit.repair import repair_versions
from tokkit.shards.manifest import TokenizerEntry
from tokkit.sources import packages_of
from tokkit.sources.resolve import ResolvedInputs
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    import torch

    from tokkit.media.resolutions import Fitting
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.audio.base import AudioTokenizer, Buckets
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.text import TextTokenizer

# The options that decide the output; what is not here may change between a run and its resumption.
SEMANTIC_OPTIONS = {
    "image_layout",
    "audio_layout",
    "audio_delays",
    "audio_books",
    "audio_preprocessing",
    "audio_limits",
    "pair_order",
    "text_joiner",
    "alt_text",
    "chat_template",
    "missing_image",
    "fix_text",
    "min_characters",
    "max_characters",
    "min_images",
    "max_images",
    "where",
    "metadata",
    "val_fraction",
    "seed",
    "dedup",
    "near_distance",
    "image_limits",
    "unit_bytes",
    "shard_tokens",
    "limit",
}

# What else does: versions of what repairs texts, and digests of the user's functions.
REPAIR, FILTERS = "text_repair", "filters"


@dataclass(frozen=True)
class Setup:
    """What the options come to once the tokenizers are known."""

    vocabulary: UnifiedVocabulary
    layout: Layout
    tokenizers: dict[str, TokenizerEntry]
    semantic: dict[str, object]
    numeric: dict[str, object]
    device: str
    preprocessing: Fitting | None  # what the image tokenizer takes
    filters: dict[str, str]  # digests of the user's functions
    sounds: SoundReader | None = None  # what decodes sounds, where any are taken
    buckets: Buckets | None = None  # which sounds share batches, of an audio tokenizer
    pictures: bool = False  # whether any are taken
    environment: Callable[[], dict[str, object]] | None = None  # gives the numeric environment, on whatever machine


def prepare(config: ShardConfig, resolved: ResolvedInputs, filters: dict[str, str] | None = None) -> Setup:
    """Load the tokenizers once, to know the vocabulary and the fingerprints; workers load them again.

    Args:
        filters: digests of the user's functions, where these are not to be loaded.

    Raises:
        UsageError: a tokenizer, a function or a package cannot be used.
    """
    from tokkit.tokenizers.text import load_text_tokenizer

    released = _released(config)
    claimed = released.vocabulary.claimed if released is not None else ()
    text = load_text_tokenizer(config.text_tokenizer, claimed, config.text_engine)
    check_template(config, text)
    image: ImageTokenizer | None = None
    if config.image_tokenizer is not None:
        from tokkit.tokenizers.image import load_image_tokenizer

        image = load_image_tokenizer(config.image_tokenizer, device="cpu")
    audio: AudioTokenizer | None = None
    if config.audio_tokenizer is not None:
        from tokkit.tokenizers.audio import load_audio_tokenizer

        audio = load_audio_tokenizer(config.audio_tokenizer, device="cpu")
    books = _audio_books(config, audio)
    fitting = None if image is None else fitting_of(config, image.config.preprocessing, image.downsample)
    vocabulary = _built(config, text, image, books, fitting) if released is None else _taken(config, released, image)
    layout = replace(
        _layout(config, vocabulary, released, text, image, fitting),
        gaps=config.missing_image == "keep-marker",
        audio=config.audio_layout,
        audio_delays=tuple(config.audio_delays or ()),
    )
    tokenizers = {"text": text_entry(config.text_tokenizer, text)}
    if image is not None and config.image_tokenizer is not None:
        tokenizers["image"] = _image_entry(config.image_tokenizer, image)
    if audio is not None and config.audio_tokenizer is not None:
        tokenizers["audio"] = _audio_entry(config.audio_tokenizer, audio, len(books))
    options = semantic_options(config, SEMANTIC_OPTIONS) | {"image_layout": layout.image}
    if fitting is not None:
        options |= semantic_entry(fitting)
    if released is not None:
        options["vocabulary_from"] = {"model": released.scheme.name, "ids": vocabulary.size}
    if "near-images" in config.dedup:
        options["perceptual_hash"] = hash_versions()
    if config.fix_text:
        options[REPAIR] = repair_versions(config.fix_text)
    if filters is None:
        filters = user_digests(config)
    if filters:
        options[FILTERS] = filters
    semantic = {
        "code_version": CODE_VERSION,
        "tokenizers": {kind: entry.fingerprint for kind, entry in tokenizers.items()},
        "vocabulary": vocabulary.fingerprint,
        "sources": [[source.name, source.format] for source in resolved.sources],
        **options,
    }
    if resolved.stores is not None:
        semantic["images"] = [[store.name, store.kind] for store in resolved.stores.stores]
    media = image is not None or audio is not None
    device = None if not media and config.device in ("auto", "cpu") else resolve_device(config.device)
    packages = packages_of({source.format for source in resolved.sources})
    environment = partial(
        numeric_environment,
        device if media else None,
        config.batch_size,
        config.text_engine,
        packages,
        config.precision,
        config.acceleration,
        audio is not None,
        1 if audio is None else sound_batch(config, str(device)),
    )
    numeric = environment()
    sounds = None
    if audio is not None:
        sounds = SoundReader(audio.sample_rate, audio.channels, config.audio_preprocessing, config.audio_limits)
    return Setup(
        vocabulary,
        layout,
        tokenizers,
        semantic,
        numeric,
        str(device or "cpu"),
        fitting,
        filters,
        sounds,
        None if audio is None else audio.buckets,
        image is not None,
        environment=environment,
    )


def semantic_options(config: ShardConfig, names: Set[str]) -> dict[str, object]:
    """The options of these names, as they enter the fingerprint: a chat template only where it is not the plain one."""
    options: dict[str, object] = config.model_dump(mode="json", include=set(names))
    if config.chat_template == PLAIN:
        options.pop("chat_template", None)
    return options


def check_template(config: ShardConfig, text: TextTokenizer) -> None:
    """Raise UsageError where the text tokenizer cannot write the special tokens of the chat template."""
    if config.chat_template != PLAIN and (problems := config.chat_template.problems(text.special_ids)):
        raise UsageError(f"--chat-template: with {config.text_tokenizer}: {'; '.join(problems)}")


def user_digests(config: ShardConfig) -> dict[str, str]:
    try:
        return filter_digests(load_filters(config.filters))
    except ValueError as error:
        raise UsageError(f"--filter: {error}") from None


def _released(config: ShardConfig) -> ReleasedVocabulary | None:
    """The vocabulary of ``--vocabulary-from``, whose file must be the text tokenizer's as well."""
    from tokkit.tokenizers.text import text_tokenizer_file

    if config.vocabulary_from is None:
        return None
    path, text = text_tokenizer_file(config.vocabulary_from), text_tokenizer_file(config.text_tokenizer)
    if not text.samefile(path) and text.read_bytes() != path.read_bytes():
        raise UsageError(
            f"--text-tokenizer {text} is another file than --vocabulary-from {path}, so its text ids would not be the model's: "
            f"leave --text-tokenizer out, the model's own is then taken"
        )
    if config.text_vocab_size is not None:
        raise UsageError("--text-vocab-size is for vocabularies that are built; with --vocabulary-from its file decides")
    return released_vocabulary(path)


def _codebooks(image: ImageTokenizer | None) -> list[int]:
    """The number of codes of each codebook."""
    return [] if image is None else [image.codebook_size] * image.codebooks


def _audio_books(config: ShardConfig, audio: AudioTokenizer | None) -> list[int]:
    """The number of codes of each codebook of sounds that is kept."""
    if audio is None:
        return []
    kept = config.audio_books or audio.codebooks
    if kept > audio.codebooks:
        raise UsageError(f"--audio-books {kept}: {config.audio_tokenizer} has {audio.codebooks} codebooks")
    if config.audio_delays and len(config.audio_delays) != kept:
        raise UsageError(f"--audio-delays names {len(config.audio_delays)} codebooks, and {kept} are kept")
    if config.vocabulary_from is not None:
        raise UsageError(f"--audio-tokenizer: the model of --vocabulary-from {config.vocabulary_from} has no ids of sounds")
    return [audio.codebook_size] * kept


def _built(
    config: ShardConfig,
    text: TextTokenizer,
    image: ImageTokenizer | None,
    audio_books: list[int],
    fitting: Fitting | None,
) -> UnifiedVocabulary:
    text_size = config.text_vocab_size or text.vocab_size
    if text_size < text.vocab_size:
        raise UsageError(f"--text-vocab-size {text_size} is less than the {text.vocab_size} ids of {config.text_tokenizer}")
    side = largest_grid(fitting, image.downsample if image is not None else 1, config.image_limits.max_aspect)
    pads = config.audio_layout == "delay"
    return UnifiedVocabulary.build(text_size, _codebooks(image), audio_books, max_grid=side, audio_pads=pads)


def _taken(config: ShardConfig, released: ReleasedVocabulary, image: ImageTokenizer | None) -> UnifiedVocabulary:
    """The model's own vocabulary, where the image tokenizer can be the one that it was trained with."""
    books, names = _codebooks(image), released.vocabulary.block("image").size
    model = released.scheme.model
    if len(books) > 1:
        raise UsageError(f"{config.image_tokenizer} has {len(books)} codebooks; {model} has ids for one")
    if books and books[0] != names:
        raise UsageError(
            f"{config.image_tokenizer} has {books[0]:,} codes, but {config.vocabulary_from} names {names:,} image codes "
            f"of {model}: its ids need its own image tokenizer (`tokkit import` takes released checkpoints)"
        )
    return released.vocabulary


def _layout(
    config: ShardConfig,
    vocabulary: UnifiedVocabulary,
    released: ReleasedVocabulary | None,
    text: TextTokenizer,
    image: ImageTokenizer | None,
    fitting: Fitting | None,
) -> Layout:
    """How pictures are laid out: as asked for, or as the released model knows them; what cannot be written is told here."""
    usual: ImageLayout = "plain" if config.resolution_policy == "crop" else "grid_rows"
    name = config.image_layout or (released.scheme.layout if released is not None else usual)
    if image is None or fitting is None:
        return Layout(name)
    if missing := lacking(vocabulary, name):
        whose = "a vocabulary that is built" if released is None else f"the vocabulary of {released.scheme.model}"
        raise UsageError(f"--image-layout {name} cannot be written: {whose} has no {', no '.join(missing)}")
    if name == "emu3":
        sides = range(1, 1 + largest_grid(fitting, image.downsample, config.image_limits.max_aspect))
        grids = [image.grid] if fitting.sizes is None else zip(sides, sides, strict=True)
        for size in ("{}*{}".format(*grid) for grid in grids):
            if (found := text.encode(size).tolist()) != (spelled := spell(size, vocabulary).tolist()):
                raise UsageError(
                    f"--image-layout emu3 cannot be written: {config.text_tokenizer} encodes the size {size!r} as {found}, "
                    f"not with one id a character {spelled}"
                )
    return layout_of(name, fitting, image.downsample)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one; a GPU asked for that is not there is an error."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"--device {name}: there is no such GPU here (torch sees {torch.cuda.device_count()})")
    return device


def text_entry(path: Path, text: TextTokenizer) -> TokenizerEntry:
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
            "codebooks": image.codebooks,
            "grid": list(image.grid),
            "size": image.config.preprocessing.size,
            "downsample": image.downsample,
        },
    )


def _audio_entry(path: Path, audio: AudioTokenizer, kept: int) -> TokenizerEntry:
    return TokenizerEntry(
        kind="audio",
        name=path.resolve().name,
        fingerprint=audio.fingerprint,
        licence=audio.licence,
        lossless=None,
        detail={
            "codebook_size": audio.codebook_size,
            "codebooks": audio.codebooks,
            "codebooks_kept": kept,
            "sample_rate": audio.sample_rate,
            "channels": audio.channels,
            "hop": audio.hop,
            "frame_rate": audio.frame_rate,
        },
    )
