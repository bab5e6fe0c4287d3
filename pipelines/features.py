"""``tokkit features``: corpora in, a frozen encoder's features and the text beside them out, every document exactly once.

The second product of the engine: inputs, plan, leases, workers, ledger, accounts and resumption are those of ``tokkit shard``
(:mod:`tokkit.pipelines.shard`); this module says what differs (:class:`FeatureCaches`). A unit's documents become text ids,
places and features (:mod:`tokkit.pipelines.features_unit`), and the payloads of all units shards of about ``shard_bytes``
(:mod:`tokkit.pipelines.features_shards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tokkit.dedup.perceptual import hash_versions
from tokkit.errors import UsageError
from tokkit.features.base import FeatureOptions
from tokkit.features.manifest import CacheManifest, load_cache_manifest
from tokkit.features.precision import DTYPES, StoredDtype
from tokkit.interleave import Layout
from tokkit.pipelines.assembly import MissingImage
from tokkit.pipelines.calibration import Calibration
from tokkit.pipelines.completion import Run, committed, complete
from tokkit.pipelines.dedup import OF_PICTURES, DedupKind, normal_kinds
from tokkit.pipelines.duplicates import DuplicateTable
from tokkit.pipelines.features_batches import Intake, load_features
from tokkit.pipelines.features_calibration import FEATURE_CALIBRATION
from tokkit.pipelines.features_shards import coalesce_features, feature_totals
from tokkit.pipelines.features_unit import FeatureJob, sound_reader
from tokkit.pipelines.fingerprint import CODE_VERSION, numeric_environment
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.prepare import (
    FILTERS,
    REPAIR,
    Setup,
    check_template,
    resolve_device,
    semantic_options,
    text_entry,
    user_digests,
)
from tokkit.pipelines.product import EncoderField, EncoderKind
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.settings import Size
from tokkit.pipelines.shard import PartResult, ShardConfig, encode_units, opened
from tokkit.repair import repair_versions
from tokkit.shards.manifest import Split, TokenizerEntry, file_entry
from tokkit.sources import packages_of
from tokkit.sources.resolve import ResolvedInputs
from tokkit.storage import fingerprint_of
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.features.base import FeatureEncoder, RunOptions
    from tokkit.pipelines.pack import SplitResult

PRODUCT = "features"
ENCODER_PACKAGES = ("transformers",)

# Options of token shards that decide nothing here; a run that names one is told so.
OF_TOKENS = frozenset(
    {
        "vocabulary_from",
        "image_tokenizer",
        "audio_tokenizer",
        "audio_layout",
        "audio_delays",
        "audio_books",
        "audio_batch_size",
        "text_vocab_size",
        "image_layout",
        "resolution_policy",
        "buckets",
        "min_area",
        "max_area",
        "shard_tokens",
        "pack",
        "pack_split",
        "pack_too_long",
        "allow_mixed",
    }
)

# The options that decide the output; what is not here may change between a run and its resumption.
SEMANTIC_OPTIONS = frozenset(
    {
        "dtype",
        "shard_bytes",
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
        "audio_limits",
        "audio_preprocessing",
        "unit_bytes",
        "limit",
    }
)


class FeaturesConfig(ShardConfig):
    """The options of a run: those of :class:`~tokkit.pipelines.shard.ShardConfig` that are not of tokens, and these.

    Attributes:
        text_tokenizer: the language model's own; its ids are stored as they are.
        encoder: folder of the frozen encoder (:func:`tokkit.features.load_feature_encoder`), or a name on the hub.
        options: what is taken of it.
        allow_download: whether ``encoder`` may be fetched.
        dtype: the stored form of features.
        shard_bytes: bytes of features after which an output shard is closed.
        batch_size: views in each call of the encoder.
        precision, acceleration: how its network is run (:class:`tokkit.features.base.RunOptions`).
        min_agreement: 1 less the relative error that a fast mode may bring to float32's features, on the run's own items.
        encoders: as for pictures: processes on GPUs that encode for all workers, the workers on a CPU.
    """

    product: ClassVar[str] = PRODUCT

    encoder: str
    options: FeatureOptions = Field(default_factory=FeatureOptions)
    allow_download: bool = False
    dtype: StoredDtype = "fp16"
    shard_bytes: Size = Field(default=1 << 30, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _not_of_tokens(cls, options: object) -> object:
        if isinstance(options, dict):
            defaults = {name: ShardConfig.model_fields[name].get_default(call_default_factory=True) for name in OF_TOKENS}
            asked = [n for n in sorted(OF_TOKENS & options.keys()) if options[n] not in (None, defaults[n])]
            if asked:
                raise ValueError(f"{', '.join(asked)}: of token shards; a feature cache has no such option")
        return options

    @field_validator("missing_image")
    @classmethod
    def _needs_pictures(cls, missing: MissingImage, info: ValidationInfo) -> MissingImage:
        return missing

    @field_validator("dedup")
    @classmethod
    def _normal(cls, kinds: list[DedupKind], info: ValidationInfo) -> list[DedupKind]:
        return normal_kinds(kinds)

    def load_encoder(self, device: str, run: RunOptions | None = None) -> FeatureEncoder:
        """Load the encoder, to be run in plain float32 unless told otherwise.

        Raises:
            UsageError, DataError: it cannot be used.
        """
        from tokkit.features import load_feature_encoder

        return load_feature_encoder(self.encoder, self.options, device=device, allow_download=self.allow_download, run=run)


@dataclass(frozen=True)
class FeaturesResult:
    """What a run came to: the directory or the URL, its manifest, and this run's own figures (as in ``run/summary.json``)."""

    out: Path | str
    manifest: CacheManifest
    summary: dict[str, object]


