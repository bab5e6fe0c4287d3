"""Named configurations to train from, and the overrides of ``--set``.

For CPUs (minutes on two cores): a small convolutional network on 4x4 patches (PixelUnshuffle), one code per 8x8 pixels.

* ``fsq-tiny``: FSQ. It has no codebook that could collapse, so it is the one to begin with.
* ``vq-tiny``, ``simvq-tiny``, ``lfq-tiny``: the same network with 4,096 codes, learned one by one, through a linear map, or
  the signs of 12 channels.
* ``residual-vq-tiny``, ``residual-fsq-tiny``: several codes at each position.

For GPUs: the VQGAN family (arXiv:2012.09841). f16 is one code per 16x16 pixels.

* ``vq-f16-16k``, ``vq-f8-16k``: LlamaGen's shape (arXiv:2406.06525): 16,384 unit vectors in 8 dimensions; 256 px come to 256
  and 1,024 codes.
* ``chameleon-512``: Chameleon's shape (arXiv:2405.09818): 8,192 vectors in 256 dimensions, 512 px to 1,024 codes.
* ``f8-256``: 256 px to 1,024 codes of 8,192.
* ``fsq-f16-64k``, ``fsq-f16-15k``: the same network with FSQ of 64,000 and 15,360 codes: the choice for data of one's own,
  because they cannot collapse.
* ``vqganplus-f16-4k``: without attention, after VQGAN+ (MaskBit, arXiv:2409.16211): 4,096 vectors in 64 dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter

from tokkit.errors import UsageError
from tokkit.media.transforms import Preprocessing
from tokkit.tokenizers.image.config import CnnArchitecture, ImageTokenizerConfig
from tokkit.tokenizers.image.quantizer_config import (
    FsqQuantizer,
    LfqQuantizer,
    QuantizerConfig,
    ResidualFsqQuantizer,
    ResidualVqQuantizer,
    SimVqQuantizer,
    VqQuantizer,
)
from tokkit.tokenizers.overrides import amended as overrides_applied

_TINY = CnnArchitecture(
    channels=32,
    multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    attention=(False, False),
    middle_blocks=0,
    middle_attention=False,
    patch=4,
    z_channels=64,
    norm_groups=8,
)


def _vqgan(
    multipliers: tuple[int, ...], attention: bool = True, middle_attention: bool = True, decoder_blocks: int = 3
) -> CnnArchitecture:
    """The full network; ``attention`` is that of the lowest level."""
    levels = len(multipliers)
    return CnnArchitecture(
        multipliers=multipliers,
        decoder_blocks=decoder_blocks,
        attention=(*[False] * (levels - 1), attention),
        middle_attention=middle_attention,
    )


_F16 = _vqgan((1, 1, 2, 2, 4))
_F8 = _vqgan((1, 2, 2, 4))
_PLUS = _vqgan((1, 1, 2, 2, 4), attention=False, middle_attention=False, decoder_blocks=2)


def _preset(name: str, architecture: CnnArchitecture, quantizer: QuantizerConfig, size: int) -> ImageTokenizerConfig:
    return ImageTokenizerConfig(
        name=name, architecture=architecture, quantizer=quantizer, preprocessing=Preprocessing(size=size)
    )


_UNIT_16K = VqQuantizer(codebook_size=16384, codebook_dim=8)

PRESETS: dict[str, ImageTokenizerConfig] = {
    preset.name: preset
    for preset in (
        _preset("fsq-tiny", _TINY, FsqQuantizer(levels=(8, 8, 8, 6, 5)), 128),
        _preset("vq-tiny", _TINY, VqQuantizer(codebook_size=4096, codebook_dim=8), 128),
        _preset("simvq-tiny", _TINY, SimVqQuantizer(codebook_size=4096), 128),
        _preset("lfq-tiny", _TINY, LfqQuantizer(bits=12), 128),
        _preset("residual-vq-tiny", _TINY, ResidualVqQuantizer(codebook_size=1024, codebooks=4), 128),
        _preset("residual-fsq-tiny", _TINY, ResidualFsqQuantizer(levels=(5, 5, 5, 5), codebooks=2), 128),
        _preset("vq-f16-16k", _F16, _UNIT_16K, 256),
        _preset("vq-f8-16k", _F8, _UNIT_16K, 256),
        _preset(
            "chameleon-512",
            _vqgan((1, 1, 2, 2, 4), attention=False),
            VqQuantizer(codebook_size=8192, codebook_dim=256, normalize=False),
            512,
        ),
        _preset("f8-256", _F8, VqQuantizer(codebook_size=8192, codebook_dim=8), 256),
        _preset("fsq-f16-64k", _F16, FsqQuantizer(levels=(8, 8, 8, 5, 5, 5)), 256),
        _preset("fsq-f16-15k", _F16, FsqQuantizer(levels=(8, 8, 8, 6, 5)), 256),
        _preset("vqganplus-f16-4k", _PLUS, VqQuantizer(codebook_size=4096, codebook_dim=64, normalize=False), 256),
    )
}


def learning_rate(preset: str) -> float:
    """The peak learning rate that a preset is made for: the tiny networks bear far more than the full ones."""
    return 4e-3 if preset.endswith("-tiny") else 1e-4


def configure(
    preset: str, overrides: Mapping[str, object] | None = None, resolution: int | None = None
) -> ImageTokenizerConfig:
    """A preset with some of its fields replaced.

    Args:
        preset: a name in :data:`PRESETS`.
        overrides: ``"section.field"`` to value; text is read as YAML, so that ``8`` is a number and ``[8, 5, 5, 5]`` a list.
            Another ``quantizer.kind`` starts from that kind's defaults.
        resolution: short for ``preprocessing.size``.

    Raises:
        UsageError: no such preset.
        ConfigError: unknown keys or impossible values, all of them.
    """
    if preset not in PRESETS:
        raise UsageError(f"no image tokenizer preset {preset!r}; there are {', '.join(PRESETS)}")
    return amended(PRESETS[preset], f"preset {preset}", overrides, resolution)


def amended(
    base: ImageTokenizerConfig, where: str, overrides: Mapping[str, object] | None = None, resolution: int | None = None
) -> ImageTokenizerConfig:
    """Any configuration with some of its fields replaced; see :func:`configure`. ``where`` names it in messages."""
    wanted = dict(overrides or {})
    if resolution is not None:
        wanted.setdefault("preprocessing.size", resolution)
    return overrides_applied(base, where, wanted, TypeAdapter(QuantizerConfig))
