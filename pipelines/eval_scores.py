"""What ``tokkit eval`` measures of one tokenizer, picture by picture, and how it is summed up.

Every figure compares the picture that the tokenizer is given (after its own preprocessing) with what comes back from its codes,
both as bytes. Nothing here knows of files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokkit.metrics.codebook import count_codes, perplexity, usage
from tokkit.metrics.fid import FeatureStatistics, frechet_distance
from tokkit.metrics.inception import FEATURES, Inception
from tokkit.metrics.lpips import Lpips
from tokkit.metrics.reconstruction import psnr
from tokkit.metrics.ssim import ssim
from tokkit.tokenizers.image.model import ImageTokenizer

# Pixels of a picture set that goes through VGG16 at once: its first activations take 256 bytes a pixel.
LPIPS_PIXELS = 2**20


@dataclass(frozen=True)
class Summary:
    """Of a figure over all pictures; ``deviation`` divides by their number, percentiles interpolate linearly."""

    mean: float
    deviation: float
    minimum: float
    p05: float
    median: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Sum up at least one value."""
        data = np.asarray(values, dtype=np.float64)
        points = np.percentile(data, [0, 5, 50, 95, 100])
        return cls(float(data.mean()), float(data.std()), *map(float, points))


@dataclass(frozen=True)
class PictureScore:
    """Figures of one picture; None for a metric that was not measured."""

    locator: str
    psnr: float
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True, eq=False)
class Example:
    """A picture to be shown: its figures, its content hash, and uint8 ``[H, W, 3]`` twice."""

    score: PictureScore
    hash: str
    original: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]


@dataclass(frozen=True)
class CodebookScore:
    """Use of the codebook over the codes of all pictures.

    Attributes:
        size: codes there are in a codebook.
        codebooks: codes at each position of a picture.
        codes: codes that were counted; neither figure can say more than so many of each codebook.
        used: different codes among them; ``usage`` is their share of all there are.
        perplexity: ``exp`` of the entropy of the code distribution, mean over the codebooks.
    """

    size: int
    codebooks: int
    codes: int
    used: int
    usage: float
    perplexity: float


@dataclass(frozen=True)
class TokenizerScores:
    """A tokenizer's figures.

    Attributes:
        label: the folder as it was given.
        name, fingerprint, licence: of the tokenizer.
        resolution: side of the squares compared, in pixels.
        tokens: codes of a picture; ``bits_per_pixel`` is what they carry if all are equally probable.
        psnr, ssim, lpips: over pictures; the latter two None where they were not measured.
        rfid: None where it was not measured.
        worst, best: by PSNR, the most extreme first.
    """

    label: str
    name: str
    fingerprint: str
    licence: str | None
    resolution: int
    tokens: int
    bits_per_pixel: float
    psnr: Summary
    ssim: Summary | None
    lpips: Summary | None
    rfid: float | None
    codebook: CodebookScore
    worst: Sequence[PictureScore]
    best: Sequence[PictureScore]


@dataclass(frozen=True)
class Instruments:
    """Networks to measure with, and metrics to leave out; None or False where there is nothing to measure with."""

    lpips: Lpips | None = None
    inception: Inception | None = None
    ssim: bool = True


@dataclass
class Shown:
    """The few pictures of a stream that stand first by a key; of pictures with the same bytes one."""

    count: int
    _kept: list[tuple[tuple[float | str, str], Example]] = field(default_factory=list)

    def offer(self, key: float | str, example: Example) -> None:
        """Keep the example if its key is among the smallest; equal keys go by locator."""
        if any(kept.hash == example.hash for _, kept in self._kept):
            return
        self._kept.append(((key, example.score.locator), example))
        self._kept.sort(key=lambda pair: pair[0])
        del self._kept[self.count :]

    @property
    def examples(self) -> list[Example]:
        """Those kept, by key."""
        return [example for _, example in self._kept]


