"""Text towers: embeddings equal the model's own, whatever the slot, and special names in a text are text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_models import save

from tokkit.errors import DataError, UsageError
from tokkit.features.texts import load_text_encoder

WORDS = ["a", "photo", "of", "cat", "dog", "two", "red", "small", "house", "by", "the", "sea"]
TEXTS = ["a photo of a cat", "two red dog", "house", "a small red house by the sea of the photo of the two cat a dog", ""]


def write_tokenizer(folder: Path, ends: bool) -> None:
    """Words, a beginning and an end (CLIP's way), or an end only (SigLIP's)."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    ids = {"<pad>": 0, "<start>": 1, "<unk>": 2, "<end>": 3} | {word: 4 + number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "<start>", "<end>")])
    tokenizer.pre_tokenizer = Whitespace()
    around = [("<start>", 1), ("<end>", 3)]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>" if ends else "$A <end>", special_tokens=around)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
@torch.no_grad()
def test_embeddings_are_the_models(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Siglip2Tokenizer

    model, _ = save(name, tmp_path)
    if name == "siglip2":  # its class has rules of its own: letters, made small, padded on the left
        names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
        Siglip2Tokenizer({letter: number for number, letter in enumerate(names)}, []).save_pretrained(tmp_path)
    else:
        write_tokenizer(tmp_path, ends=name == "clip")
    ours = load_text_encoder(tmp_path)
    found = ours.encode(TEXTS, 2)
    assert found.shape == (5, ours.dim)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    inputs = {k: v for k, v in inputs.items() if k == "input_ids" or (k == "attention_mask" and name == "clip")}
    theirs = model.get_text_features(**inputs)
    theirs = getattr(theirs, "pooler_output", theirs)
    np.testing.assert_allclose(found, theirs / theirs.norm(dim=-1, keepdim=True), atol=1e-5)
    longer = [len(ids) > 12 for ids in tokenizer(TEXTS)["input_ids"]]
    assert ours.truncated(TEXTS).tolist() == longer
    assert longer[2:] == [False, True, False]
    for order in ([4, 0, 1], [0, 0, 4], [1, 2, 3, 4, 0]):
        assert np.array_equal(ours.encode([TEXTS[i] for i in order], 2), found[order])
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    # Were the name read as the token, CLIP's text would end there.
    marker, word = ours.encode(["cat <end> dog", "cat dog"], 2)
    assert not np.allclose(marker, ours.encode(["cat"], 2)[0], atol=1e-4)
    assert not np.allclose(marker, word, atol=1e-4)


def test_what_has_no_text_tower_or_tokenizer(tmp_path: Path) -> None:
    save("dinov2", tmp_path / "dino")
    with pytest.raises(UsageError, match="no text tower"):
        load_text_encoder(tmp_path / "dino")
    save("clip", tmp_path / "clip")
    with pytest.raises(DataError, match="has no tokenizer"):
        load_text_encoder(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer cannot be read"):
        load_text_encoder(tmp_path / "clip")
    write_tokenizer(tmp_path / "clip", ends=True)
    first = load_text_encoder(tmp_path / "clip")
    write_tokenizer(tmp_path / "clip", ends=False)
    assert load_text_encoder(tmp_path / "clip").fingerprint != first.fingerprint
    assert set(first.describe()) >= {"licence", "family", "weights", "fingerprint", "dim"}