def features(config: FeaturesConfig, progress: Progress) -> FeaturesResult:
    """Run the job; see the module's docstring.

    Raises:
        As :func:`tokkit.pipelines.shard.shard`.
    """
    with opened(config, progress, FEATURES) as run:
        progress.log(told_sizes(run.setup))
        summary = encode_units(run)
        complete(run)
        return FeaturesResult(config.place, load_cache_manifest(config.out), summary)


def features_part(config: FeaturesConfig, progress: Progress) -> PartResult:
    """Do the units of ``config.shard_index`` only; :func:`tokkit.pipelines.finish_run.finish` does the rest."""
    with opened(config, progress, FEATURES) as run:
        summary = encode_units(run)
        return PartResult(config.place, len(committed(run)), len(run.plan.units), summary)


@dataclass(frozen=True, kw_only=True)
class FeatureSetup(Setup):
    """What the options come to, with what the manifest says of the encoder.

    Attributes:
        described: by the encoder itself.
        dim, pooled_dim, modality: its own.
        text_vocab_size: of the text tokenizer.
        examples: tokens of a picture of some sizes, or of a clip of some seconds.
        intake: what the encoder takes.
    """

    described: dict[str, object]
    dim: int
    pooled_dim: int | None
    modality: str
    text_vocab_size: int
    dtype: StoredDtype
    examples: dict[str, int]
    intake: Intake


def told_sizes(setup: Setup) -> str:
    """What an item comes to on disk, before anything is encoded."""
    assert isinstance(setup, FeatureSetup)
    size = DTYPES[setup.dtype].itemsize * setup.dim + (4 if setup.dtype == "int8" else 0)
    listed = "; ".join(f"{name}: {count:,} tokens, {count * size / 1e6:,.2f} MB" for name, count in setup.examples.items())
    return f"features of {setup.dim:,} in {setup.dtype}, {size:,} bytes a token; {listed}"


def _examples(encoder: FeatureEncoder) -> dict[str, int]:
    if encoder.modality == "audio":
        rate = encoder.sample_rate or 16_000
        return {f"{seconds} s": encoder.tokens_of(seconds * rate) for seconds in (5, 30, 60)}
    sizes = ((336, 336), (640, 480), (1920, 1080))
    return {f"{width} x {height}": encoder.tokens_of(width, height) for width, height in sizes}


