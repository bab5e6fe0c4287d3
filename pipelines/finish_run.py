"""The job behind ``tokkit finish``: bring a directory whose units are all committed to its end.

For runs in parts (``tokkit shard`` or ``tokkit features`` with ``--shard-index I --shard-count N``), which end without it. The
options are those that the parts
wrote to ``run/job.json``. Nothing is encoded, so any machine will do: inputs and tokenizers are looked at, to be sure that they
are still those of the run, and the numeric environment is the recorded one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from tokkit.errors import DataError, ResumableStop
from tokkit.features.manifest import is_cache, load_cache_manifest
from tokkit.object_store import is_url, object_store
from tokkit.pipelines.completion import complete
from tokkit.pipelines.features import FEATURES, FeaturesConfig, FeaturesResult
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import TOKENS, ShardConfig, ShardResult, opened
from tokkit.shards.manifest import load_manifest
from tokkit.storage import read_json


class FinishConfig(BaseModel):
    """What to finish.

    Attributes:
        directory: one that ``tokkit shard`` or ``tokkit features`` has written, or the URL of one in an object store.
        scratch: where to work for one in a store, as in :class:`~tokkit.pipelines.shard.ShardConfig`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path | str
    scratch: Path | None = None


def finish(config: FinishConfig, progress: Progress) -> ShardResult | FeaturesResult:
    """Account for every document, write shards, manifest, packing plan and report; a finished directory stays as it is.

    Raises:
        DataError: the directory holds no run.
        FingerprintMismatch: the inputs or tokenizers are not those of the run any more.
        ResumableStop: units are missing; the message names them.
        VerificationError: the outcomes do not add up.
    """
    with _recorded(config.directory) as folder:
        job = folder / "run" / "job.json"
        if not job.exists() or not (folder / CONFIG).exists():
            raise DataError(
                f"{config.directory} holds no run of `tokkit shard` or `tokkit features`: there is no {job.relative_to(folder)}"
            )
        recorded = read_json(job)
        cache = is_cache(folder)
    if not isinstance(recorded, dict):
        raise DataError(f"{config.directory}/run/job.json is damaged: it holds no options")
    # What a file of the output names is not run: no document is looked at here, so no function of the user's is asked.
    options = {**recorded, "out": config.directory, "scratch": config.scratch, "device": "cpu", "filters": []}
    where = f"{config.directory}/run/job.json"
    if cache:
        with opened(validated(FeaturesConfig, where, options), progress, FEATURES, recorded=True) as run:
            complete(run)
            return FeaturesResult(config.directory, load_cache_manifest(run.config.out), {"units": 0})
    with opened(validated(ShardConfig, where, options), progress, TOKENS, recorded=True) as run:
        packs = complete(run)
        return ShardResult(config.directory, load_manifest(run.config.out), {"units": 0}, packs)


@contextmanager
def _recorded(directory: Path | str) -> Iterator[Path]:
    """A folder that holds what the directory says of its run."""
    if isinstance(directory, Path) or not is_url(directory):
        yield Path(directory)
        return
    store = object_store(directory)
    with TemporaryDirectory(prefix="tokkit-", ignore_cleanup_errors=True) as folder:
        try:
            for name in (CONFIG, "run/job.json"):
                with suppress(FileNotFoundError):
                    store.download(name, Path(folder) / name)
        except OSError as error:
            raise ResumableStop(
                f"{error.filename or directory}: {error.strerror or error}; run the same command again when the cause is gone"
            ) from error
        yield Path(folder)
