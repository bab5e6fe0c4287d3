"""What can be told of SEANet's layers without running them: padding, strides, and how short a waveform is special.

A convolution of kernel k (dilation counted in) and stride s sees ``k - s`` samples of padding, all before the first sample
where it is causal, and on the right as many more as fill its last window: n samples give ``ceil(n / s)``. The padding mirrors
the waveform, and where a layer's input is no longer than that, encodec puts zeros there first: such waveforms are encoded
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tokkit.tokenizers.audio.config import GRIDS, AudioTokenizerConfig
from tokkit.tokenizers.audio.encodec_package import import_encodec
from tokkit.tokenizers.audio.quantizers import build_quantizer


def build_network(config: AudioTokenizerConfig) -> Any:
    """encodec's encoder and decoder with fresh weights (from torch's global generator), without weight norm, and the quantizer.

    Residual tables are the package's own, empty at first, and make its ``EncodecModel``; a grid has nothing of the package.
    """
    encodec = import_encodec()
    architecture = config.architecture
    shared = {
        "channels": architecture.channels,
        "dimension": architecture.dimension,
        "n_filters": architecture.filters,
        "n_residual_layers": architecture.residual_layers,
        "ratios": list(architecture.ratios),
        "norm": architecture.norm,
        "kernel_size": architecture.kernel_size,
        "last_kernel_size": architecture.last_kernel_size,
        "residual_kernel_size": architecture.residual_kernel_size,
        "dilation_base": architecture.dilation_base,
        "causal": architecture.causal,
        "pad_mode": architecture.padding,
        "true_skip": architecture.true_skip,
        "compress": architecture.compress,
        "lstm": architecture.lstm,
    }
    quantizer = build_quantizer(config)
    encoder = encodec.modules.SEANetEncoder(**shared)
    decoder = encodec.modules.SEANetDecoder(**shared, trim_right_ratio=architecture.trim_right_ratio)
    if isinstance(config.quantizer, GRIDS):
        return nn.ModuleDict({"encoder": encoder, "quantizer": quantizer, "decoder": decoder})
    return encodec.EncodecModel(
        encoder,
        decoder,
        quantizer,
        target_bandwidths=[],
        sample_rate=config.sample_rate,
        channels=architecture.channels,
        normalize=config.normalize,
        segment=None if config.segment is None else config.segment / config.sample_rate,
        overlap=config.overlap,
        name=config.name,
    )


@dataclass(frozen=True)
class Padding:
    """What a convolution is padded with.

    Attributes:
        left: samples before the first.
        right: samples after the last, besides those that fill the last window.
        stride: of the convolution.
        mirrored: the padding is the waveform's mirror image; else zeros.
        reach: samples that one window covers.
    """

    left: int
    right: int
    stride: int
    mirrored: bool
    reach: int

    @classmethod
    def of(cls, layer: Any) -> Padding:
        """Of an encodec ``SConv1d``."""
        conv = layer.conv.conv
        stride, reach = conv.stride[0], (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        total = reach - stride
        right = 0 if layer.causal else total // 2
        return cls(total - right, right, stride, layer.pad_mode == "reflect", reach)

    def behind(self, length: int) -> int:
        """Samples of padding after the last of ``length``."""
        return self.right + -length % self.stride

    @property
    def enough(self) -> int:
        """The shortest input whose padding is only its mirror image."""
        return max(self.left, self.right + self.stride - 1) + 1 if self.mirrored else 1


def shortest(layers: Any) -> int:
    """The shortest input of an encoder (or decoder) that no layer pads specially; shorter ones must be taken whole."""
    samples, rate = 1, 1.0
    for layer in layers.modules():
        name = type(layer).__name__
        if name == "SConv1d":
            padding = Padding.of(layer)
            samples = max(samples, int((padding.enough - 1) * rate) + 1)
            rate *= padding.stride
        elif name == "SConvTranspose1d":
            rate /= layer.convtr.convtr.stride[0]
    return samples
