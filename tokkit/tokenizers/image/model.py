"""The image tokenizer: pixels -> features -> codes -> features -> pixels.

    uint8 pixels --(v/255 - mean)/std--> encoder --> projection --> quantizer --> codes
    codes --> quantizer --> projection --> decoder --*std + mean, rounded--> uint8 pixels

``encode`` and ``decode`` work in float32 whatever surrounds them (autocast and TF32 are switched off) and give an item the same
codes in every slot of a batch of fixed shape, whatever its neighbours. See :mod:`tokkit.tokenizers.image.storage` for files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokkit.errors import UsageError
from tokkit.precision import arithmetic
from tokkit.tokenizers.folder import fingerprint_of_weights
from tokkit.tokenizers.image.blocks import Decoder, Encoder, Level
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.quantizers import LEARNER, Quantizer, build_quantizer


@dataclass(frozen=True, slots=True)
class ReconstructionOutput:
    """A training step's view of the tokenizer.

    Attributes:
        reconstruction: float ``[B, 3, H, W]`` in the range of the input.
        codes: int64 ``[B, h, w]``, or ``[B, K, h, w]`` of K > 1 codebooks.
        losses: the quantizer's auxiliary losses by name, already weighted.
    """

    reconstruction: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class ImageTokenizer(nn.Module):
    """An image tokenizer with fresh weights (from torch's global generator) for a configuration."""

    _mean: Tensor
    _std: Tensor
    _normalized: Tensor

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        architecture = config.architecture
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture) if architecture.has_decoder else None
        self.quantizer: Quantizer = build_quantizer(config.quantizer)
        kernel = architecture.projection_kernel
        self.quant_conv = nn.Conv2d(architecture.z_channels, self.quantizer.dim, kernel, padding=kernel // 2)
        self.post_quant_conv = (
            nn.Conv2d(self.quantizer.dim, architecture.z_channels, kernel, padding=kernel // 2)
            if architecture.has_decoder
            else None
        )
        self.register_buffer("_mean", torch.tensor(config.preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(config.preprocessing.std).view(3, 1, 1), persistent=False)
        self.register_buffer("_normalized", _normalized_bytes(config), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Number of codes of a codebook."""
        return self.quantizer.codebook_size

    @property
    def codebooks(self) -> int:
        """Codes at each position: K. Where it is 1, codes have no dimension for it."""
        return self.quantizer.codebooks

    @property
    def downsample(self) -> int:
        """Pixels per side of one code."""
        return self.config.architecture.downsample

    @property
    def has_decoder(self) -> bool:
        """Whether codes can be turned back into pixels (:meth:`decode`); some released checkpoints hold an encoder only."""
        return self.decoder is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of one preprocessed picture."""
        side = self.config.preprocessing.size // self.downsample
        return side, side

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quant_conv.weight.device

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` to float32 ``[B, 3, H, W]``, by a table that was computed in float64."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"expected uint8 pixels [B, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
        height, width = pixels.shape[1:3]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"pixels of {height}x{width} are no multiple of the downsampling factor {self.downsample}")
        channels = [self._normalized[c][pixels[..., c].to(self.device, torch.int64)] for c in range(3)]
        return torch.stack(channels, dim=1)

    def denormalize(self, values: Tensor) -> Tensor:
        """float ``[B, 3, H, W]`` to uint8 ``[B, H, W, 3]``, rounded and clipped."""
        levels = (values.float() * self._std + self._mean) * 255
        return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @property
    def last_layer(self) -> Tensor:
        """Weights of the convolution that makes pixels: where the pull of several losses is compared."""
        if self.decoder is None:
            raise UsageError(f"the image tokenizer {self.config.name} has no decoder: its checkpoint holds an encoder only")
        return self.decoder.conv_out.weight

    def signed(self, values: Tensor) -> Tensor:
        """float ``[B, 3, H, W]`` in the network's range to [-1, 1], with gradients: what other networks look at."""
        return (values.float() * self._std + self._mean) * 2 - 1

    def recompute_activations(self, yes: bool = True) -> None:
        """Whether training keeps the activations of residual blocks, or computes them again when gradients need them."""
        for module in self.modules():
            if isinstance(module, Level):
                module.recompute = yes

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` on any device to int32 codes ``[B, H/f, W/f]`` on the tokenizer's device.

        They are ``[B, K, H/f, W/f]`` where the quantizer is residual and has K codebooks.

        Raises ValueError for another dtype or shape, or sides that the downsampling factor f does not divide.
        """
        with arithmetic("fp32"), torch.autocast(self.device.type, enabled=False):
            features = self.quant_conv(self.encoder(self.normalize(pixels)))
            return self.quantizer.codes_from_features(features).to(torch.int32)

    def encode_padded(self, pictures: Sequence[npt.NDArray[np.uint8]], batch_size: int) -> npt.NDArray[np.int32]:
        """At most ``batch_size`` pictures ``[H, W, 3]`` of one size to codes ``[n, h, w]``, or ``[n, K, h, w]``.

        One call of :meth:`encode` in the shape of a whole batch: what a picture becomes depends on the batch size, not on how
        many others there are.
        """
        pixels = np.zeros((batch_size, *pictures[0].shape), dtype=np.uint8)
        pixels[: len(pictures)] = pictures
        return self.encode(torch.from_numpy(pixels)).cpu().numpy()[: len(pictures)]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Integer codes ``[B, h, w]``, or ``[B, K, h, w]`` of K > 1 codebooks, to uint8 pixels ``[B, f h, f w, 3]``.

        Raises:
            VocabularyError: a code out of range.
            UsageError: the tokenizer has no decoder.
        """
        K = self.codebooks
        fits = codes.ndim == 3 if K == 1 else codes.ndim == 4 and codes.shape[1] == K
        if not fits or codes.dtype.is_floating_point or codes.dtype == torch.bool:
            expected = "[B, h, w]" if K == 1 else f"[B, {K}, h, w]"
            raise ValueError(f"expected integer codes {expected}, not {codes.dtype} {list(codes.shape)}")
        with arithmetic("fp32"), torch.autocast(self.device.type, enabled=False):
            features = self.quantizer.features_from_codes(codes.to(self.device))
            return self.denormalize(self._decoded(features))

    def forward(self, pixels: Tensor) -> ReconstructionOutput:
        """Reconstruct float ``[B, 3, H, W]`` with gradients; the quantizer must have been set up for training.

        The quantizer works in float32 where autocast has the rest in half precision.
        """
        features = self.quant_conv(self.encoder(pixels))
        with torch.autocast(self.device.type, enabled=False):
            quantized = self.quantizer(features.float())
        reconstruction = self._decoded(quantized.features)
        return ReconstructionOutput(reconstruction, quantized.codes, quantized.losses)

    def _decoded(self, features: Tensor) -> Tensor:
        """float ``[B, D, h, w]`` to float ``[B, 3, f h, f w]``."""
        if self.decoder is None or self.post_quant_conv is None:
            raise UsageError(f"the image tokenizer {self.config.name} has no decoder: its checkpoint holds an encoder only")
        return self.decoder(self.post_quant_conv(features))

    def weights(self) -> dict[str, Tensor]:
        """The tensors that make up the tokenizer, by name, contiguous and on the CPU; nothing that only training needs."""
        self.quantizer.settle()
        state = {k: v for k, v in self.state_dict().items() if LEARNER not in k.split(".")}
        return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the configuration and all weights; computed on every access."""
        return fingerprint(self.config, self.weights())

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` (:func:`tokkit.tokenizers.image.storage.save_image_tokenizer`)."""
        from tokkit.tokenizers.image.storage import save_image_tokenizer

        save_image_tokenizer(self, folder)


def fingerprint(config: ImageTokenizerConfig, weights: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over the configuration's identity as canonical JSON, and each tensor's name, dtype, shape and bytes."""
    return fingerprint_of_weights(config.identity(), weights)


def _normalized_bytes(config: ImageTokenizerConfig) -> Tensor:
    """float32 ``[3, 256]``: what each byte value enters the network as."""
    mean, std = config.preprocessing.mean, config.preprocessing.std
    # Never on the meta device, where a network is first built to know its weights: arithmetic there loads torch's compiler.
    values, means, stds = (torch.tensor(row, dtype=torch.float64, device="cpu") for row in (range(256), mean, std))
    return ((values / 255 - means.view(3, 1)) / stds.view(3, 1)).to(torch.float32)
