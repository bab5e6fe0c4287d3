"""Tokenizer files of the structure that Chameleon and Emu3 were released with, of any size, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = ["The quick brown fox jumps over the lazy dog, 1234567890 times.\n\tA picture of 32*32 codes. Weiß 日本語"] * 20


def letters(number: int) -> str:
    """A number as Chameleon writes it: A for 0 to J for 9."""
    return "".join("ABCDEFGHIJ"[int(d)] for d in str(number))


def chameleon(codes: int = 64, size: int | None = None, shuffle: bool = False, form: str = "added") -> dict[str, Any]:
    """A file as Chameleon's: special tokens and image codes first, then text; byte-level, split as upstream splits.

    ``form`` is how image names and markers stand in it: ``added`` tokens, only in the model's ``vocab``, as ``merges`` make
    them of letters, or as whole ``words`` that need no merges (``ignore_merges``).
    """
    order = np.arange(codes)
    if shuffle:
        np.random.default_rng(0).shuffle(order)
    names = [f"IMGIMG{letters(n)}Z" for n in order.tolist()]
    special = ["<s>", "<pad>", "</s>", "<unk>", *names, "<eoss>", "<racm3:break>", "<sentinel:0>", "<reserved08706>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("<sentinel:[0-9]+>"), "isolated"),
            pre_tokenizers.Split(Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I|J){1,4})Z"), "isolated"),
            pre_tokenizers.Split(Regex("([\\t\\n]|    |  )"), "isolated"),
            *([] if form in ("merges", "words") else [pre_tokenizers.Digits(True), pre_tokenizers.Punctuation("isolated")]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=form not in ("merges", "words")),
        ]
    )
    config = _trained(tokenizer, special)
    if form == "merges":
        _add_merges(config, [*names, "<eoss>", "<racm3:break>", "<s>", "</s>", "<pad>"])
    if form == "words":
        config["model"]["ignore_merges"] = True
    if form != "added":
        kept = ("<unk>", "<sentinel:0>", "<reserved08706>")
        config["added_tokens"] = [t for t in config["added_tokens"] if t["content"] in kept]
    return _filled(config, size)


def emu3(codes: int = 64, size: int | None = None) -> dict[str, Any]:
    """A file as transformers writes Emu3's: byte-level text first, then special tokens and image codes, all added tokens."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
    names += ["<|image token|>", "<|image start|>", "<|image end|>", *(f"<|visual token {n:06d}|>" for n in range(codes))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = _trained(tokenizer, [])
    config = _filled(config, None if size is None else size - len(names))
    vocab = config["model"]["vocab"]
    for name in names:
        vocab[name] = len(vocab)
        config["added_tokens"].append(_added(name, vocab[name]))
    return config


def write(config: dict[str, Any], path: Path) -> Path:
    """Write a file, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return path


def drop(config: dict[str, Any], name: str) -> None:
    """Take a token out of a file."""
    del config["model"]["vocab"][name]
    config["added_tokens"] = [t for t in config["added_tokens"] if t["content"] != name]


def _trained(tokenizer: Tokenizer, special: Sequence[str]) -> dict[str, Any]:
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace("32", "3 2") for text in CORPUS), trainer)
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    merges = [m.split(" ") if isinstance(m, str) else m for m in config["model"]["merges"]]
    # As in both models, digits have no merges: each is a token of its own.
    config["model"]["merges"] = [m for m in merges if not any(c.isdigit() for c in m[0] + m[1])]
    return config


def _filled(config: dict[str, Any], size: int | None) -> dict[str, Any]:
    vocab = config["model"]["vocab"]
    for number in range(len(vocab), size or 0):
        vocab[f"piece{number}"] = number
    return config


def _add_merges(config: dict[str, Any], names: Sequence[str]) -> None:
    """Merges that make each name of its characters, from the left; ``IMGIMG`` of twice the same."""
    vocab, merges = config["model"]["vocab"], config["model"]["merges"]
    first: dict[tuple[str, str], None] = {}
    for name in names:
        pairs = [(name[:end], name[end]) for end in range(1, len(name))]
        if name.startswith("IMGIMG"):
            pairs[2:5] = [("IMG", "IMG")]
        for left, right in pairs:
            first[left, right] = None
            vocab.setdefault(left + right, len(vocab))
    config["model"]["merges"] = [*(list(pair) for pair in first), *merges]


def _added(name: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags}
