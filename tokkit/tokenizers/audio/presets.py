"""Audio tokenizers by name: EnCodec as it was released, codecs to train, and tiny ones."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter

from tokkit.errors import UsageError
from tokkit.tokenizers.audio.config import AudioQuantizer, AudioTokenizerConfig, ResidualQuantizer, SeanetArchitecture
from tokkit.tokenizers.image.quantizer_config import FsqQuantizer
from tokkit.tokenizers.overrides import amended as overrides_applied

PRESETS: dict[str, AudioTokenizerConfig] = {
    preset.name: preset
    for preset in (
        # 24 kHz mono, causal: 75 frames a second; 2, 4, 8, 16 or 32 books are 1.5, 3, 6, 12 or 24 kbit/s
        AudioTokenizerConfig(name="encodec-24k", sample_rate=24000),
        # 48 kHz stereo in segments of a second that overlap by a hundredth; 2, 4, 8 or 16 books are 3, 6, 12 or 24 kbit/s
        AudioTokenizerConfig(
            name="encodec-48k",
            architecture=SeanetArchitecture(channels=2, causal=False, norm="time_group_norm"),
            quantizer=ResidualQuantizer(codebooks=16),
            sample_rate=48000,
            normalize=True,
            segment=48000,
        ),
        # MusicGen's: 32 kHz mono, 50 frames a second of 4 books; audiocraft pads with zeros
        AudioTokenizerConfig(
            name="musicgen-32k",
            architecture=SeanetArchitecture(filters=64, ratios=(8, 5, 4, 4), causal=False, padding="constant", true_skip=True),
            quantizer=ResidualQuantizer(codebooks=4, codebook_size=2048),
            sample_rate=32000,
        ),
        # to train, for speech: 16 kHz mono, 50 frames a second of one book: 1,500 tokens for 30 s
        AudioTokenizerConfig(
            name="speech-16k-50hz-1book",
            architecture=SeanetArchitecture(ratios=(8, 5, 4, 2)),
            quantizer=ResidualQuantizer(codebooks=1, codebook_size=8192),
            sample_rate=16000,
        ),
        # to train, for speech and other sounds: 24 kHz mono, 50 frames a second of one code of a grid that cannot collapse
        # (the size of X-codec2's): 1,500 tokens for 30 s
        AudioTokenizerConfig(
            name="fsq-24k-50hz",
            architecture=SeanetArchitecture(dimension=8, ratios=(8, 5, 4, 3)),
            quantizer=FsqQuantizer(levels=(4, 4, 4, 4, 4, 4, 4, 4)),
            sample_rate=24000,
        ),
        # to train on a CPU in minutes: 16 kHz mono, 50 frames a second of 4 small books
        AudioTokenizerConfig(
            name="codec-tiny",
            architecture=SeanetArchitecture(dimension=32, filters=8, ratios=(8, 5, 4, 2), lstm=1),
            quantizer=ResidualQuantizer(codebooks=4, codebook_size=128),
            sample_rate=16000,
        ),
        # the same with one code of a grid
        AudioTokenizerConfig(
            name="codec-fsq-tiny",
            architecture=SeanetArchitecture(dimension=5, filters=8, ratios=(8, 5, 4, 2), lstm=1),
            quantizer=FsqQuantizer(levels=(8, 8, 8, 6, 5)),
            sample_rate=16000,
        ),
        AudioTokenizerConfig(
            name="encodec-tiny",
            architecture=SeanetArchitecture(dimension=32, filters=8, ratios=(8, 5, 4, 2), lstm=1),
            quantizer=ResidualQuantizer(codebooks=4, codebook_size=64),
            sample_rate=16000,
        ),
    )
}


def configure(preset: str, overrides: Mapping[str, object] | None = None) -> AudioTokenizerConfig:
    """A preset with some of its fields replaced.

    Args:
        preset: a name in :data:`PRESETS`.
        overrides: see :func:`tokkit.tokenizers.overrides.amended`.

    Raises:
        UsageError: no such preset.
        ConfigError: unknown keys or impossible values, all of them.
    """
    if preset not in PRESETS:
        raise UsageError(f"no audio tokenizer preset {preset!r}; there are {', '.join(PRESETS)}")
    return amended(PRESETS[preset], f"preset {preset}", overrides)


def amended(base: AudioTokenizerConfig, where: str, overrides: Mapping[str, object] | None = None) -> AudioTokenizerConfig:
    """Any configuration with some of its fields replaced; see :func:`configure`. ``where`` names it in messages."""
    return overrides_applied(base, where, overrides or {}, TypeAdapter(AudioQuantizer))
