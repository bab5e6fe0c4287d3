"""Vocabularies of released models, read from their own tokenizer files, so that shards continue their training.

Early-fusion models keep image codes and markers as tokens with telling names among the text tokenizer's own. The scheme is
recognised from the names, and every id is whatever the file says: nothing is computed from a size or an order.

=========  =======================================================  =========================================================
scheme     image codes, and in all (released file)                  a picture
=========  =======================================================  =========================================================
chameleon  ``IMGIMG<letters>Z``, the letters A to J standing for    ``<racm3:break>``, the codes row by row, ``<eoss>``
           the digits 0 to 9; 8,192 of 65,536                       (layout ``plain``: 1,024 codes, 1,026 tokens)
emu3       ``<|visual token 000000|>`` and on; 32,768 of 184,622    ``<|image start|>``, height ``*`` width as text,
                                                                    ``<|image token|>``, rows each with ``<|extra_200|>``,
                                                                    ``<|extra_201|>``, ``<|image end|>`` (layout ``emu3``)
=========  =======================================================  =========================================================

Sources: facebookresearch/chameleon ``chameleon/inference/vocab.py``; baaivision/Emu3 ``emu3/mllm/tokenization_emu3.py`` and
``processing_emu3.py``, ``emu3/train/datasets.py``. Emu3 was released with a tiktoken file; its ``tokenizer.json`` is the one of
its transformers version (``convert_emu3_weights_to_hf.py``). Emu3.5 names its codes alike but ends rows and pictures otherwise.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokkit.errors import DataError
from tokkit.interleave import ImageLayout
from tokkit.tokenizers.text.base import check_highest
from tokkit.vocabulary import Block, UnifiedVocabulary

LISTED = 8  # of the gaps or names that a message lists


@dataclass(frozen=True)
class Scheme:
    """How a released model names what is not text.

    Attributes:
        name: the vocabulary's ``origin``.
        model: its name, for people.
        example: a code's name, for people.
        code: matches a code's whole name; group 1 is its number.
        digits: what the characters of that number stand for; empty where they are digits.
        markers: token names by marker.
        layout: how the model was trained to see pictures.
        spelled: characters that this layout writes as text; each is a token of its own.
    """

    name: str
    model: str
    example: str
    code: re.Pattern[str]
    digits: str
    markers: Mapping[str, str]
    layout: ImageLayout
    spelled: str = ""

    def number(self, name: str) -> int | None:
        """The code that a token's name stands for, or None."""
        found = self.code.fullmatch(name)
        if found is None:
            return None
        return int(found[1].translate({ord(letter): str(n) for n, letter in enumerate(self.digits)}))


SCHEMES = (
    Scheme(
        name="chameleon",
        model="Chameleon",
        example="IMGIMG<letters A-J>Z",
        code=re.compile(r"IMGIMG([A-J]{1,9})Z"),
        digits="ABCDEFGHIJ",
        markers={
            "begin_document": "<s>",
            "end_document": "</s>",
            "begin_image": "<racm3:break>",
            "end_image": "<eoss>",
            "padding": "<pad>",
        },
        layout="plain",
    ),
    Scheme(
        name="emu3",
        model="Emu3",
        example="<|visual token 000000|>",
        code=re.compile(r"<\|visual token ([0-9]{1,9})\|>"),
        digits="",
        markers={
            "begin_document": "<|extra_203|>",
            "end_document": "<|extra_204|>",
            "begin_image": "<|image start|>",
            "begin_codes": "<|image token|>",
            "row_end": "<|extra_200|>",
            "frame_end": "<|extra_201|>",
            "end_image": "<|image end|>",
            "padding": "<|endoftext|>",
        },
        layout="emu3",
        spelled="0123456789*",
    ),
)


@dataclass(frozen=True, eq=False)
class ReleasedVocabulary:
    """A released model's vocabulary and the scheme it was recognised by."""

    scheme: Scheme
    vocabulary: UnifiedVocabulary


