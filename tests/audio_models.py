"""encodec models to compare with: made by the package itself, with codebooks filled from what they really have to encode.

A fresh model's codebooks are all zero, and all its codes too: a comparison with it would show nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokkit.tokenizers.audio.encodec_package import import_encodec
from tokkit.tokenizers.audio.importers.load import import_audio_tokenizer
from tokkit.tokenizers.audio.model import EncodecTokenizer

ROUNDING = 1e-6  # of features: what some twenty layers in float32 add up to
EPSILON = 2.0**-23

SMALL = {"dimension": 16, "n_filters": 4, "ratios": [8, 5, 4, 2]}


def model_of(rate: int = 24000, books: int = 6, bins: int = 64, seed: int = 0, full: bool = False, **network: Any) -> Any:
    """encodec's model for a network's options, weights drawn, weight norm not fused, books filled."""
    torch.manual_seed(seed)
    encodec = import_encodec()
    options = {"causal": True, "norm": "weight_norm", "channels": 1} | ({} if full else SMALL) | network
    segments = options["norm"] == "time_group_norm"
    quantizer = encodec.quantization.vq.ResidualVectorQuantizer(options.get("dimension", 128), n_q=books, bins=bins)
    model = encodec.EncodecModel(
        encodec.modules.SEANetEncoder(**options),
        encodec.modules.SEANetDecoder(**options),
        quantizer,
        [],
        rate,
        options["channels"],
        normalize=segments,
        segment=1.0 if segments else None,
    )
    for name, tensor in model.named_parameters():
        if name.endswith((".bias", ".norm.weight")):
            tensor.data += 0.1 * torch.randn_like(tensor)  # fresh norms and biases would be alike
        elif name.endswith(".weight_g"):
            tensor.data *= 0.7 + 0.6 * torch.rand_like(tensor)  # fresh lengths are those of the directions
    return fill(model.eval().requires_grad_(False), seed)


def small_24k(**options: Any) -> Any:
    """Causal and mono, like the 24 kHz model."""
    return model_of(**options)


def small_48k(**options: Any) -> Any:
    """Stereo in segments, like the 48 kHz model."""
    return model_of(48000, channels=2, causal=False, norm="time_group_norm", **options)


def small_32k(**options: Any) -> Any:
    """Zeros around it and seeing ahead, like audiocraft's for MusicGen."""
    network = {"causal": False, "pad_mode": "constant", "true_skip": True, "ratios": [8, 5, 4, 4]}
    return model_of(32000, books=4, **network, **options)


def fill(model: Any, seed: int = 0) -> Any:
    """Each book is drawn from what the books before it left over of noise and tones of any loudness."""
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.logspace(-3, 0, 6).reshape(6, 1, 1)
    length = model.sample_rate
    waves = torch.randn(6, model.channels, length, generator=generator) * loudness
    waves[::2] = torch.sin(torch.cumsum(torch.linspace(0.01, 2.0, length), 0)) * loudness[::2]
    with torch.no_grad():
        features = model.encoder(waves)
        rest = features.permute(0, 2, 1).reshape(-1, features.shape[1])
        model.decoder(features[:1, :, :9])
        for layer in model.quantizer.vq.layers:
            book = layer._codebook
            rows = rest[torch.randint(0, len(rest), (len(book.embed),), generator=generator)]
            book.embed.copy_(rows + 0.05 * rest.std() * torch.randn(rows.shape, generator=generator))
            book.inited.fill_(1)
            rest = rest - book.embed[torch.cdist(rest, book.embed).argmin(1)]
    return model


def fused(model: Any) -> Any:
    """A copy without weight norm."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return plain.requires_grad_(False)


def imported(model: Any, folder: Path, name: str = "model.th") -> EncodecTokenizer:
    """The same model as a tokenizer, by way of its own kind of file."""
    torch.save(model.state_dict(), folder / name)
    return import_audio_tokenizer(folder / name).tokenizer


def theirs(model: Any, wave: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64] | None]:
    """(Codes ``[K, T]``, scales) of one clip as the package gives them; segments one after the other."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        frames = model.encode(torch.from_numpy(wave).to(dtype).unsqueeze(0))
    codes = torch.cat([codes[0] for codes, _ in frames], dim=1).to(torch.int32).numpy()
    scales = None if frames[0][1] is None else np.array([float(scale) for _, scale in frames])
    return codes, scales


