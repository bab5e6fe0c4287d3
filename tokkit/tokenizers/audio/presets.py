"""Audio tokenizers by name: EnCodec as it was released, and a tiny one."""

from __future__ import annotations

from tokkit.tokenizers.audio.config import AudioTokenizerConfig, ResidualQuantizer, SeanetArchitecture

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
        AudioTokenizerConfig(
            name="encodec-tiny",
            architecture=SeanetArchitecture(dimension=32, filters=8, ratios=(8, 5, 4, 2), lstm=1),
            quantizer=ResidualQuantizer(codebooks=4, codebook_size=64),
            sample_rate=16000,
        ),
    )
}