def released_vocabulary(path: Path) -> ReleasedVocabulary:
    """Read a released model's vocabulary from its Hugging Face ``tokenizer.json``.

    Raises:
        DataError: the file cannot be read or follows no scheme known here, or with all of its problems: names that are
            missing, codes without a name, two names for a code, an id with two names, a name with two ids.
    """
    config = _read(path)
    names, twice = _token_names(config, path)
    scheme = _recognise(names, path)
    problems = [f"{name} has two ids, {ids[0]} and {ids[1]}" for name, ids in twice.items() if _is_used(scheme, name)]
    codes = _codes(scheme, names, problems)
    problems += [f"{what}: no token {name}" for what, name in scheme.markers.items() if name not in names]
    problems += [
        f"no token {character!r}, which sizes are written with" for character in scheme.spelled if character not in names
    ]
    problems += _shared_ids(scheme, names)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{path}: {count} in what should be the vocabulary of {scheme.model}\n{lines}")
    size = max(names.values()) + 1
    table = np.array([names[codes[number]] for number in range(len(codes))], dtype=np.int32)
    vocabulary = UnifiedVocabulary(
        size,
        [Block("text", 0, size, start=0), Block("image", 0, len(table), table=table)],
        {marker: names[name] for marker, name in scheme.markers.items()},
        origin=scheme.name,
        embedded=True,
        spelled={character: names[character] for character in scheme.spelled},
    )
    return ReleasedVocabulary(scheme, vocabulary)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON, and so no Hugging Face tokenizer.json: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: it has no 'model'")
    return config


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON in which no key comes twice: which of the two was meant could not be known."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key, count in keys.items() if count > 1)!r} comes twice")
    return found


def _token_names(config: Mapping[str, Any], path: Path) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Every token name with its id, added tokens included, and the names that the two parts give different ids."""
    try:
        vocab = config["model"]["vocab"]
        names = dict(vocab) if isinstance(vocab, dict) else {str(piece[0]): n for n, piece in enumerate(vocab)}
        added = [(str(token["content"]), token["id"]) for token in config.get("added_tokens") or []]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: {error!r}") from None
    twice = {name: (names[name], token) for name, token in added if names.get(name, token) != token}
    names |= dict(added)
    wrong = [name for name, token in names.items() if type(token) is not int or not 0 <= token < 1 << 31]
    if wrong or not names:
        raise DataError(
            f"{path} is damaged: " + (f"the id of {wrong[0]!r} is {names[wrong[0]]!r}" if wrong else "it has no tokens")
        )
    check_highest(names, path)
    return names, twice


def _recognise(names: Mapping[str, int], path: Path) -> Scheme:
    found = [scheme for scheme in SCHEMES if any(scheme.code.fullmatch(name) for name in names)]
    if len(found) == 1:
        return found[0]
    known = " and ".join(f"{scheme.model}'s {scheme.example}" for scheme in SCHEMES)
    if found:
        raise DataError(f"{path} names image codes in the ways of several models ({known})")
    raise DataError(
        f"{path} has no tokens named as image codes; known are {known}. For a text tokenizer without any, "
        f"give it as --text-tokenizer: a vocabulary is then built around it"
    )


def _is_used(scheme: Scheme, name: str) -> bool:
    return name in scheme.markers.values() or name in scheme.spelled or scheme.code.fullmatch(name) is not None


def _codes(scheme: Scheme, names: Mapping[str, int], problems: list[str]) -> dict[int, str]:
    """Token names by code; adds what is wrong with them to ``problems``."""
    codes: dict[int, str] = {}
    twice: list[str] = []
    for name in names:
        number = scheme.number(name)
        if number is None:
            continue
        if number in codes:
            twice.append(f"{codes[number]} and {name} both name code {number}")
        codes.setdefault(number, name)
    problems += _listed(twice)
    present = np.array(sorted(codes), dtype=np.int64)
    before = np.concatenate([[-1], present[:-1]])
    gaps = [
        f"code {first}" if first == last else f"codes {first} to {last}"
        for first, last in zip((before + 1).tolist(), (present - 1).tolist(), strict=True)
        if first <= last
    ]
    if gaps:
        problems.append(f"no names for {', '.join(_listed(gaps))}")
    return codes


def _shared_ids(scheme: Scheme, names: Mapping[str, int]) -> list[str]:
    """Ids of a marker or code that have another name besides."""
    by_id: dict[int, str] = {}
    shared = []
    for name, token in names.items():
        other = by_id.setdefault(token, name)
        if other != name and (_is_used(scheme, name) or _is_used(scheme, other)):
            shared.append(f"{other} and {name} both have id {token}")
    return _listed(shared)


def _listed(entries: Sequence[str]) -> list[str]:
    return (
        list(entries) if len(entries) <= LISTED else [*entries[: LISTED - 1], f"{len(entries) - LISTED + 1:,} more like these"]
    )