def ties(model: Any, wave: npt.NDArray[np.float32], one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Frames in which the two differ; each must be a near-tie of the package's own features, looked at in float64.

    A tie: the chosen vector is farther than the nearest by no more than rounding can make it. Features are rounded in every
    layer (moved by :data:`ROUNDING` of their length), and distances are differences of squares that are rounded, too. Only the
    first book that differs says something: the ones behind it have other residuals.
    """
    assert one.shape == other.shape
    different = np.flatnonzero((one != other).any(axis=0))
    if not len(different):
        return 0
    features = _features(model, wave)
    for t in different:
        rest = features[t].clone()
        blur = ROUNDING * float(rest.norm())
        for layer, a, b in zip(model.quantizer.vq.layers, one[:, t], other[:, t], strict=True):
            vectors = layer._codebook.embed.double()
            distances = (rest - vectors).pow(2).sum(1)
            if a != b:
                best = distances.argmin()
                for code in (a, b):
                    margin = float(distances[code] - distances[best])
                    apart = float((vectors[code] - vectors[best]).norm())
                    squares = float(rest.pow(2).sum() + vectors[code].pow(2).sum())
                    assert margin <= 2 * blur * apart + 4 * EPSILON * squares, f"frame {t}: no tie ({margin})"
                break
            rest = rest - vectors[a]
    return len(different)


def _features(model: Any, wave: npt.NDArray[np.float32]) -> Tensor:
    """``[T, D]`` in float64."""
    whole = torch.from_numpy(wave).unsqueeze(0)
    stride = model.segment_stride or whole.shape[-1]
    found = []
    with torch.no_grad():
        for start in range(0, whole.shape[-1], stride):
            part = whole[..., start : start + (model.segment_length or whole.shape[-1])]
            if model.normalize:
                part = part / (1e-8 + part.mean(dim=1, keepdim=True).pow(2).mean(dim=2, keepdim=True).sqrt())
            found.append(model.encoder(part)[0].double().T)
    return torch.cat(found)


def signals(rate: int, channels: int) -> dict[str, npt.NDArray[np.float32]]:
    """Clips of all lengths and kinds; the longest go through the network in several pieces."""
    rng = np.random.default_rng(0)

    def noise(samples: int) -> npt.NDArray[np.float32]:
        return (0.3 * rng.standard_normal((channels, samples))).astype(np.float32)

    def sweep(seconds: float) -> npt.NDArray[np.float32]:
        t = np.arange(int(seconds * rate) + 1) / rate
        tone = 0.5 * np.sin(2 * np.pi * (50 * t + 900 * t**2))
        return np.stack([np.roll(tone, 100 * c) for c in range(channels)]).astype(np.float32)

    impulse = np.zeros((channels, 5000), dtype=np.float32)
    impulse[:, 2500] = 1
    found = {f"noise-{n}": noise(n) for n in (1, 2, 7, 319, 320, 321, 1921, 2239, 2240, 2241, 2559, 2561, 9601, 20003)}
    found |= {"silence": np.zeros((channels, 4001), dtype=np.float32), "impulse": impulse}
    if channels == 2:  # in segments of a second
        return found | {"sweep": sweep(0.7), "long-sweep": sweep(2.3), "one-segment": noise(rate)}
    return found | {"sweep": sweep(1.7), "long-sweep": sweep(5.3), "one-piece": noise(2 * rate), "and-one": noise(2 * rate + 1)}


def chunked(wave: npt.NDArray[np.float32], size: int) -> list[npt.NDArray[np.float32]]:
    """A clip in pieces of ``size`` samples."""
    return [wave[:, start : start + size] for start in range(0, wave.shape[1], size)]
