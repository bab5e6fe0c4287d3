"""The options of a run of ``tokkit shard``, and what they must be to one another.

A flag, a key of a recipe and ``--set`` all end here (:mod:`tokkit.pipelines.settings` tells what is wrong with them); a
feature cache has the same options but for some (:class:`tokkit.pipelines.features.FeaturesConfig`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_serializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokkit.audio_layouts import AudioLayout
from tokkit.chat_templates import PLAIN, ChatTemplate, load_template
from tokkit.conditions import parse_conditions
from tokkit.filters import check_specs
from tokkit.interleave import ImageLayout, PairOrder
from tokkit.media.audio import AudioLimits
from tokkit.media.images import ImageLimits
from tokkit.media.resolutions import Policy
from tokkit.media.waveforms import AudioPreprocessing
from tokkit.object_store import is_url, object_store
from tokkit.packing.policy import SplitPolicy, TooLong
from tokkit.pipelines.assembly import MissingImage
from tokkit.pipelines.dedup import (
    OF_PICTURES,
    DedupKind,
    normal_kinds,
)
from tokkit.pipelines.engine import STALL_SECONDS
from tokkit.pipelines.output import work_path
from tokkit.pipelines.resolution import Area, BucketList, check_options
from tokkit.pipelines.settings import Size
from tokkit.pipelines.stores import picture_stores
from tokkit.precision import Acceleration, Precision
from tokkit.repair import Repair, normal_repairs
from tokkit.shards.manifest import refuse_url
from tokkit.sources.base import AltText, SourceOptions


class ShardConfig(BaseModel):
    """The options of a run.

    Attributes:
        inputs: paths, globs, folders or URLs, optionally ``FORMAT:`` prefixed.
        out: output directory, or a URL of a prefix in an object store; one that an earlier run of the same configuration left
            unfinished is gone on with. Of a URL this is the folder that this process works in (:mod:`tokkit.pipelines.output`).
        store: the URL, where ``out`` was one; not to be given.
        scratch: folder on this machine's disk to work in for an output in a store; by default one below the temporary folder.
        vocabulary_from: a released model's ``tokenizer.json``, whose ids the shards are to have
            (:mod:`tokkit.released_vocabularies`); without one a vocabulary is built around the text tokenizer.
        text_tokenizer: SentencePiece ``.model`` or Hugging Face ``tokenizer.json``; ``vocabulary_from`` where that is given.
        image_tokenizer: a tokenizer folder; without one pictures are filtered.
        audio_tokenizer: likewise for sounds.
        text_vocab_size: ids kept for text where the model has more embedding rows than the tokenizer has ids.
        text_engine: what encodes a ``tokenizer.json``: its library, or gigatoken, checked against it.
        image_layout: see :mod:`tokkit.interleave`; None takes the released model's own, or ``plain``, or ``grid_rows`` where
            pictures are of several shapes.
        resolution_policy: which size pictures are encoded at (:mod:`tokkit.media.resolutions`).
        buckets: sizes to choose from, ``WIDTHxHEIGHT``; None takes those that the tokenizer's own size suggests.
        min_area, max_area: pixels of a picture with ``native``; None takes (size / 4)^2 and (2 size)^2.
        audio_layout: see :mod:`tokkit.audio_layouts`.
        audio_delays: steps by which each codebook is late in the layout ``delay``; None is 0, 1, 2...
        audio_books: codebooks that are kept, the coarsest first; None keeps all that the tokenizer has.
        audio_preprocessing: how channels are mixed, rates converted and loudness set (:mod:`tokkit.media.waveforms`).
        pair_order: order of media and text in pairs; ``random`` is half and half, drawn per document.
        text_joiner: stands between texts that become neighbours because the media item between them was left out.
        alt_text: whether the alternative text of a picture stands in an interleaved document as text, before or after it.
        chat_template: how conversations are written down: the name of a template, or a file (:mod:`tokkit.chat_templates`).
        images: picture stores that are asked for pictures which do not lie beside the corpus, in order
            (:mod:`tokkit.sources.stores.kinds`).
        missing_image: what becomes of an interleaved document with a picture that is not to be had or cannot be read: it goes
            on without it, it is not committed, or the picture's markers stay in its place with nothing between them.
        fix_text: what is repaired in texts, before anything else is done with them (:mod:`tokkit.repair`).
        filters: the user's own functions, which are asked about each document in this order (:mod:`tokkit.filters`).
        min_characters, max_characters: of all texts of a document; those outside are filtered.
        min_images, max_images: pictures of a document that are there and within ``image_limits``; those outside are filtered.
        where: conditions that documents must satisfy (:mod:`tokkit.conditions`); others are filtered.
        metadata: fields of the source that are kept per document.
        val_fraction: share of documents (by content hash) held out as split ``val``.
        seed: of every drawn choice.
        batch_size: pictures in each call of the encoder; the last batch of a unit is padded to it.
        audio_batch_size: sounds in each call of the audio tokenizer; None is 1 on a CPU, where more is no faster, else 8.
        unit_bytes: input bytes that a work unit covers, where the format can be cut.
        shard_tokens: tokens after which an output shard is closed.
        workers: processes; None takes one a core, 0 does the units in this one (for debugging: nothing outlives a crash).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``cuda``, which ``auto`` is where there is one, means all GPUs of the
            first one's model, each with an encoder process.
        precision: of the network that encodes pictures (:mod:`tokkit.precision`).
        acceleration: how it is run (:mod:`tokkit.tokenizers.image.bulk`).
        min_agreement: share of float32's codes that a fast mode must keep on the run's own pictures, else it is refused.
        encoders: ``in-worker``: each worker loads the image tokenizer; ``process``: processes do, and encode for all;
            ``auto``: a process for each GPU, the workers on a CPU (and where there are no worker processes).
        engine: ``local``: processes of this machine; ``ray``: of a Ray cluster (:mod:`tokkit.pipelines.ray_workers`), encoder
            processes with a group of workers on one node each (:mod:`tokkit.pipelines.ray_encoders`).
        ray_address: of the cluster; None starts one on this machine.
        gpus_per_worker: that a worker of a Ray cluster asks for, to encode by itself, where the device is a GPU; a fraction
            lets several share one. None is 1; but with ``encoders`` ``auto`` encoders have the GPUs then.
        encoder_processes: how many on a CPU, or on one GPU that is named; on Ray on each GPU, or on each node without.
        queue_depth: batches that a worker may have under way at an encoder process.
        dedup: what to look for twins of (:mod:`tokkit.pipelines.dedup`); duplicates are left out and say of which.
        near_distance: bits of 64 in which the perceptual hashes of pictures that count as the same may differ.
        dedup_memory: bytes that grouping keeps to; what does not fit goes to files under ``run/``.
        limit: a trial over at most this many documents, spread over the input by bytes, that extrapolates to the whole.
        strict: stop at the first reject.
        max_reject_ratio: stop where more than this share of the documents is rejected (looked at after 1,000).
        max_consecutive_rejects: stop after this many rejected documents in a row within a work unit.
        pack: also make a packing plan of this sequence length.
        pack_too_long: what becomes of documents with media longer than that (:mod:`tokkit.packing.too_long`).
        report_documents: documents that report.html shows decoded back from their tokens.
        lease_seconds: time after which a process that gives no sign is taken for dead by others on the same output.
        stall_seconds: time without progress after which a worker process is killed and its unit tried again.
        allow_mixed: go on with an output of another numeric environment; how far the two agree is measured and written down.
        shard_index, shard_count: do only every ``shard_count``-th unit, from ``shard_index`` (see :func:`shard_part`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    out: Path
    store: str | None = Field(default=None, exclude=True)
    scratch: Path | None = None
    vocabulary_from: Path | None = None
    text_tokenizer: Path = Field(default=None, validate_default=True)
    image_tokenizer: Path | None = None
    audio_tokenizer: Path | None = None
    text_vocab_size: int | None = Field(default=None, ge=1)
    text_engine: Literal["library", "gigatoken"] = "library"
    image_layout: ImageLayout | None = None
    resolution_policy: Policy = "crop"
    buckets: BucketList | None = None
    min_area: Area | None = None
    max_area: Area | None = None
    audio_layout: AudioLayout = "flat"
    audio_delays: list[int] | None = None
    audio_books: int | None = Field(default=None, ge=1)
    audio_preprocessing: AudioPreprocessing = Field(default_factory=AudioPreprocessing)
    pair_order: PairOrder = "image-first"
    text_joiner: str = "\n\n"
    alt_text: AltText = "none"
    chat_template: ChatTemplate = PLAIN
    images: list[str] = Field(default_factory=list)
    missing_image: MissingImage = "drop-image"
    fix_text: list[Repair] = Field(default_factory=list)
    filters: list[str] = Field(default_factory=list)
    min_characters: int | None = Field(default=None, ge=0)
    max_characters: int | None = Field(default=None, ge=0)
    min_images: int | None = Field(default=None, ge=0)
    max_images: int | None = Field(default=None, ge=0)
    where: list[str] = Field(default_factory=list)
    metadata: list[str] = Field(default_factory=list)
    val_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    seed: int = 0
    image_limits: ImageLimits = Field(default_factory=ImageLimits)
    audio_limits: AudioLimits = Field(default_factory=AudioLimits)
    batch_size: int = Field(default=16, ge=1, le=4096)
    audio_batch_size: int | None = Field(default=None, ge=1, le=1024)
    unit_bytes: Size = Field(default=64 << 20, ge=1)
    shard_tokens: Size = Field(default=256 << 20, ge=1)
    workers: int | None = Field(default=None, ge=0, le=1024)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Precision = "fp32"
    acceleration: Acceleration = "none"
    min_agreement: float = Field(default=0.98, ge=0.0, le=1.0)
    encoders: Literal["auto", "in-worker", "process"] = "auto"
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    gpus_per_worker: float | None = Field(default=None, gt=0, le=64)
    encoder_processes: int = Field(default=1, ge=1, le=64)
    queue_depth: int = Field(default=2, ge=1, le=64)
    dedup: list[DedupKind] = Field(default_factory=list)
    near_distance: int = Field(default=4, ge=0, le=16)
    dedup_memory: Size = Field(default=1 << 30, ge=1 << 20)
    limit: int | None = Field(default=None, ge=1)
    strict: bool = False
    max_reject_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    max_consecutive_rejects: int = Field(default=1000, ge=1)
    pack: int | None = Field(default=None, ge=2)
    pack_split: SplitPolicy = SplitPolicy.OVERLONG
    pack_too_long: TooLong = TooLong.ERROR
    report_documents: int = Field(default=8, ge=0, le=1000)
    lease_seconds: float = Field(default=60.0, ge=0.5, le=86400)
    stall_seconds: float = Field(default=STALL_SECONDS, ge=1, le=86400)
    allow_mixed: bool = False
    shard_index: int | None = Field(default=None, ge=0)
    shard_count: int | None = Field(default=None, ge=1, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _place(cls, options: object) -> object:
        if isinstance(options, dict) and options.get("store") is not None:
            raise PydanticCustomError("store", "store: no option; give the URL as out")
        if isinstance(options, dict) and isinstance(options.get("out"), Path):
            refuse_url(options["out"])
        if not isinstance(options, dict) or not isinstance(url := options.get("out"), str) or not is_url(url):
            return options
        scratch = options.get("scratch")
        path = work_path(object_store(url).url, None if scratch is None else Path(str(scratch)))
        return {**options, "out": path, "store": object_store(url).url}

    @field_serializer("out")
    def _as_given(self, out: Path) -> Path | str:
        return self.store or out

    @field_validator("text_tokenizer", mode="before")
    @classmethod
    def _of_the_model(cls, path: object, info: ValidationInfo) -> object:
        if path is not None or "vocabulary_from" not in info.data:  # not there where it is wrong itself
            return path or Path()
        if info.data["vocabulary_from"] is None:
            raise PydanticCustomError(
                "missing", "name one; only with --vocabulary-from it may be left out, the model has its own"
            )
        return info.data["vocabulary_from"]

    @field_validator("chat_template", mode="before")
    @classmethod
    def _named(cls, template: object) -> object:
        return load_template(str(template)) if isinstance(template, str | Path) else template

    @field_validator("fix_text")
    @classmethod
    def _in_order(cls, kinds: list[Repair]) -> list[Repair]:
        return normal_repairs(kinds)

    @field_validator("filters")
    @classmethod
    def _name_functions(cls, filters: list[str]) -> list[str]:
        check_specs(filters)
        return filters

    @field_validator("max_characters", "max_images")
    @classmethod
    def _above_the_least(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get(str(info.field_name).replace("max", "min"))
        if most is not None and least is not None and most < least:
            raise ValueError(f"less than the least, {least}")
        return most

    @field_validator("where")
    @classmethod
    def _are_conditions(cls, where: list[str]) -> list[str]:
        parse_conditions(where)
        return where

    @field_validator("audio_delays")
    @classmethod
    def _of_delay(cls, delays: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if delays is None:
            return None
        if info.data.get("audio_layout") != "delay":
            raise ValueError("only with --audio-layout delay")
        if not delays or min(delays) != 0 or max(delays) > 1024:
            raise ValueError("steps from 0 to 1024, and at least one codebook is not late")
        return delays

    @field_validator("missing_image")
    @classmethod
    def _needs_pictures(cls, missing: MissingImage, info: ValidationInfo) -> MissingImage:
        if missing == "keep-marker" and "image_tokenizer" in info.data and info.data["image_tokenizer"] is None:
            raise ValueError("without --image-tokenizer there are no pictures in the output, and so no markers of missing ones")
        return missing

    @field_validator("encoders")
    @classmethod
    def _for_workers(cls, encoders: str, info: ValidationInfo) -> str:
        if encoders == "process" and info.data.get("workers") == 0:
            raise ValueError("--workers 0 does everything in one process, so no other can encode for it")
        return encoders

    @field_validator("dedup")
    @classmethod
    def _normal(cls, kinds: list[DedupKind], info: ValidationInfo) -> list[DedupKind]:
        pictures = [kind for kind in kinds if kind in OF_PICTURES]
        if pictures and "image_tokenizer" in info.data and info.data["image_tokenizer"] is None:  # not there where it is wrong
            raise ValueError(
                f"{pictures[0]} compares pictures, and without --image-tokenizer there are none in the output: name one, or "
                f"leave {pictures[0]} out"
            )
        return normal_kinds(kinds)

    @field_validator("shard_count")
    @classmethod
    def _above_its_index(cls, count: int | None, info: ValidationInfo) -> int | None:
        index = info.data.get("shard_index")
        if (count is None) != (index is None):
            raise ValueError("--shard-index and --shard-count go together")
        if count is not None and index is not None and index >= count:
            raise ValueError(f"there is no part {index} of {count}: parts are counted from 0")
        return count

    @field_validator("vocabulary_from", "text_tokenizer", "image_tokenizer", "audio_tokenizer")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.exists():
            raise ValueError("no such file or folder")
        return path

    @model_validator(mode="after")
    def _of_one_engine(self) -> ShardConfig:
        if self.engine == "ray" and self.device.startswith("cuda:"):
            raise PydanticCustomError(
                "engine", "device: Ray gives out the GPUs; say cuda, which is whichever an actor was given"
            )
        if self.encoders == "process" and self.gpus_per_worker is not None:
            raise PydanticCustomError(
                "engine", "gpus_per_worker: goes with --encoders in-worker; an encoder has a GPU, its workers share it"
            )
        if self.engine == "ray" and self.workers == 0:
            raise PydanticCustomError("engine", "workers: 0 does the units in this process, which is --engine local")
        if self.engine == "local" and self.ray_address is not None:
            raise PydanticCustomError("engine", "ray_address: goes with --engine ray")
        return self

    @model_validator(mode="after")
    def _of_one_policy(self) -> ShardConfig:
        check_options(self)
        if self.resolution_policy == "native" and self.acceleration != "none":
            raise PydanticCustomError(
                "resolution",
                "acceleration: every shape is prepared by itself, and native has one for each aspect ratio; take "
                "--resolution-policy bucket, or no acceleration",
            )
        return self

    @property
    def place(self) -> Path | str:
        """Where the output is, for people: the directory or the URL."""
        return self.store or self.out

    @property
    def fast(self) -> bool:
        """Whether pictures are encoded in a mode that may give other codes than plain float32."""
        return (self.precision, self.acceleration) != ("fp32", "none")

    @property
    def source_options(self) -> SourceOptions:
        """What is asked of the sources; looks the picture stores' files up, as they are now."""
        stores = picture_stores(self.images, self.out)
        return SourceOptions(alt_text=self.alt_text, stores=stores, chat_template=self.chat_template)
