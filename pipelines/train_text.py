"""Train a text tokenizer (``tokkit train-text``): a SentencePiece model that gives every string back exactly.

1. Read the documents of all inputs once. Those whose content hash draws a number below ``held_out`` are kept for measuring,
   the others for training. Each side holds at most its number of bytes: beyond that the blocks (up to 1 MB of one document)
   with the lowest draws stay, so the sample depends on the content and the seed, not on order, file names or workers.
2. Cut the sample into lines, long ones at spaces, and leave out what SentencePiece's trainer would skip whole lines for.
3. Train: identity normalization, no dummy prefix, no white space removed, byte fallback, single digits. Ids: 0 ``<unk>``,
   1 ``<s>``, 2 ``</s>``, then the 256 bytes ``<0x00>``..., then the pieces; there is no padding symbol (the unified vocabulary
   has its own). Text yields none of the first three.
4. Measure bytes per token on the held-out part, check there that decode(encode(x)) == x, and write ``FILE.model`` and
   ``FILE.model.json`` (configuration, figures, fingerprint).

The same input, configuration and SentencePiece version give the same bytes. BPE's result does not depend on ``threads``;
unigram's does (its sums are taken per thread), so there it is part of the configuration.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import sentencepiece
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tokkit import __version__
from tokkit.documents import Document, Text
from tokkit.errors import ConfigError, DataError, TokkitError
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.text_sample import LINE_CHARACTERS, BlockSample, blocks_of, sentences
from tokkit.sources.base import ContainerDamage, Source, Unit
from tokkit.sources.resolve import resolve_inputs
from tokkit.storage import pretty_json, replacing, sha256_file, write_atomic
from tokkit.tokenizers.text.spm import SentencePieceTokenizer
from tokkit.tokenizers.text.spmodel import PieceType, parse_model

BLOCK_BYTES = 1 << 20
HELD_OUT_BYTES = 16_000_000
UNIT_BYTES = 64 << 20
CONTROL_IDS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}

_TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


class TrainTextConfig(BaseModel):
    """Options of ``tokkit train-text``.

    Attributes:
        inputs: paths, globs, or ``format:path``.
        out: the model, ``FILE.model``; its description is written to ``FILE.model.json``.
        vocab_size: ids in all: pieces, 256 bytes and 3 control symbols.
        model_type: ``bpe`` or ``unigram``.
        max_bytes: bytes of text to train on at most; of more, a sample is drawn.
        held_out: share of the documents to measure on instead of training on them.
        character_coverage: share of the characters' occurrences that get pieces; the others are written as bytes.
        seed: for the sample and for what is held out.
        threads: for SentencePiece; unigram models depend on it.
        licence: of the model, noted beside it and in the manifests of shards made with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    out: Path
    vocab_size: int = Field(default=65536, ge=300, le=1 << 24)
    model_type: Literal["bpe", "unigram"] = "bpe"
    max_bytes: int = Field(default=200_000_000, ge=10_000, le=1 << 36)
    held_out: float = Field(default=0.02, ge=0.0, le=0.5)
    character_coverage: float = Field(default=0.9995, ge=0.9, le=1.0)
    seed: int = 0
    threads: int = Field(default=1, ge=1, le=128)
    licence: str | None = None

    @field_validator("out")
    @classmethod
    def _is_model(cls, path: Path) -> Path:
        if path.suffix != ".model":
            raise ValueError("the file's name must end in .model")
        return path


@dataclass
class SourceFigures:
    """What one source gave.

    Attributes:
        name, format: of the source.
        documents: documents with text.
        bytes: UTF-8 bytes of their text.
        failures: documents that could not be read, by reason.
        damages: stretches of containers that could not be read.
        measured_bytes, tokens: the text that was measured, and in how many tokens it was written.
        byte_tokens: those of them that are single bytes.
    """

    name: str
    format: str
    documents: int = 0
    bytes: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    damages: int = 0
    measured_bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0

    @property
    def bytes_per_token(self) -> float | None:
        """None where nothing of this source was measured."""
        return round(self.measured_bytes / self.tokens, 4) if self.tokens else None


