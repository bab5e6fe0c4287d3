"""What a worker needs to do units, and does them with: tokenizers, or the ends of encoder processes, loaded once.

How one unit goes is :mod:`tokkit.pipelines.attempt`; whatever is loaded must have the fingerprint that the run began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from tokkit.errors import FingerprintMismatch
from tokkit.interleave import Layout
from tokkit.pipelines.admission import Admission
from tokkit.pipelines.attempt import Attempt
from tokkit.pipelines.batching import BatchEncoder, Encodes, ImageBatcher, LocalEncoder
from tokkit.pipelines.duplicates import DuplicateTable
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.output import output_of, placed_elsewhere
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.resolution import fitting_of
from tokkit.pipelines.sounds import SoundBatcher, SoundBatches, SoundEncoder, SoundReader, sound_batch
from tokkit.pipelines.stores import bring_index, placed_sources
from tokkit.pipelines.work import Report
from tokkit.sources.base import Source
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.media.resolutions import Fitting
    from tokkit.pipelines.encoder import Endpoint
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.audio.base import AudioTokenizer, Buckets
    from tokkit.tokenizers.image.bulk import BulkEncoder
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class UnitJob:
    """Everything a worker needs to do units; picklable, the tokenizers are loaded in the worker.

    Attributes:
        encoders: the encoder processes that encode pictures; without one the worker loads the image tokenizer.
        preprocessing: what the image tokenizer takes, where the worker does not load it.
        sound_encoders: the encoder processes that encode sounds in batches; without one the worker loads the audio tokenizer.
        sounds: what decodes sounds, and which share batches, where the worker does not load the audio tokenizer.
        fingerprints: of the tokenizers, by kind: one that has changed since the run began must not encode.
        filters: digests of the user's functions, likewise (:class:`~tokkit.pipelines.admission.Admission`); None takes any.
    """

    config: ShardConfig
    sources: dict[str, Source]
    vocabulary: UnifiedVocabulary
    layout: Layout
    device: str
    numeric: str
    duplicates: DuplicateTable | None = None
    encoders: tuple[Endpoint, ...] = ()
    preprocessing: Fitting | None = None
    sound_encoders: tuple[Endpoint, ...] = ()
    sounds: tuple[SoundReader, Buckets] | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    filters: dict[str, str] | None = None

    def open(self) -> UnitProcessor:
        """Load the tokenizers."""
        return UnitProcessor(self)

    @contextmanager
    def placed(self, encoders: Mapping[str, tuple[Endpoint, ...]] = MappingProxyType({})) -> Iterator[UnitJob]:
        """The job as workers on another machine do it, with encoder processes there, for the length of a ``with`` block."""
        with placed_elsewhere(self.config) as config:
            pictures, sounds = encoders.get("encoders", ()), encoders.get("sound_encoders", ())
            duplicates = None if self.duplicates is None else self.duplicates.placed(config.out)
            sources = self.sources if config is self.config else placed_sources(self.sources, config.out)
            yield replace(self, config=config, sources=sources, duplicates=duplicates, encoders=pictures, sound_encoders=sounds)


class UnitProcessor:
    """Does units, one after another, in one process."""

    def __init__(self, job: UnitJob) -> None:
        from tokkit.tokenizers.text import load_text_tokenizer

        self.job, self.config = job, job.config
        output = output_of(job.config)
        self.ledger = output.ledger()
        bring_index(job.sources.values(), output)
        self.text: TextTokenizer = load_text_tokenizer(
            job.config.text_tokenizer, job.vocabulary.claimed, job.config.text_engine
        )
        same_tokenizer(job.config.text_tokenizer, self.text, job.fingerprints.get("text"))
        self.duplicates = job.duplicates.open() if job.duplicates is not None else None
        self.admission = Admission(job.config, job.filters)
        self.image: BulkEncoder | None = None
        self.encodes: Encodes | None = None  # what encodes in this process
        self.preprocessing = job.preprocessing
        if job.config.image_tokenizer is not None and not job.encoders:
            self.image = load_encoder(job.config, job.device, job.fingerprints.get("image"))
            tokenizer = self.image.tokenizer
            self.encodes = self.image
            self.preprocessing = fitting_of(job.config, tokenizer.config.preprocessing, tokenizer.downsample)
        self.sounds: SoundEncoder | None = None
        self.sound_batch = sound_batch(job.config, job.device)
        if job.config.audio_tokenizer is not None:
            books = len(job.vocabulary.codebooks("audio"))
            load = partial(load_sounds, job.config, job.device, job.fingerprints.get("audio"))
            if job.sound_encoders and job.sounds is not None:
                self.sounds = SoundEncoder(load, *job.sounds, books)
            else:
                self.sounds = SoundEncoder.of(load(), job.config.audio_preprocessing, job.config.audio_limits, books)

    def batcher(self, index: int, alive: Callable[[], None]) -> ImageBatcher | None:
        """What encodes the pictures of unit ``index``, if there is an image tokenizer; ``alive`` is called while it waits."""
        encoder: BatchEncoder
        if self.job.encoders:
            from tokkit.pipelines.encoder_client import RemoteEncoder

            encoder = RemoteEncoder(self.job.encoders[index % len(self.job.encoders)], alive)
        elif self.encodes is not None:
            encoder = LocalEncoder(self.encodes, self.config.batch_size)
        else:
            return None
        return ImageBatcher(encoder, self.config.batch_size)

    def sound_batcher(self, index: int, alive: Callable[[], None]) -> SoundBatcher | None:
        """What encodes the sounds of unit ``index`` in batches, where that is how they are encoded."""
        if self.sounds is None or self.sound_batch == 1:
            return None
        encoder: BatchEncoder
        if self.job.sound_encoders:
            from tokkit.pipelines.encoder_client import RemoteEncoder

            encoder = RemoteEncoder(self.job.sound_encoders[index % len(self.job.sound_encoders)], alive, list)
        else:
            encoder = LocalEncoder(cast(Any, SoundBatches(self.sounds.tokenizer)), self.sound_batch)
        return SoundBatcher(encoder, self.sound_batch, self.sounds)

    def process(self, planned: PlannedUnit, report: Report) -> CommitRecord:
        """Read a unit and commit it; calls ``report`` now and then with the work done since the last call."""
        with closing(self.attempt(planned, report)) as attempt:
            return attempt.run()

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        """Do everything but the commit to the documents at ``[first, last)`` of a unit; returns how many there were."""
        with closing(self.attempt(planned, report, range(first, last))) as attempt:
            return attempt.probe()

    def attempt(self, planned: PlannedUnit, report: Report, only: range | None = None) -> Attempt:
        """One attempt at a unit, or at the documents ``only`` of it."""
        return Attempt(self, planned, report, only)


def same_tokenizer(path: Path, tokenizer: TextTokenizer | ImageTokenizer | AudioTokenizer, fingerprint: str | None) -> None:
    """Raise FingerprintMismatch where a tokenizer is not the one that the run began with (None: any is)."""
    if fingerprint is not None and tokenizer.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{path} has changed since the run began: restore it and run the same command again, or write to another --out"
        )


def load_encoder(config: ShardConfig, device: str, fingerprint: str | None) -> BulkEncoder:
    """Load a run's image tokenizer, which must be the one that it began with, as the options want it to encode."""
    from tokkit.tokenizers.image import load_image_tokenizer
    from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions

    if config.image_tokenizer is None:
        raise ValueError("the run has no image tokenizer")
    tokenizer = load_image_tokenizer(config.image_tokenizer, device=device)
    same_tokenizer(config.image_tokenizer, tokenizer, fingerprint)
    return BulkEncoder(tokenizer, config.batch_size, BulkOptions(config.precision, config.acceleration))


def load_sounds(config: ShardConfig, device: str, fingerprint: str | None) -> AudioTokenizer:
    """Load a run's audio tokenizer, which must be the one that it began with."""
    from tokkit.tokenizers.audio import load_audio_tokenizer

    if config.audio_tokenizer is None:
        raise ValueError("the run has no audio tokenizer")
    tokenizer = load_audio_tokenizer(config.audio_tokenizer, device=device)
    same_tokenizer(config.audio_tokenizer, tokenizer, fingerprint)
    return tokenizer


def load_sound_batches(config: ShardConfig, device: str, fingerprint: str | None) -> SoundBatches:
    """The same, as what encodes batches."""
    return SoundBatches(load_sounds(config, device, fingerprint))
