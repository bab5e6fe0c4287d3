"""The job ``tokkit eval``: tokenizers and pictures in, figures by one stated protocol and a page to look at out.

    read      the inputs' pictures, once; each is decoded once and goes through every tokenizer's own preprocessing
    measure   encode, decode, compare what the tokenizer was given with what comes back (:mod:`tokkit.pipelines.eval_scores`)
    write     eval.json (all figures), eval.html (:mod:`tokkit.pipelines.eval_page`), rejects.jsonl (pictures not measured)

Networks to measure with are read from files that the user names. A metric that cannot be measured is listed with the reason and
where what it needs is found; none is left out in silence. The same inputs and options give the same bytes: nothing that is
written holds a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokkit.documents import Failure, Outcome
from tokkit.errors import ItemError, UsageError
from tokkit.media.images import DEFAULT_LIMITS, ImageLimits, decode_image
from tokkit.media.transforms import Preprocessing
from tokkit.metrics.fid import FeatureStatistics
from tokkit.metrics.inception import FEATURES, load_inception
from tokkit.metrics.lpips import HEADS_VERSION, MIN_SIDE, NET, load_lpips
from tokkit.metrics.ssim import WINDOW
from tokkit.pipelines.eval_page import render_page
from tokkit.pipelines.eval_scores import Instruments, TokenizerMeter, TokenizerScores
from tokkit.pipelines.pictures import PictureInputs, find_pictures
from tokkit.pipelines.progress import Progress
from tokkit.storage import pretty_json, write_atomic
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.items import Reject, is_held_out
from tokkit.training.pictures import Picture

RESULT_FILE = "eval.json"
PAGE_FILE = "eval.html"
REJECTS_FILE = "rejects.jsonl"
DEVICES = ("cpu", "cuda")
FORMAT, VERSION = "tokkit-evaluation", 1

PROTOCOL = {
    "pictures": "decoded, then each tokenizer's own preprocessing (squares of its resolution; small pictures are enlarged); "
    "its output is compared with its input, both as 8-bit RGB; pictures that occur twice count twice",
    "psnr": "10 log10(255^2 / MSE) in dB over all samples of a picture; mean over pictures; equal pictures have 120 dB",
    "ssim": "Wang et al. 2004: Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, samples in [0, 1], data_range 1.0, windows "
    "wholly inside, mean over R, G and B; mean over pictures",
    "lpips": f"LPIPS {HEADS_VERSION} with {NET} trunk, inputs in [-1, 1] at the tokenizer's resolution; mean over pictures",
    "rfid": "Frechet distance between Inception features (pt_inception-2015-12-05, 2048 features, bilinear to 299x299 without "
    "antialiasing) of the reconstructions and of the reference, covariances over N - 1",
    "codebook": "usage: share of the codes that occur; perplexity: exp of the entropy of the code distribution; over all "
    "codes, of several codebooks the mean",
}


class EvaluateConfig(BaseModel):
    """Options of the job.

    Attributes:
        tokenizers: folders, the first one first on the page.
        inputs: picture files or folders of them, or paths, globs or ``format:path`` as for every job.
        out: folder for the results; made if absent, an earlier result in it is replaced.
        resolution: side to evaluate all tokenizers at, each by its own resize rule; if not given, each at its own.
        limit: take at most so many pictures.
        held_out: take only the pictures that ``tokkit train-vq --val-fraction`` of this value kept out of the training.
        batch_size: pictures at once.
        lpips_vgg, lpips_heads: files for LPIPS: a VGG16 trunk and the linear heads.
        inception: file for rFID.
        reference: inputs that rFID is taken against; the evaluated pictures themselves if not given.
        examples: pictures of each kind (worst, best, sample) that the page shows.
        device: that the networks run on.
        threads: of torch, and to decode pictures with; torch's own number if not given.
        limits: bounds on a picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizers: tuple[Path, ...] = Field(min_length=1)
    inputs: tuple[str, ...]
    out: Path
    resolution: int | None = Field(default=None, ge=1, le=8192)
    limit: int | None = Field(default=None, ge=1)
    held_out: float | None = Field(default=None, gt=0, lt=1)
    batch_size: int = Field(default=8, ge=1)
    lpips_vgg: Path | None = None
    lpips_heads: Path | None = None
    inception: Path | None = None
    reference: tuple[str, ...] = ()
    examples: int = Field(default=6, ge=1)
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)
    limits: ImageLimits = DEFAULT_LIMITS

    @model_validator(mode="after")
    def _together(self) -> EvaluateConfig:
        if (self.lpips_vgg is None) != (self.lpips_heads is None):
            raise ValueError("LPIPS needs both lpips_vgg (the trunk) and lpips_heads (the linear heads)")
        if self.reference and self.inception is None:
            raise ValueError("reference is for rFID, which needs inception (the network's weights)")
        twice = [str(path) for path, count in Counter(self.tokenizers).items() if count > 1]
        if twice:
            raise ValueError(f"tokenizers named twice: {', '.join(twice)}")
        return self