@dataclass(frozen=True)
class TrainTextResult:
    """What the job came to.

    Attributes:
        out: the model, as written.
        fingerprint: of the tokenizer.
        vocab_size: as asked for.
        training_bytes, available_bytes: text trained on, and text there was to train on.
        measured_on: ``held-out``, or ``training`` where nothing was held out.
        bytes_per_token: over all sources.
        sources: figures by source, in input order.
    """

    out: Path
    fingerprint: str
    vocab_size: int
    training_bytes: int
    available_bytes: int
    measured_on: str
    bytes_per_token: float
    sources: list[SourceFigures]


def train_text(config: TrainTextConfig, progress: Progress) -> TrainTextResult:
    """Run the job; see the module's docstring.

    Raises:
        ConfigError: the inputs are wrong, or the vocabulary is too large or too small for them.
        DataError: the inputs hold no text.
    """
    resolved = resolve_inputs(config.inputs)
    announce_ignored(resolved, progress)
    training, held_out = BlockSample(config.max_bytes), BlockSample(min(HELD_OUT_BYTES, config.max_bytes))
    figures = [_read_source(source, n, config, training, held_out, progress) for n, source in enumerate(resolved.sources)]
    if not training.offered:
        training, held_out = held_out, training  # so few documents that all of them were drawn
    if not training.offered:
        raise DataError(f"there is no text to train on in {', '.join(config.inputs)}")
    if training.bytes < training.offered:
        progress.log(f"training on a sample of {training.bytes:,} of {training.offered:,} bytes of text (max_bytes)")
    data = train_model((text for _, text in training.blocks()), config, progress)
    measured_on = "held-out" if held_out.bytes else "training"
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as temporary:
        temporary.write_bytes(data)
        tokenizer = SentencePieceTokenizer(temporary)
        _measure(tokenizer, held_out if held_out.bytes else training, figures, progress)
    tokens = sum(source.tokens for source in figures)
    result = TrainTextResult(
        config.out,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        training.bytes,
        training.offered,
        measured_on,
        round(sum(source.measured_bytes for source in figures) / tokens, 4),
        figures,
    )
    write_atomic(config.out.with_name(config.out.name + ".json"), pretty_json(_description(config, result)))
    progress.log(f"{config.out}: {result.vocab_size:,} ids, {result.bytes_per_token:.3f} bytes per token ({measured_on} text)")
    return result


def _read_source(
    source: Source, number: int, config: TrainTextConfig, training: BlockSample, held_out: BlockSample, progress: Progress
) -> SourceFigures:
    figures, failures = SourceFigures(source.name, source.format), Counter[str]()
    units = list(source.units(UNIT_BYTES))
    with progress.task(f"read {source.name}", total=sum(unit.bytes for unit in units) / 1e6, unit="MB") as task:
        for unit in units:
            for done, found in _documents(source, unit):
                task.advance(done / 1e6)
                if isinstance(found, ContainerDamage):
                    figures.damages += 1
                    progress.log(f"{source.name}: {found.locator} bytes {found.start} to {found.stop}: {found.message}")
                elif found.failure is not None:
                    failures[found.failure.reason] += 1
                else:
                    _take(found, number, config, figures, training, held_out)
            task.fields(documents=f"{figures.documents:,}")
    figures.failures = dict(sorted(failures.items()))
    if failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in figures.failures.items())
        progress.log(f"{source.name}: {failures.total()} documents could not be read: {reasons}")
    return figures


def _documents(source: Source, unit: Unit) -> Iterator[tuple[float, Document | ContainerDamage]]:
    """What the unit holds, each with the bytes of input read since the one before."""
    reader = source.read(unit)
    before = 0.0
    for found in reader:
        yield (reader.consumed - before) * unit.bytes, found
        before = reader.consumed


