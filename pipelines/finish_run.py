"""The job behind ``tokkit finish``: bring a directory whose units are all committed to its end.

For runs in parts (``tokkit shard`` or ``tokkit features`` with ``--shard-index I --shard-count N``), which end without it. The
options are those that the parts
wrote to ``run/job.json``. Nothing is encoded, so any machine will do: inputs and tokenizers are looked at, to be sure that they
are still those of the run, and the numeric environment is the recorded one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tokkit.errors import DataError
from tokkit.features.manifest import is_cache, load_cache_manifest
from tokkit.pipelines.completion import complete
from tokkit.pipelines.features import FEATURES, FeaturesConfig, FeaturesResult
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import TOKENS, ShardConfig, ShardResult, opened
from tokkit.shards.manifest import load_manifest
from tokkit.storage import read_json


class FinishConfig(BaseModel):
    """``directory`` is one that ``tokkit shard`` or ``tokkit features`` has written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path


def finish(config: FinishConfig, progress: Progress) -> ShardResult | FeaturesResult:
    """Account for every document, write shards, manifest, packing plan and report; a finished directory stays as it is.

    Raises:
        DataError: the directory holds no run.
        FingerprintMismatch: the inputs or tokenizers are not those of the run any more.
        ResumableStop: units are missing; the message names them.
        VerificationError: the outcomes do not add up.
    """
    job = config.directory / "run" / "job.json"
    if not job.exists() or not (config.directory / CONFIG).exists():
        raise DataError(
            f"{config.directory} holds no run of `tokkit shard` or `tokkit features`: there is no "
            f"{job.relative_to(config.directory)}"
        )
    recorded = read_json(job)
    if not isinstance(recorded, dict):
        raise DataError(f"{job} is damaged: it holds no options")
    # What a file of the output names is not run: no document is looked at here, so no function of the user's is asked.
    options = {**recorded, "out": config.directory, "device": "cpu", "filters": []}
    if is_cache(config.directory):
        with opened(validated(FeaturesConfig, str(job), options), progress, FEATURES, recorded=True) as run:
            complete(run)
        return FeaturesResult(config.directory, load_cache_manifest(config.directory), {"units": 0})
    with opened(validated(ShardConfig, str(job), options), progress, TOKENS, recorded=True) as run:
        packs = complete(run)
    return ShardResult(config.directory, load_manifest(config.directory), {"units": 0}, packs)
