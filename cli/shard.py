"""`tokkit shard`; its options are told in :mod:`tokkit.cli.run_options` and :mod:`tokkit.cli.shard_options`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer

from tokkit.cli import run_options as runs
from tokkit.cli import shard_options as shards
from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/",
    "tokkit shard 'obelics:docs/*.parquet' pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ "
    "--pair-order random --val-fraction 0.01 --pack 4096",
    "tokkit shard corpus/ --out trial/ --text-tokenizer text.model --limit 1000",
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --shard-index $SLURM_ARRAY_TASK_ID --shard-count 16",
    "tokkit shard corpus/ --out shards/ --vocabulary-from chameleon/text_tokenizer.json --image-tokenizer chameleon-vq/",
    "tokkit shard pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ --recipe captions --val-fraction 0.01",
    "tokkit shard crawl.warc.gz --images pictures/ --missing-image drop-document --out shards/ --text-tokenizer text.model "
    "--image-tokenizer vq/",
    "tokkit shard pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ --resolution-policy bucket",
    "tokkit shard --recipe chameleon --print-config",
)

# Parameters that are the command's own, those whose field is named otherwise, and those that are part of a field.
NO_FIELDS = ("recipe", "set_", "print_config", "json", "quiet", "debug")
FIELDS = {"unit_size": "unit_bytes"}
LIMITS = {
    "image_limits": ("max_pixels", "min_pixels", "min_side", "max_side", "max_aspect"),
    "audio_limits": ("min_seconds", "max_seconds"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("shard", epilog=EXAMPLES)(shard)


def shard(
    inputs: runs.Inputs = None,
    out: runs.Out = None,
    scratch: runs.Scratch = None,
    recipe: shards.Recipe = None,
    set_: shards.Set = None,
    print_config: shards.PrintConfig = False,
    text_tokenizer: shards.TextTokenizer = None,
    vocabulary_from: shards.VocabularyFrom = None,
    image_tokenizer: shards.ImageTokenizer = None,
    audio_tokenizer: shards.AudioTokenizer = None,
    text_vocab_size: shards.TextVocabSize = None,
    text_engine: shards.TextEngine = None,
    image_layout: shards.ImageLayout = None,
    resolution_policy: shards.ResolutionPolicy = None,
    buckets: shards.Buckets = None,
    min_area: shards.MinArea = None,
    max_area: shards.MaxArea = None,
    audio_layout: shards.AudioLayout = None,
    audio_delays: shards.AudioDelays = None,
    audio_books: shards.AudioBooks = None,
    pair_order: shards.PairOrder = None,
    text_joiner: shards.TextJoiner = None,
    alt_text: shards.AltText = None,
    chat_template: runs.ChatTemplate = None,
    images: shards.Images = None,
    missing_image: shards.MissingImage = None,
    fix_text: shards.FixText = None,
    filters: shards.Filters = None,
    min_characters: shards.MinCharacters = None,
    max_characters: shards.MaxCharacters = None,
    min_images: shards.MinImages = None,
    max_images: shards.MaxImages = None,
    where: shards.Where = None,
    metadata: shards.Metadata = None,
    val_fraction: runs.ValFraction = None,
    seed: shards.Seed = None,
    batch_size: runs.BatchSize = None,
    audio_batch_size: shards.AudioBatchSize = None,
    unit_size: runs.UnitSize = None,
    shard_tokens: runs.ShardTokens = None,
    workers: runs.Workers = None,
    device: runs.Device = None,
    precision: runs.Precision = None,
    acceleration: runs.Acceleration = None,
    min_agreement: runs.MinAgreement = None,
    encoders: runs.Encoders = None,
    engine: runs.Engine = None,
    ray_address: runs.RayAddress = None,
    gpus_per_worker: runs.GpusPerWorker = None,
    encoder_processes: runs.EncoderProcesses = None,
    queue_depth: runs.QueueDepth = None,
    dedup: shards.Dedup = None,
    near_distance: shards.NearDistance = None,
    dedup_memory: runs.DedupMemory = None,
    limit: shards.Limit = None,
    strict: runs.Strict = False,
    max_reject_ratio: runs.MaxRejectRatio = None,
    max_consecutive_rejects: runs.MaxConsecutiveRejects = None,
    max_pixels: shards.MaxPixels = None,
    min_pixels: shards.MinPixels = None,
    min_side: shards.MinSide = None,
    max_side: shards.MaxSide = None,
    max_aspect: shards.MaxAspect = None,
    min_seconds: shards.MinSeconds = None,
    max_seconds: shards.MaxSeconds = None,
    pack: shards.Pack = None,
    pack_too_long: shards.PackTooLong = None,
    report_documents: shards.ReportDocuments = None,
    shard_index: runs.ShardIndex = None,
    shard_count: runs.ShardCount = None,
    lease_seconds: runs.LeaseSeconds = None,
    stall_seconds: runs.StallSeconds = None,
    allow_mixed: runs.AllowMixed = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn corpora into token shards: every document exactly once, resumable, with the proof beside it."""
    typed = dict(locals())  # the parameters, before anything else has a name here
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_manifest, show_packs, show_summary, show_warnings
        from tokkit.pipelines.lacking import warnings_of
        from tokkit.pipelines.recipe import Recipe, load_recipe, resolve
        from tokkit.pipelines.shard import shard as job
        from tokkit.pipelines.shard import shard_part

        base = load_recipe(recipe) if recipe is not None else Recipe()
        resolved = resolve(base, set_ or [], as_fields(typed), incomplete=print_config)
        if print_config:
            if not run.emit({"options": resolved.options, "missing": resolved.missing}):
                run.console.print(resolved.as_yaml(), end="", markup=False)
            return
        config = resolved.config
        assert config is not None  # only where what is missing is not minded
        if config.shard_count is not None:
            part = shard_part(config, run.progress)
            counts = {"committed": part.committed, "units": part.units}
            if run.emit(
                {"out": str(part.out), "part": [config.shard_index, config.shard_count], **counts, "summary": part.summary}
            ):
                return
            show_summary(run.console, part.summary)
            run.console.print(
                f"part {config.shard_index} of {config.shard_count}: {part.committed} of {part.units} units are committed"
            )
            run.console.print(f"once all are, `tokkit finish {part.out}` writes the shards, the manifest and the report")
            return
        result = job(config, run.progress)
        entry = {"out": str(result.out), "summary": result.summary, "warnings": warnings_of(result.manifest)}
        entry |= {"packs": {name: asdict(split) for name, split in result.packs.items()}}
        if run.emit(entry | {"manifest": result.manifest.model_dump(mode="json")}):
            return
        show_manifest(run.console, result.manifest)
        show_packs(run.console, result.packs)
        show_summary(run.console, result.summary)
        show_warnings(run.console, result.manifest)
        run.console.print(f"\n{result.out}/report.html shows documents decoded back from their tokens")


def as_fields(typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by field of :class:`~tokkit.pipelines.shard.ShardConfig`; what was not given is None or not there.

    Every parameter is taken to be a field but for those that are named above: an option that is forgotten here is refused as
    unknown, and not passed over.
    """
    given = {name: value for name, value in typed.items() if name not in NO_FIELDS}
    given = {FIELDS.get(name, name): value for name, value in given.items() if value is not None and value is not False}
    for field, names in LIMITS.items():
        limits = {name: given.pop(name) for name in names if name in given}
        given |= {field: limits} if limits else {}
    given["inputs"] = given.get("inputs") or None
    if "audio_delays" in given:
        given["audio_delays"] = given["audio_delays"].split(",")
    return given
