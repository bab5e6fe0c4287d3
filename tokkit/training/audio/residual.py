"""Training encodec's residual quantizer, with what keeps it from learning put right.

In the package the encoder's gradient of the commitment comes from the first book alone (each book's residual carries the
straight-through gradient of the one before, and they cancel), the model's own forward pass goes through integers, processes
keep statistics of their own, and the first batch's k-means takes gigabytes. Here residuals are formed without gradients of what
was chosen, one straight-through stands around all books, statistics are summed over all processes, and books are initialised
from a sample of frames, when the trainer says so: a fresh encoder's output is nearly constant and has little to separate.

The books stay encodec's own modules: what is learnt is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from tokkit.tokenizers.audio.quantizers import Tables

CHUNK = 4096  # rows whose distances to all vectors are in memory at once


@dataclass(frozen=True)
class Quantized:
    """What came out.

    Attributes:
        features: float ``[B, D, t]``; their gradient is passed on to the input as it is.
        codes: int64 ``[B, K, t]`` of the books that were used.
        commitment: scalar: mean over books of the squared distance to what was chosen, with gradients for the input.
    """

    features: Tensor
    codes: Tensor
    commitment: Tensor


class ResidualTrainer:
    """The training side of encodec's ``ResidualVectorQuantizer``.

    Args:
        quantizer: encodec's.
        decay: of the running means that vectors are.
        dead: a vector that is chosen less often than this, in the running mean of a batch, is replaced by a frame of the batch.
    """

    def __init__(self, quantizer: Any, decay: float = 0.99, dead: float = 2.0) -> None:
        self._tables = Tables(quantizer)
        self.books = self._tables.books
        self.decay = decay
        self.dead = dead

    @property
    def initialised(self) -> bool:
        """Whether :meth:`initialise` was called, or trained books were loaded."""
        return all(bool(book.inited) for book in self.books)

    @torch.no_grad()
    def initialise(self, features: Tensor, frames: int = 16384, iterations: int = 20) -> None:
        """k-means, book by book, on at most ``frames`` of the frames of ``[B, D, t]``; every process ends with the first's."""
        rest = _rows(features).float()
        rest = rest[torch.randperm(len(rest), device=rest.device)[:frames]]
        for book in self.books:
            centres, counts = kmeans(rest, len(book.embed), iterations)
            _broadcast(centres, counts)
            self._put(book, torch.arange(len(centres), device=centres.device), centres, counts.clamp_min(self.dead))
            book.inited.fill_(1)
            rest = rest - book.embed[nearest(rest, book.embed)]

    @torch.no_grad()
    def adopt(self, use: float) -> None:
        """Go on from books that were trained elsewhere, each vector as if it had been chosen ``use`` times a batch."""
        for book in self.books:
            counts = torch.full((len(book.embed),), max(use, self.dead), device=book.embed.device)
            self._put(book, torch.arange(len(counts), device=counts.device), book.embed.clone(), counts)

    def all_codes(self, features: Tensor) -> Tensor:
        """int64 ``[B, K, t]`` of all codebooks, also of those that a batch does not train."""
        return self._tables.codes(features.detach())

    def __call__(self, features: Tensor, books: int | None = None, update: bool = True) -> Quantized:
        """Quantize ``[B, D, t]`` with the first ``books``, and let them learn from it.

        Raises:
            RuntimeError: the books were never initialised.
        """
        if not self.initialised:
            raise RuntimeError("the codebooks were not initialised: call initialise() with features of the encoder")
        used = self.books[:books]
        rest = features.float()
        total = torch.zeros_like(rest)
        codes, losses = [], []
        for book in used:
            rows = _rows(rest.detach())
            chosen = nearest(rows, book.embed)
            vectors = book.embed[chosen].detach().clone()
            if update:
                self._learn(book, rows, chosen)
            step = vectors.reshape(rest.shape[0], rest.shape[2], rest.shape[1]).permute(0, 2, 1)
            losses.append(functional.mse_loss(rest, step))
            rest = rest - step
            total = total + step
            codes.append(chosen.reshape(rest.shape[0], rest.shape[2]))
        through = features + (total - features).detach()
        return Quantized(through, torch.stack(codes, dim=1), torch.stack(losses).mean())

    @torch.no_grad()
    def _learn(self, book: Any, rows: Tensor, chosen: Tensor) -> None:
        """Move the running means by what all processes saw, then replace the vectors that nobody chooses."""
        size = len(book.embed)
        counts = torch.bincount(chosen, minlength=size).to(rows.dtype)
        sums = torch.zeros_like(book.embed).index_add_(0, chosen, rows.to(book.embed.dtype))
        sum_over_processes(counts, sums)
        book.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        book.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-5)[:, None])
        gone = torch.nonzero(book.cluster_size < self.dead).squeeze(1)
        if len(gone):  # the same in every process: so are the statistics
            drawn = rows[torch.randint(0, len(rows), (len(gone),), device=rows.device)].to(book.embed.dtype)
            _broadcast(drawn)
            usual = max(float(book.cluster_size.mean()), self.dead)  # with less it would be gone again at once
            self._put(book, gone, drawn, torch.full((len(gone),), usual, device=rows.device))

    def _put(self, book: Any, which: Tensor, vectors: Tensor, counts: Tensor) -> None:
        book.embed[which] = vectors
        book.cluster_size[which] = counts.to(book.cluster_size.dtype)
        book.embed_avg[which] = vectors * counts[:, None]


def kmeans(rows: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """(Centres ``[clusters, D]``, rows in each), from centres drawn among the rows; an empty one stays where it was."""
    count = len(rows)
    drawn = torch.randperm(count, device=rows.device)[:clusters]
    if count < clusters:
        drawn = torch.cat([drawn, torch.randint(0, count, (clusters - count,), device=rows.device)])
    centres = rows[drawn].clone()
    counts = torch.zeros(clusters, device=rows.device, dtype=rows.dtype)
    for _ in range(iterations):
        chosen = nearest(rows, centres)
        counts = torch.bincount(chosen, minlength=clusters).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, chosen, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres, counts


def nearest(rows: Tensor, vectors: Tensor) -> Tensor:
    """Index of the nearest vector for each row, a chunk of rows at a time."""
    found = [torch.cdist(chunk.float(), vectors.float()).argmin(dim=1) for chunk in rows.split(CHUNK)]
    return torch.cat(found)


def draw_books(bandwidths: Sequence[int], generator: torch.Generator | None = None) -> int:
    """Books for one batch, drawn from those of the bandwidths: so that each is a codec by itself."""
    return int(bandwidths[int(torch.randint(0, len(bandwidths), (1,), generator=generator))])


def _rows(features: Tensor) -> Tensor:
    """``[B, D, t]`` as ``[B t, D]``."""
    return features.permute(0, 2, 1).reshape(-1, features.shape[1])


def _shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(*tensors: Tensor) -> None:
    """In place; each process then has the same."""
    if _shared():
        for tensor in tensors:
            dist.all_reduce(tensor)


def _broadcast(*tensors: Tensor) -> None:
    if _shared():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
