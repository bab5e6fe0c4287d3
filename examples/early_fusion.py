"""Chameleon's way: pictures are tokens like text, and one decoder reads packed sequences of both.

``tokkit shard`` encodes and packs; the decoder learns the text behind each picture. To see that it looks at the codes, the same
is trained with every picture's codes exchanged for another's.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import small
import torch
from torch import nn

from tokkit.data.loader import PackedLoader
from tokkit.data.packed import PackedDataset, Row
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.vocabulary import UnifiedVocabulary


class EarlyFusion(nn.Module):
    """One decoder over the unified vocabulary; documents that share a sequence do not see one another."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.language = small.LanguageModel(vocab_size, positions=seq_len)

    def loss(self, batch: Row) -> torch.Tensor:
        segments = batch["segment_ids"]
        mask = (segments[:, :, None] == segments[:, None]) & torch.ones(segments.shape[1], segments.shape[1]).tril().bool()
        hidden = self.language(self.language.embed(batch["input_ids"]), mask, batch["position_ids"])
        return self.language.loss(hidden, batch["labels"])


def exchanged(batch: Row, codes: tuple[int, int], chance: torch.Generator) -> Row:
    """Each picture has the codes of one of the batch; ``codes`` is the range of their ids. All pictures have equally many."""
    ids = batch["input_ids"].clone()
    places = (ids >= codes[0]) & (ids < codes[1])
    begins = places & ~torch.nn.functional.pad(places, (1, 0))[:, :-1]
    pictures = int(begins.sum())
    found = ids[places].view(pictures, -1)
    ids[places] = found[torch.randperm(pictures, generator=chance)].flatten()
    return {**batch, "input_ids": ids}


def batches(loader: PackedLoader, codes: tuple[int, int], shuffled: bool) -> Iterator[Row]:
    chance = torch.Generator().manual_seed(0)
    for batch in loader:
        yield exchanged(batch, codes, chance) if shuffled else batch


def write_image_tokenizer(folder: Path) -> Path:
    """An image tokenizer of the real architecture, small and with random weights."""
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    torch.manual_seed(0)
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(folder)
    return folder


def example(arguments: Namespace, folder: Path) -> dict[str, float]:
    config = ShardConfig(
        inputs=arguments.inputs or [str(small.write_pairs(folder / "pairs"))],
        out=folder / "shards",
        image_tokenizer=arguments.encoder or write_image_tokenizer(folder / "vq"),
        text_tokenizer=arguments.text_tokenizer or small.write_text_tokenizer(folder / "text.model"),
        workers=0,
        pack=128,
        report_documents=0,
    )
    made = shard(config, SilentProgress())
    vocabulary = UnifiedVocabulary.load(config.out / "vocabulary.json")
    block = vocabulary.encode("image", torch.arange(vocabulary.block("image").size).numpy())
    codes = (int(block.min()), int(block.max()) + 1)
    pack = next(iter(made.packs))
    name = next(path.name for path in (config.out / "packs").iterdir())
    dataset = PackedDataset(config.out, name, "train", seed=0, labels="hf", loss_on=["text"])
    figures = {"sequences": float(len(dataset)), "full": made.packs[pack].efficiency}
    for title, shuffled in (("loss", False), ("loss_shuffled", True)):
        torch.manual_seed(0)
        model = EarlyFusion(vocabulary.size, dataset.seq_len)
        loader = PackedLoader(dataset, batch_size=8)
        figures[title] = small.train(model, model.loss, batches(loader, codes, shuffled), arguments.steps)  # type: ignore[arg-type]
    return figures


if __name__ == "__main__":
    small.run(__doc__ or "", example)