class TokenizerMeter:
    """Takes pictures in batches through one tokenizer and adds up its figures.

    Args:
        label: what to call it.
        tokenizer: ready for ``encode`` and ``decode``.
        instruments: networks, on the tokenizer's device.
        reference: features of the set that rFID is taken against; None for the pictures themselves.
        examples: pictures to keep of each kind.
        batch_size: pictures in a batch; smaller ones are padded, so that every picture is computed in one shape.
    """

    def __init__(
        self,
        label: str,
        tokenizer: ImageTokenizer,
        instruments: Instruments,
        reference: FeatureStatistics | None,
        examples: int,
        batch_size: int,
    ) -> None:
        self.label, self.tokenizer, self.instruments = label, tokenizer, instruments
        self.counts = np.zeros((tokenizer.codebooks, tokenizer.codebook_size), dtype=np.int64)
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.lpips: list[float] = []
        self.best, self.worst, self.sample = Shown(examples), Shown(examples), Shown(examples)
        self.resolution = 0
        self._batch_size = batch_size
        self._originals = FeatureStatistics(FEATURES) if reference is None else reference
        self._measures_originals = reference is None
        self._reconstructions = FeatureStatistics(FEATURES)

    def add(self, names: Sequence[tuple[str, str]], pixels: NDArray[np.uint8]) -> None:
        """Measure at most a batch uint8 ``[B, side, side, 3]``; ``names`` are each picture's locator and content hash."""
        originals = torch.from_numpy(pixels).to(self.tokenizer.device)
        padded = torch.zeros(self._batch_size, *originals.shape[1:], dtype=torch.uint8, device=originals.device)
        padded[: len(originals)] = originals
        codes = self.tokenizer.encode(padded)
        reconstructions = self.tokenizer.decode(codes)[: len(originals)]
        counted = codes[: len(originals)].cpu().numpy()
        self.counts += count_codes(counted, self.tokenizer.codebook_size, self.tokenizer.codebooks)
        self.resolution = pixels.shape[1]
        self._add_features(originals, reconstructions)
        scores = self._scores([locator for locator, _ in names], originals, reconstructions)
        shown = reconstructions.cpu().numpy()
        for slot, ((_, content), score) in enumerate(zip(names, scores, strict=True)):
            example = Example(score, content, pixels[slot].copy(), shown[slot].copy())
            self.best.offer(-score.psnr, example)
            self.worst.offer(score.psnr, example)
            self.sample.offer(content, example)

    def result(self) -> TokenizerScores:
        """Sum up; at least one picture must have been measured."""
        config = self.tokenizer.config
        codes, pictures = int(self.counts.sum()), len(self.psnr)
        rfid = None
        if self.instruments.inception is not None and min(self._originals.count, pictures) > 1:
            rfid = frechet_distance(self._originals, self._reconstructions)
        return TokenizerScores(
            label=self.label,
            name=config.name,
            fingerprint=self.tokenizer.fingerprint,
            licence=config.licence,
            resolution=self.resolution,
            tokens=codes // pictures,
            bits_per_pixel=codes * log2(self.tokenizer.codebook_size) / (pictures * self.resolution**2),
            psnr=Summary.of(self.psnr),
            ssim=Summary.of(self.ssim) if self.ssim else None,
            lpips=Summary.of(self.lpips) if self.lpips else None,
            rfid=rfid,
            codebook=CodebookScore(
                size=self.tokenizer.codebook_size,
                codebooks=self.tokenizer.codebooks,
                codes=codes,
                used=int(np.count_nonzero(self.counts)),
                usage=usage(self.counts),
                perplexity=perplexity(self.counts),
            ),
            worst=[example.score for example in self.worst.examples],
            best=[example.score for example in self.best.examples],
        )

    def _scores(self, locators: Sequence[str], originals: Tensor, reconstructions: Tensor) -> list[PictureScore]:
        psnrs = psnr(originals, reconstructions).tolist()
        self.psnr += psnrs
        ssims: list[float] | list[None] = [None] * len(psnrs)
        lpipses: list[float] | list[None] = [None] * len(psnrs)
        if self.instruments.ssim:
            ssims = ssim(originals, reconstructions).tolist()
            self.ssim += [s for s in ssims if s is not None]
        if self.instruments.lpips is not None:
            at_once = max(1, LPIPS_PIXELS // (originals.shape[1] * originals.shape[2]))
            pairs = zip(originals.split(at_once), reconstructions.split(at_once), strict=True)
            lpipses = torch.cat([self.instruments.lpips.distance(a, b) for a, b in pairs]).tolist()
            self.lpips += [d for d in lpipses if d is not None]
        return [PictureScore(*row) for row in zip(locators, psnrs, ssims, lpipses, strict=True)]

    def _add_features(self, originals: Tensor, reconstructions: Tensor) -> None:
        network = self.instruments.inception
        if network is None:
            return
        self._reconstructions.add(network.features(reconstructions).cpu().numpy())
        if self._measures_originals:
            self._originals.add(network.features(originals).cpu().numpy())
