"""What the examples share: a small corpus to learn something from, a tokenizer and encoders for it, and a small language model.

The pictures are two coloured halves and the texts name the colours, so a model that sees the picture can know the text.
Encoders have random weights: nothing is downloaded. Any corpus, encoder and tokenizer can be named instead (``--inputs``...).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

COLOURS = {"red": 0xE03030, "green": 0x30B040, "blue": 0x3050E0, "yellow": 0xE8D820, "white": 0xF8F8F8, "black": 0x101010}


def picture(left: str, right: str, chance: np.random.Generator) -> bytes:
    """A PNG of two coloured halves with some noise."""
    pixels = np.empty((28, 28, 3))
    for half, name in ((slice(0, 14), left), (slice(14, 28), right)):
        pixels[:, half] = [COLOURS[name] >> 16 & 255, COLOURS[name] >> 8 & 255, COLOURS[name] & 255]
    noisy = np.clip(pixels + chance.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="PNG")
    return buffer.getvalue()


def write_pairs(folder: Path, count: int = 240) -> Path:
    """Pictures with captions, as a WebDataset tar."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, names = np.random.default_rng(0), list(COLOURS)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(count):
            left, right = chance.choice(names, 2)
            texts = {"png": picture(left, right, chance), "txt": f"{left} on the left and {right} on the right".encode()}
            for suffix, data in texts.items():
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder


def write_documents(folder: Path, count: int = 120) -> Path:
    """Interleaved documents, three pictures with a sentence behind each, as OBELICS has them with bytes inline."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, names = np.random.default_rng(1), list(COLOURS)
    images, texts = [], []
    for number in range(count):
        row: list[object] = []
        says: list[str | None] = []
        for place in range(3):
            left, right = chance.choice(names, 2)
            row += [{"bytes": picture(left, right, chance), "path": f"{number}-{place}.png"}, None]
            says += [None, f"here {left} stands beside {right}."]
        images.append(row)
        texts.append(says)
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"images": pa.array(images, kind), "texts": pa.array(texts, pa.list_(pa.string()))})
    nothing = pa.array(["[" + ",".join(["null"] * 6) + "]"] * count)
    table = table.append_column("metadata", nothing).append_column("general_metadata", pa.array(["{}"] * count))
    pq.write_table(table, folder / "documents.parquet")
    return folder


def write_text_tokenizer(path: Path) -> Path:
    """A small SentencePiece model, trained on sentences like the corpus's."""
    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.train_text import TrainTextConfig, train_text

    words = [*COLOURS, *["on", "the", "left", "and", "right", "here", "stands", "beside", "a", "picture", "of"]]
    chance = np.random.default_rng(2)
    lines = "\n".join(" ".join(chance.permutation(words)) + "." for _ in range(200))
    (path.parent / "text").mkdir(parents=True)
    (path.parent / "text" / "a.txt").write_text(lines)
    train_text(TrainTextConfig(inputs=(str(path.parent / "text"),), out=path, vocab_size=340), SilentProgress())
    return path


def write_encoder(folder: Path) -> Path:
    """A CLIP vision tower of the real architecture, small and with random weights: 16 tokens of 32 for a picture."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=28, patch_size=7)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


class Block(nn.Module):
    """A transformer block; ``mask`` is True where a token may look."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        B, T, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, -1).transpose(1, 3).unbind(2)
        seen = functional.scaled_dot_product_attention(*parts, attn_mask=mask[:, None])
        x = x + self.out(seen.transpose(1, 2).reshape(B, T, width))
        return x + self.mlp(self.norms[1](x))


class LanguageModel(nn.Module):
    """A small decoder; ``between[i]`` stands before block i, where it is given."""

    def __init__(self, vocab_size: int, width: int = 64, layers: int = 2, heads: int = 4, positions: int = 1024) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocab_size, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        places: torch.Tensor,
        between: list[Callable[..., torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """The hidden states [B, T, width] of embeddings; ``head`` makes logits of them."""
        x = x + self.place(places)
        for number, block in enumerate(self.blocks):
            x = block(between[number](x) if between else x, mask)
        return self.norm(x)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the next tokens that are to be learnt; ``labels`` stand at their own places."""
        wanted = labels[:, 1:] != -100
        return functional.cross_entropy(self.head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])


def causal(there: torch.Tensor) -> torch.Tensor:
    """bool [B, T, T]: to itself and what stands before it, and to no padding but itself."""
    T = there.shape[1]
    return torch.tril(torch.ones(T, T, dtype=torch.bool)) & there[:, None] | torch.eye(T, dtype=torch.bool)


def train(model: nn.Module, loss_of: Callable[[object], torch.Tensor], batches: Iterator[object], steps: int) -> float:
    """Train; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = loss_of(next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def run(about: str, example: Callable[[argparse.Namespace, Path], dict[str, float]]) -> None:
    """The command line of an example: prints its figures, and leaves with 1 where shuffling made no difference."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--inputs", nargs="+", help="a corpus, as tokkit shard takes it; default a generated one")
    parser.add_argument("--encoder", type=Path, help="folder of the encoder or image tokenizer; default a small random one")
    parser.add_argument("--text-tokenizer", type=Path, help="default a small one that is trained here")
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        figures = example(arguments, Path(folder))
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")
    sys.exit(0 if figures["loss"] < figures["loss_shuffled"] - 0.05 else 1)