@dataclass(frozen=True)
class MissingMetric:
    """A metric that was not measured: for which tokenizers, why, and what would be needed and where that is found."""

    metric: str
    tokenizers: Sequence[str]
    why: str
    provide: str


@dataclass(frozen=True)
class EvalResult:
    """How an evaluation came out.

    Attributes:
        out: the folder written.
        pictures: measured; ``seen`` counts all that were read, and ``rejects`` the others by reason.
        digest: SHA-256 (hex) over the content hashes of the measured pictures in order; equal where the pictures are.
        weights: SHA-256 of the files measured with, by role.
        reference_pictures: of rFID's reference; None where that is the pictures themselves, or rFID was not measured.
        reference_rejects: pictures of the reference that could not be used, by reason.
        tokenizers: figures of each, in the order given.
        missing: metrics that were not measured.
    """

    out: str
    pictures: int
    seen: int
    rejects: Mapping[str, int]
    digest: str
    weights: Mapping[str, str]
    reference_pictures: int | None
    reference_rejects: Mapping[str, int]
    tokenizers: Sequence[TokenizerScores]
    missing: Sequence[MissingMetric]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A decoded picture: uint8 ``[side, side, 3]`` for each distinct preprocessing."""

    locator: str
    hash: str
    pixels: list[NDArray[np.uint8]]


def evaluate(config: EvaluateConfig, progress: Progress) -> EvalResult:
    """Measure image tokenizers on the pictures of any inputs.

    Raises:
        ConfigError, UsageError: options that cannot work, or inputs without a usable picture.
        DataError: a tokenizer or a file of weights is missing or damaged.
    """
    before = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return _Evaluation(config, progress).run()
    finally:
        torch.set_num_threads(before)


class _Evaluation:
    """One evaluation, from folders to files."""

    def __init__(self, config: EvaluateConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.threads = config.threads or os.cpu_count() or 1
        self.rejects: list[Reject] = []
        self.digest = hashlib.sha256()
        self.weights: dict[str, str] = {}
        self.reference_pictures: int | None = None
        self.reference_rejects: list[Reject] = []

    def run(self) -> EvalResult:
        config = self.config
        device = _device(config.device)
        self.labels = [str(folder) for folder in config.tokenizers]
        self.tokenizers = [load_image_tokenizer(folder, device) for folder in config.tokenizers]
        rules = [_rule(label, t, config.resolution) for label, t in zip(self.labels, self.tokenizers, strict=True)]
        self.rules = list(dict.fromkeys(rules))  # distinct ones: each picture goes through each once
        self.rule_of = [self.rules.index(rule) for rule in rules]
        inputs = find_pictures(config.inputs, self.progress)
        reference = find_pictures(config.reference, self.progress) if config.reference else None
        instruments = self._instruments(device)
        statistics = self._reference(reference, instruments)
        meters = []
        for label, tokenizer, rule in zip(self.labels, self.tokenizers, self.rule_of, strict=True):
            side = self.rules[rule].size
            lpips = instruments.lpips if side >= MIN_SIDE else None
            usable = Instruments(lpips, instruments.inception, ssim=side >= WINDOW)
            meters.append(TokenizerMeter(label, tokenizer, usable, statistics[rule], config.examples, config.batch_size))
        pictures, seen = self._measure(inputs, meters)
        return self._write(meters, pictures, seen)

    # ---- before

    def _instruments(self, device: torch.device) -> Instruments:
        config, lpips, inception = self.config, None, None
        if config.lpips_vgg is not None and config.lpips_heads is not None:
            lpips, digests = load_lpips(config.lpips_vgg, config.lpips_heads)
            self.weights |= {f"lpips-{role}": digest for role, digest in digests.items()}
            lpips = lpips.to(device)
        if config.inception is not None:
            inception, self.weights["inception"] = load_inception(config.inception)
            inception = inception.to(device)
        return Instruments(lpips, inception)

    def _reference(self, inputs: PictureInputs | None, instruments: Instruments) -> list[FeatureStatistics | None]:
        """Features of the reference for each preprocessing; None where the pictures themselves are the reference."""
        network = instruments.inception
        if inputs is None or network is None:
            return [None] * len(self.rules)
        statistics = [FeatureStatistics(FEATURES) for _ in self.rules]
        device = self.tokenizers[0].device
        with self.progress.task("reference", unit="pictures") as task:
            found = inputs.pictures(self.config.limits)
            for batch in _batches(self._decoded(found, self.reference_rejects), self.config.batch_size):
                for rule, statistic in enumerate(statistics):
                    pixels = torch.from_numpy(np.stack([item.pixels[rule] for item in batch])).to(device)
                    statistic.add(network.features(pixels).cpu().numpy())
                task.advance(len(batch))
        self.reference_pictures = statistics[0].count
        if self.reference_pictures < 2:
            raise UsageError(f"rFID needs two or more pictures to compare with; {', '.join(self.config.reference)} has fewer")
        return list(statistics)

    # ---- the pass

    def _measure(self, inputs: PictureInputs, meters: Sequence[TokenizerMeter]) -> tuple[int, int]:
        """Take every picture through every tokenizer; returns how many were measured and how many seen."""
        config, measured = self.config, 0
        with self.progress.task("eval", total=config.limit, unit="pictures") as task:
            found = islice(self._chosen(inputs.pictures(config.limits)), config.limit)
            for batch in _batches(self._decoded(found, self.rejects), config.batch_size):
                names = [(item.locator, item.hash) for item in batch]
                for rule, meter in zip(self.rule_of, meters, strict=True):
                    meter.add(names, np.stack([item.pixels[rule] for item in batch]))
                for _, content in names:
                    self.digest.update(content.encode("ascii"))
                measured += len(batch)
                task.advance(len(batch))
                task.fields(psnr=f"{np.mean(meters[0].psnr):.2f} dB")
        for reason, count in _reasons(self.rejects).items():
            self.progress.log(f"not measured: {count} x {reason} (listed in {REJECTS_FILE})")
        if not measured:
            held = f" (held_out {config.held_out:g})" if config.held_out is not None else ""
            raise UsageError(
                f"no picture to measure in {', '.join(config.inputs)}{held}: {len(self.rejects)} could not be used"
            )
        return measured, measured + len(self.rejects)

    def _chosen(self, pictures: Iterable[Picture | Reject]) -> Iterator[Picture | Reject]:
        """Those that ``held_out`` asks for; what could not be read belongs to neither part and is passed on."""
        share = self.config.held_out
        for picture in pictures:
            if share is None or isinstance(picture, Reject) or is_held_out(picture.media, share):
                yield picture

    def _decoded(self, pictures: Iterable[Picture | Reject], rejects: list[Reject]) -> Iterator[_Prepared]:
        """Decode in threads, a few pictures ahead, in the order of the input; what cannot be used goes to ``rejects``."""
        waiting: deque[Future[_Prepared | Reject]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for future in _ahead(waiting, (pool.submit(self._prepare, p) for p in pictures), 4 * self.threads):
                    result = future.result()
                    if isinstance(result, Reject):
                        rejects.append(result)
                    else:
                        yield result
            finally:
                for future in waiting:
                    future.cancel()

    def _prepare(self, picture: Picture | Reject) -> _Prepared | Reject:
        if isinstance(picture, Reject):
            return picture
        media = picture.media
        if media.data is None:
            failure = media.failure or Failure(Outcome.REJECTED, "no-data")
            return Reject(picture.locator, failure.outcome, failure.reason, failure.message)
        try:
            image = decode_image(media.data, self.config.limits)
        except ItemError as error:
            return Reject(picture.locator, Outcome.REJECTED, error.reason, error.message)
        return _Prepared(picture.locator, media.hash, [rule.apply(image) for rule in self.rules])

    # ---- after

    def _write(self, meters: Sequence[TokenizerMeter], pictures: int, seen: int) -> EvalResult:
        config = self.config
        scores = [meter.result() for meter in meters]
        result = EvalResult(
            out=str(config.out),
            pictures=pictures,
            seen=seen,
            rejects=_reasons(self.rejects),
            digest=self.digest.hexdigest(),
            weights=self.weights,
            reference_pictures=self.reference_pictures,
            reference_rejects=_reasons(self.reference_rejects),
            tokenizers=scores,
            missing=missing_metrics(config, scores),
        )
        figures = {key: value for key, value in asdict(result).items() if key != "out"}
        described = {
            "format": FORMAT,
            "version": VERSION,
            "protocol": PROTOCOL,
            "options": config.model_dump(mode="json", exclude={"out", "threads", "limits"}),
            **figures,
        }
        config.out.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps(asdict(reject), ensure_ascii=True) + "\n" for reject in self.rejects]
        write_atomic(config.out / REJECTS_FILE, "".join(rows))
        write_atomic(config.out / PAGE_FILE, render_page(described, meters, scores).encode("utf-8", "backslashreplace"))
        write_atomic(config.out / RESULT_FILE, pretty_json(described))
        self.progress.log(f"wrote {config.out / RESULT_FILE} and {config.out / PAGE_FILE}")
        return result


def missing_metrics(config: EvaluateConfig, scores: Sequence[TokenizerScores]) -> list[MissingMetric]:
    """Every metric that some tokenizer has no figure of."""
    found = []
    needs = {
        "ssim": (True, "", f"pictures smaller than its {WINDOW}x{WINDOW} window", "Evaluate with a larger --resolution"),
        "lpips": (
            config.lpips_vgg is not None,
            "no weights were given",
            f"pictures smaller than {MIN_SIDE}x{MIN_SIDE}",
            "Give --lpips-vgg (torchvision's VGG16, vgg16-397923af.pth, from download.pytorch.org/models) and --lpips-heads "
            "(vgg.pth of version 0.1, from lpips/weights/v0.1 of the repository richzhang/PerceptualSimilarity)",
        ),
        "rfid": (
            config.inception is not None,
            "no weights were given",
            "fewer than two pictures",
            "Give --inception (pt_inception-2015-12-05-6726825d.pth, from the release fid_weights of the repository "
            "mseitz/pytorch-fid)",
        ),
    }
    for metric, (given, why_no_weights, why_otherwise, provide) in needs.items():
        without = [s.label for s in scores if getattr(s, metric) is None]
        if without:
            advice = provide if not given or metric == "ssim" else "Evaluate more or larger pictures"
            found.append(MissingMetric(metric, without, why_otherwise if given else why_no_weights, advice))
    return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise UsageError(f"device {name!r}: figures are taken in float64, which needs one of {', '.join(DEVICES)}")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _rule(label: str, tokenizer: ImageTokenizer, resolution: int | None) -> Preprocessing:
    """The tokenizer's preprocessing, at another resolution where one is asked for."""
    if not tokenizer.has_decoder:
        raise UsageError(f"{label} has no decoder, so there is nothing to compare its pictures with")
    rule = tokenizer.config.preprocessing
    if resolution is None:
        return rule
    if resolution % tokenizer.downsample:
        raise UsageError(f"{label}: resolution {resolution} is no multiple of its downsampling factor {tokenizer.downsample}")
    return rule.model_copy(update={"size": resolution})


def _reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    """Rejects by reason, the most frequent first, then by name."""
    return dict(sorted(Counter(r.reason for r in rejects).items(), key=lambda item: (-item[1], item[0])))


def _batches(items: Iterable[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _ahead(
    waiting: deque[Future[_Prepared | Reject]], futures: Iterable[Future[_Prepared | Reject]], depth: int
) -> Iterator[Future[_Prepared | Reject]]:
    """The futures in order, ``depth`` of them begun before the first is asked for."""
    for future in futures:
        waiting.append(future)
        if len(waiting) > depth:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
