"""LLaVA's way: a projector brings cached features into the language model's sequence, at the places of the pictures.

The features were computed once (``tokkit features``); each step reads them from the cache. To see that the model looks at them,
the same is trained with every picture's features exchanged for another's.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import small
import torch
from torch import nn

from tokkit.data.feature_batches import Batch, InlineCollator
from tokkit.data.features import FeatureDataset
from tokkit.data.loader import PackedLoader
from tokkit.pipelines.features import FeaturesConfig, features
from tokkit.pipelines.progress import SilentProgress


class Llava(nn.Module):
    """A language model and a projector of two layers."""

    def __init__(self, dim: int, vocab_size: int, width: int = 64) -> None:
        super().__init__()
        self.language = small.LanguageModel(vocab_size, width)
        self.projector = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.newline = nn.Parameter(torch.zeros(width))

    def loss(self, batch: Batch) -> torch.Tensor:
        x = self.language.embed(batch["input_ids"])
        x = torch.where(batch["newline_mask"][..., None], self.newline, x)
        x = x.masked_scatter(batch["feature_mask"][..., None], self.projector(batch["features"].float()))
        hidden = self.language(x, small.causal(batch["attention_mask"]), batch["position_ids"])
        return self.language.loss(hidden, batch["labels"])


def exchanged(batch: Batch, chance: torch.Generator) -> Batch:
    """Each picture has the features of one of the batch, whatever its own are."""
    items = list(batch["features"].split(batch["item_tokens"].tolist()))
    order = torch.randperm(len(items), generator=chance)
    mixed = torch.cat([items[int(n)] for n in order]) if items else batch["features"]
    return {**batch, "features": mixed}


def batches(loader: PackedLoader, shuffled: bool) -> Iterator[Batch]:
    chance = torch.Generator().manual_seed(0)
    for batch in loader:
        yield exchanged(batch, chance) if shuffled else batch


def example(arguments: Namespace, folder: Path) -> dict[str, float]:
    config = FeaturesConfig(
        inputs=arguments.inputs or [str(small.write_pairs(folder / "pairs"))],
        out=folder / "cache",
        encoder=str(arguments.encoder or small.write_encoder(folder / "encoder")),
        text_tokenizer=arguments.text_tokenizer or small.write_text_tokenizer(folder / "text.model"),
        workers=0,
    )
    made = features(config, SilentProgress()).manifest
    dataset = FeatureDataset(config.out, seed=0, min_items=1)
    figures = {"documents": float(len(dataset)), "tokens_of_a_picture": made.features["train"].tokens / len(dataset)}
    for name, shuffled in (("loss", False), ("loss_shuffled", True)):
        torch.manual_seed(0)
        model = Llava(made.dim, made.text_vocab_size)
        loader = PackedLoader(dataset, batch_size=16, collate_fn=InlineCollator(pad_id=0, max_length=512))
        figures[name] = small.train(model, model.loss, batches(loader, shuffled), arguments.steps)  # type: ignore[arg-type]
    return figures


if __name__ == "__main__":
    small.run(__doc__ or "", example)