def _take(
    document: Document,
    source: int,
    config: TrainTextConfig,
    figures: SourceFigures,
    training: BlockSample,
    held_out: BlockSample,
) -> None:
    texts = [segment.text for segment in document.segments if isinstance(segment, Text) and segment.text]
    if not texts:
        return
    sample = held_out if document.draw("train-text held-out", config.seed) < config.held_out else training
    figures.documents += 1
    block_bytes = min(BLOCK_BYTES, config.max_bytes // 8)
    for place, block in enumerate(block for text in texts for block in blocks_of(text, block_bytes)):
        figures.bytes += len(block.encode("utf-8", "surrogatepass"))
        sample.add(document.draw("train-text sample", config.seed, place), block, source)


def train_model(texts: Iterable[str], config: TrainTextConfig, progress: Progress) -> bytes:
    """Train SentencePiece on texts; the bytes of the ``.model``.

    Raises:
        ConfigError: the vocabulary is too large or too small for the texts; the message says what is possible.
    """
    model = io.BytesIO()
    failure: list[Exception] = []

    def train() -> None:
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=(line for text in texts for line in sentences(text)),
                model_writer=model,
                vocab_size=config.vocab_size,
                model_type=config.model_type,
                character_coverage=config.character_coverage,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                max_sentence_length=8 * LINE_CHARACTERS,
                num_threads=config.threads,
                minloglevel=2,
                unk_id=CONTROL_IDS["unk_id"],
                bos_id=CONTROL_IDS["bos_id"],
                eos_id=CONTROL_IDS["eos_id"],
                pad_id=CONTROL_IDS["pad_id"],
            )
        except Exception as error:
            failure.append(error)

    # The trainer neither reports progress nor needs the interpreter: it runs beside a clock.
    thread = threading.Thread(target=train, daemon=True, name="sentencepiece")
    begin = last = time.monotonic()
    with progress.task(f"train {config.model_type}", unit="s") as task:
        thread.start()
        while thread.is_alive():
            thread.join(0.25)
            now = time.monotonic()
            task.advance(now - last)
            last = now
    if failure:
        raise _explained(failure[0], config)
    progress.log(f"trained {config.vocab_size:,} ids in {time.monotonic() - begin:.1f} s")
    data = model.getvalue()
    return parse_model(data, str(config.out)).with_one_thread() if config.model_type == "bpe" else data


def _explained(error: Exception, config: TrainTextConfig) -> Exception:
    """SentencePiece's complaint in the terms of the options; anything else that it raises is passed on as it is."""
    message = str(error)
    if found := _TOO_LARGE.search(message):
        most = int(found.group(1))
        advice = f"at most {most} is possible: give --vocab-size {most} or less, or more text"
        return ConfigError("train-text", [f"vocab_size: {config.vocab_size} is too large for this text; {advice}"])
    if found := _TOO_SMALL.search(message):
        least = int(found.group(1))
        advice = f"its characters alone need {least}: give more, or a lower --character-coverage"
        return ConfigError("train-text", [f"vocab_size: {config.vocab_size} is too small for this text; {advice}"])
    return TokkitError(f"SentencePiece could not train: {message}") if isinstance(error, RuntimeError) else error


def _measure(tokenizer: SentencePieceTokenizer, sample: BlockSample, figures: list[SourceFigures], progress: Progress) -> None:
    """Count bytes and tokens by source, up to ``HELD_OUT_BYTES``, and check that every text comes back."""
    pieces = parse_model(tokenizer.path.read_bytes(), str(tokenizer.path)).pieces
    is_byte = [piece.type is PieceType.BYTE for piece in pieces]
    with progress.task("measure", total=min(sample.bytes, HELD_OUT_BYTES) / 1e6, unit="MB") as task:
        done = 0
        for source, text in sample.blocks():
            if done >= HELD_OUT_BYTES:
                break
            ids = tokenizer.encode(text)
            if tokenizer.decode(ids) != text:
                raise TokkitError(
                    f"a text of {figures[source].name} does not come back from the tokenizer; nothing was written"
                )
            size = len(text.encode("utf-8", "surrogatepass"))
            figures[source].measured_bytes += size
            figures[source].tokens += len(ids)
            figures[source].byte_tokens += sum(is_byte[number] for number in ids)
            done += size
            task.advance(size / 1e6)


def _description(config: TrainTextConfig, result: TrainTextResult) -> dict[str, object]:
    """``FILE.model.json``: nothing in it depends on paths, machines or time."""
    semantic = config.model_dump(mode="json", exclude={"inputs", "out", "licence"})
    if config.model_type == "bpe":
        del semantic["threads"]
    return {
        "format": "tokkit text tokenizer 1",
        "tokkit": __version__,
        "sentencepiece": sentencepiece.__version__,
        "fingerprint": result.fingerprint,
        "sha256": sha256_file(result.out),
        "licence": config.licence,
        "vocab_size": result.vocab_size,
        "control_ids": CONTROL_IDS,
        "config": semantic,
        "available_bytes": result.available_bytes,
        "training_bytes": result.training_bytes,
        "measured_on": result.measured_on,
        "bytes_per_token": result.bytes_per_token,
        "sources": [{**asdict(source), "bytes_per_token": source.bytes_per_token} for source in result.sources],
    }