class FeatureCaches:
    """Feature caches, as a :class:`~tokkit.pipelines.product.Product`."""

    def prepare(self, config: ShardConfig, resolved: ResolvedInputs, filters: dict[str, str] | None) -> Setup:
        from tokkit.tokenizers.text import load_text_tokenizer

        assert isinstance(config, FeaturesConfig)
        text = load_text_tokenizer(config.text_tokenizer, (), config.text_engine)
        check_template(config, text)
        device = resolve_device(config.device)
        encoder = config.load_encoder("cpu")
        pictures = [kind for kind in config.dedup if kind in OF_PICTURES]
        if pictures and encoder.modality != "image":
            raise UsageError(
                f"--dedup {pictures[0]} compares pictures, and with {config.encoder}, which takes {encoder.modality}, there "
                f"are none in the output"
            )
        described = encoder.describe()
        licence = described.get("licence")
        tokenizers = {
            "text": text_entry(config.text_tokenizer, text),
            "encoder": TokenizerEntry(
                kind=f"{encoder.modality}-features",
                name=Path(config.encoder).name,
                fingerprint=encoder.fingerprint,
                licence=licence if isinstance(licence, str) else None,
                detail={"dim": encoder.dim, "pooled_dim": encoder.pooled_dim},
            ),
        }
        options = semantic_options(config, SEMANTIC_OPTIONS)
        if "near-images" in config.dedup:
            options["perceptual_hash"] = hash_versions()
        if config.fix_text:
            options[REPAIR] = repair_versions(config.fix_text)
        if filters is None:
            filters = user_digests(config)
        if filters:
            options[FILTERS] = filters
        semantic: dict[str, object] = {
            "product": PRODUCT,
            "code_version": CODE_VERSION,
            "tokenizers": {kind: entry.fingerprint for kind, entry in tokenizers.items()},
            "sources": [[source.name, source.format] for source in resolved.sources],
            **options,
        }
        if resolved.stores is not None:
            semantic["images"] = [[store.name, store.kind] for store in resolved.stores.stores]
        packages = {*packages_of({source.format for source in resolved.sources}), *ENCODER_PACKAGES}
        intake = Intake.of(encoder)
        sounds = sound_reader(intake, config)
        environment = partial(
            numeric_environment,
            device,
            config.batch_size,
            config.text_engine,
            packages,
            config.precision,
            config.acceleration,
            sounds=sounds is not None,
        )
        numeric = environment()
        return FeatureSetup(
            # Ids of a cache are the text tokenizer's own: there is nothing else in the vocabulary that text could meet.
            UnifiedVocabulary.build(text.vocab_size, []),
            Layout("plain"),
            tokenizers,
            semantic,
            numeric,
            str(device),
            None,
            filters,
            sounds,
            pictures=encoder.modality == "image",
            environment=environment,
            described=described,
            dim=encoder.dim,
            pooled_dim=encoder.pooled_dim,
            modality=encoder.modality,
            text_vocab_size=text.vocab_size,
            dtype=config.dtype,
            examples=_examples(encoder),
            intake=intake,
        )

    def begin(self, out: Path, setup: Setup) -> None:
        pass

    def job(self, run: Run, duplicates: DuplicateTable | None) -> FeatureJob:
        setup = run.setup
        assert isinstance(setup, FeatureSetup)
        return FeatureJob(
            run.config,
            run.plan.sources,
            setup.vocabulary,
            setup.layout,
            setup.device,
            fingerprint_of(setup.numeric),
            duplicates,
            fingerprints={kind: entry.fingerprint for kind, entry in setup.tokenizers.items()},
            filters=setup.filters,
            intake=setup.intake,
        )

    def encoders(self, run: Run) -> dict[EncoderField, EncoderKind]:
        assert isinstance(run.config, FeaturesConfig)
        load = partial(load_features, run.config, fingerprint=run.setup.tokenizers["encoder"].fingerprint)
        return {"encoders": EncoderKind(load, run.config.batch_size)}

    def calibration(self, run: Run) -> Calibration | None:
        return FEATURE_CALIBRATION if run.config.fast else None

    def coalesce(self, run: Run, records: list[CommitRecord]) -> dict[str, Split]:
        assert isinstance(run.config, FeaturesConfig)
        return coalesce_features(run.output, run.ledger, records, run.config.shard_bytes, run.progress)

    def manifest(self, run: Run, common: Mapping[str, Any]) -> CacheManifest:
        setup = run.setup
        assert isinstance(setup, FeatureSetup)
        return CacheManifest(
            **common,
            dtype=setup.dtype,
            dim=setup.dim,
            pooled_dim=setup.pooled_dim,
            modality=setup.modality,
            text_vocab_size=setup.text_vocab_size,
            encoder=setup.described,
            features={name: feature_totals(run.output.result, name, split) for name, split in common["splits"].items()},
            files={CONFIG: file_entry(run.config.out / CONFIG)},
        )

    def pack(self, run: Run) -> dict[str, SplitResult]:
        return {}

    def report(self, run: Run) -> None:
        if not (run.config.out / "report.html").exists():
            from tokkit.pipelines.features_report import write_features_report

            write_features_report(run.config.out, run.output.result)


FEATURES = FeatureCaches()
