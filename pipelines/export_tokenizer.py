"""The job behind ``tokkit export --format hf-tokenizer``: the unified vocabulary as a Hugging Face tokenizer, proven equal.

The folder is what ``AutoTokenizer.from_pretrained`` takes, ``vocabulary.json``, ``embedding.json`` (how many rows a text
model's embedding keeps and gains) and ``export.json``, where it says on what the tokenizer was found to be equal: texts of the
output's own documents, spread over it, and texts that are made to find a difference (spellings of markers, tokens in random
order, runs). A difference is an error, and nothing is written then. The one exception are ties of a Unigram model
(:mod:`tokkit.tokenizers.text.convert`), which are counted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from tokkit.errors import DataError, ItemError, VerificationError
from tokkit.interleave import TextCodes, decode
from tokkit.packing.store import committed_folder
from tokkit.pipelines.decoding import recorded_tokenizer, same_tokenizer
from tokkit.pipelines.progress import Progress
from tokkit.shards.manifest import Manifest
from tokkit.shards.native import TokenShards
from tokkit.shards.spans import picture_grids
from tokkit.storage import pretty_json, record_json, sha256_file
from tokkit.tokenizers.text import TextTokenizer, load_text_tokenizer
from tokkit.tokenizers.text.base import PROBES, without_surrogates
from tokkit.tokenizers.text.convert import tie_test, tokenizer_json
from tokkit.tokenizers.text.unified import (
    check_ids,
    embedding,
    marker_names,
    special_tokens,
    tokenizer_config,
    unify,
)
from tokkit.vocabulary import UnifiedVocabulary

FORMAT = "hf-tokenizer"
DOCUMENTS = 500  # of the output, at most, spread over it
SPELLED = 256  # names of special tokens
DRAWN = 2000  # texts of random tokens
LONGEST = 20_000  # tokens of one text of a document that are compared


@dataclass
class Proof:
    """On what two tokenizers were found to be equal.

    Attributes:
        documents: of the output, whose texts were compared.
        texts, tokens: that were compared in all.
        ties: texts for which they chose different ways to write them that are as good as each other.
    """

    documents: int = 0
    texts: int = 0
    tokens: int = 0
    ties: int = 0


def export_tokenizer(
    directory: Path,
    out: Path,
    manifest: Manifest,
    record: dict[str, object],
    progress: Progress,
    text_tokenizer: Path | None = None,
) -> None:
    """Write the folder; ``record`` is completed and becomes its ``export.json``.

    Raises:
        UsageError: the text tokenizer cannot be written as a tokenizer.json, or is not where it was.
        DataError: it is not the one that was used.
        VerificationError: the exported tokenizer has other ids for some text.
    """
    vocabulary = UnifiedVocabulary.load(directory / "vocabulary.json")
    entry = manifest.tokenizers.get("text")
    if entry is None:
        raise DataError(f"{directory} names no text tokenizer in its manifest")
    path = recorded_tokenizer(directory, "text", text_tokenizer)
    ours = load_text_tokenizer(path, vocabulary.claimed)
    same_tokenizer(entry, ours.fingerprint, path)
    with committed_folder(out) as temporary:
        config = unify(tokenizer_json(ours), vocabulary, ours.vocab_size)
        (temporary / "tokenizer.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        try:
            theirs = Tokenizer.from_file(str(temporary / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"the tokenizers library does not load what {path} became: {error}") from None
        theirs.encode_special_tokens = True
        check_ids(theirs, config, vocabulary)
        proof = prove(ours, theirs, directory, manifest, vocabulary, progress)
        names = marker_names(theirs, vocabulary)
        figures = embedding(vocabulary, ours.vocab_size)
        for name, content in {
            "tokenizer_config.json": tokenizer_config(names),
            "special_tokens_map.json": special_tokens(names),
            "embedding.json": figures,
        }.items():
            (temporary / name).write_text(pretty_json(content), encoding="utf-8")
        (temporary / "vocabulary.json").write_bytes((directory / "vocabulary.json").read_bytes())
        record["fingerprint"] = ours.fingerprint
        record["proof"] = asdict(proof)
        record["embedding"] = figures
        record["files"] = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(temporary.iterdir())
        }
        (temporary / "export.json").write_text(record_json(record))


def prove(
    ours: TextTokenizer,
    theirs: Tokenizer,
    directory: Path,
    manifest: Manifest,
    vocabulary: UnifiedVocabulary,
    progress: Progress,
) -> Proof:
    """Compare the two; see the module's docstring.

    Raises:
        VerificationError: they differ.
    """
    proof = Proof()
    compare = _Comparison(ours, theirs, proof)
    with progress.task("compare the tokenizers", unit="texts") as task:
        for text in made_texts(ours, theirs, vocabulary):
            compare(text, "a made-up text")
            task.advance(1)
        for name, texts in _documents(directory, manifest, vocabulary, ours):
            proof.documents += 1
            for text in texts:
                compare(text, f"document {name}")
                task.advance(1)
    return proof


class _Comparison:
    """Compares texts one by one."""

    def __init__(self, ours: TextTokenizer, theirs: Tokenizer, proof: Proof) -> None:
        self._ours, self._theirs, self._proof = ours, theirs, proof
        self._is_tie = tie_test(ours)

    def __call__(self, text: str, where: str) -> None:
        try:
            expected = self._ours.encode(text).tolist()
        except ItemError:  # a text that has no ids; what the other makes of it does not matter
            return
        found = self._theirs.encode(text, add_special_tokens=False).ids
        self._proof.texts += 1
        self._proof.tokens += len(expected)
        if found != expected:
            if not self._is_tie(expected, found):
                raise VerificationError(self._difference(text, expected, found, where))
            self._proof.ties += 1
        if self._ours.lossless and self._theirs.decode(found, skip_special_tokens=False) != text:
            raise VerificationError(f"the exported tokenizer does not give back {where}, in which there is {text[:80]!r}")

    def _difference(self, text: str, expected: list[int], found: list[int], where: str) -> str:
        at = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
        a, b = (repr(self._ours.decode(ids[at : at + 4])) for ids in (expected, found))
        return (
            f"{self._ours.name} cannot be exported: the tokenizers library has other ids than tokkit for {where}, which "
            f"begins {text[:80]!r}: at token {at} {b} (ids {found[at : at + 4]}), not {a} ({expected[at : at + 4]}). "
            f"Nothing is written"
        )


def made_texts(ours: TextTokenizer, theirs: Tokenizer, vocabulary: UnifiedVocabulary) -> Iterator[str]:
    """Texts that are made to find a difference, the same ones each time."""
    yield from map(without_surrogates, PROBES)
    special = [token.content for token in theirs.get_added_tokens_decoder().values() if not token.content.isspace()]
    for name in [special[int(n)] for n in np.unique(np.linspace(0, len(special) - 1, min(SPELLED, len(special))).astype(int))]:
        yield from (name, f"a {name} b", f"a{name}b{name}{name[:-1]}")
    draw = random.Random(0)
    claimed = set(vocabulary.claimed.tolist())
    pieces = [ours.decode([n]) for n in range(ours.vocab_size) if n not in claimed]
    pieces = [piece for piece in pieces if piece and "\ufffd" not in piece]
    few = [piece for piece in pieces if len(piece) < 4] or pieces
    for number in range(DRAWN if pieces else 0):
        of = draw.sample(few, min(2, len(few))) if number % 2 else pieces
        yield "".join(draw.choices(of, k=draw.randrange(1, 30)))
    yield from _runs(pieces)


def _runs(pieces: list[str]) -> Iterator[str]:
    """Runs of what pieces repeat (spaces, dashes, ``haha``), between other characters."""
    words: dict[str, int] = {}
    for piece in pieces:
        at = (piece + piece).find(piece, 1)
        if at < len(piece):
            words[piece[:at]] = max(words.get(piece[:at], 0), len(piece) // at)
    for word, most in sorted(words.items()):
        for times in {*range(1, min(2 * most + 3, 24)), most, most + 1, 2 * most + 1}:
            yield from (word * times, f"a{word * times}b", f"{word * times}\n{word * (times + 1)} x")


def _documents(
    directory: Path, manifest: Manifest, vocabulary: UnifiedVocabulary, ours: TextTokenizer
) -> Iterator[tuple[str, list[str]]]:
    """Documents spread over all splits, with their texts."""
    layout = manifest.layout.layout
    total = sum(split.documents for split in manifest.splits.values())
    for split, entry in manifest.splits.items():
        shards = TokenShards(directory, manifest, split)
        count = min(entry.documents, -(-DOCUMENTS * entry.documents // max(total, 1)))
        for number in np.unique(np.linspace(0, entry.documents - 1, count).astype(np.int64)).tolist() if count else []:
            row = shards.row(number) if layout.image == "bare" else {}
            grids = picture_grids(cast("list[dict[str, Any]]", row.get("spans", [])))
            parts = decode(shards.tokens(number), vocabulary, layout, grids=grids)
            yield (
                f"{split}:{number}",
                [without_surrogates(ours.decode(p.codes[:LONGEST])) for p in parts if isinstance(p, TextCodes)],
            )
