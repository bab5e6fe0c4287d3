"""Flamingo's way: pictures stand beside the text, and gated cross-attention between the blocks lets each text see its picture.

The gates are zero in the beginning, so the model first says what the text-only model says, to the bit; it then learns to look.
To see that it does, the same is trained with the pictures of each document exchanged for other ones.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import small
import torch
from torch import nn
from torch.nn import functional

from tokkit.data.feature_batches import Batch, CrossCollator
from tokkit.data.features import FeatureDataset
from tokkit.data.loader import PackedLoader
from tokkit.pipelines.features import FeaturesConfig, features
from tokkit.pipelines.progress import SilentProgress


class GatedCrossAttention(nn.Module):
    """Text looks at the tokens of its pictures; what it sees goes through ``tanh`` of a gate that begins at zero."""

    def __init__(self, width: int, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm, self.media_norm = heads, nn.LayerNorm(width), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(dim, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor, media: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``media`` [B, K, dim]; ``mask`` [B, T, K], true where text may look."""
        if not media.shape[1]:  # a batch without pictures
            return x
        B, T, width = x.shape
        query = self.query(self.norm(x)).view(B, T, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(self.media_norm(media)).view(B, media.shape[1], 2, self.heads, -1).transpose(1, 3).unbind(2)
        blind = ~mask.any(dim=2, keepdim=True)  # text before any picture: softmax over nothing is undefined
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=(mask | blind)[:, None])
        seen = self.out(seen.transpose(1, 2).reshape(B, T, width)).masked_fill(blind, 0.0)
        x = x + self.gates[0].tanh() * seen
        return x + self.gates[1].tanh() * self.mlp(x).masked_fill(blind, 0.0)


class Flamingo(nn.Module):
    """A language model with a gated cross-attention before each block."""

    def __init__(self, dim: int, vocab_size: int, width: int = 64) -> None:
        super().__init__()
        self.language = small.LanguageModel(vocab_size, width)
        self.cross = nn.ModuleList([GatedCrossAttention(width, dim) for _ in self.language.blocks])

    def hidden(self, batch: Batch, *, text_only: bool = False) -> torch.Tensor:
        ids = batch["input_ids"]
        x, places = self.language.embed(ids), torch.arange(ids.shape[1]).expand_as(ids)
        mask = small.causal(batch["attention_mask"])
        if text_only:
            return self.language(x, mask, places)
        media = batch["media"].float().flatten(1, 2)
        look = (batch["cross_mask"][..., None] & batch["media_mask"][:, None]).flatten(2)
        between = [partial(cross, media=media, mask=look) for cross in self.cross]
        return self.language(x, mask, places, between)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.language.loss(self.hidden(batch), batch["labels"])


def exchanged(batch: Batch, chance: torch.Generator) -> Batch:
    """Each document has its pictures from one of the batch, in another order, whatever its own are."""
    B, M = batch["media"].shape[:2]
    order = torch.randperm(B * M, generator=chance)
    media, there = (batch[name].flatten(0, 1)[order].unflatten(0, (B, M)) for name in ("media", "media_mask"))
    return {**batch, "media": media, "media_mask": there}


def batches(loader: PackedLoader, shuffled: bool) -> Iterator[Batch]:
    chance = torch.Generator().manual_seed(0)
    for batch in loader:
        yield exchanged(batch, chance) if shuffled else batch


def example(arguments: Namespace, folder: Path) -> dict[str, float]:
    config = FeaturesConfig(
        inputs=arguments.inputs or [str(small.write_documents(folder / "documents"))],
        out=folder / "cache",
        encoder=str(arguments.encoder or small.write_encoder(folder / "encoder")),
        text_tokenizer=arguments.text_tokenizer or small.write_text_tokenizer(folder / "text.model"),
        workers=0,
    )
    made = features(config, SilentProgress()).manifest
    dataset = FeatureDataset(config.out, seed=0, min_items=1)
    figures = {"documents": float(len(dataset)), "pictures": float(made.features["train"].items)}
    for name, shuffled in (("loss", False), ("loss_shuffled", True)):
        torch.manual_seed(0)
        model = Flamingo(made.dim, made.text_vocab_size)
        loader = PackedLoader(dataset, batch_size=16, collate_fn=CrossCollator(pad_id=0, attend="latest", max_length=256))
        stream = batches(loader, shuffled)
        first = next(stream)
        seeing, blind = (model.language.head(model.hidden(first, text_only=only)) for only in (False, True))
        if not torch.equal(seeing, blind):
            raise SystemExit("with its gates at zero the model should say what the text-only model says")
        figures[name] = small.train(model, model.loss, stream, arguments.steps)  # type: ignore[arg-type]
    return figures


if __name__ == "__main__":
    small.run(__doc__ or "", example)
