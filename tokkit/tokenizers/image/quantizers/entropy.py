"""Entropies of soft assignments, for the loss that keeps codes in use: a vector should stand for one code, all for many.

A vector z stands for entry e of a table with p(e | z) = softmax(-|z - e|^2 / temperature), as in MaskGIT (arXiv:2202.04200) and
VQGAN+ (arXiv:2409.16211). The matrix of vectors and codes would fill a GPU (32,768 vectors, 16,384 codes: 2 GB, several times
over), so it is gone through in chunks that are computed again in the backward pass.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Vectors times codes that are held at once: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


def table_entropies(rows: Tensor, table: Tensor, temperature: float, *, sync: bool = False) -> tuple[Tensor, Tensor]:
    """Mean entropy of single vectors ``[N, D]``, and entropy of all together, over a table ``[K, D]``; in nats.

    Args:
        sync: all together are those of all processes.
    """
    single, mass = rows.new_zeros(()), rows.new_zeros(len(table))
    for part in rows.split(max(1, CHUNK_ELEMENTS // len(table))):
        entropies, assigned = checkpoint(_assigned, part, table, temperature, use_reentrant=False, preserve_rng_state=False)
        single, mass = single + entropies, mass + assigned
    return single / len(rows), entropy(over_processes(mass / len(rows), sync))


def _assigned(rows: Tensor, table: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over the vectors: of their entropies, and of their distributions ``[K]``."""
    # |z|^2 is the same for all entries of a vector and drops out of the softmax.
    logs = ((2 * rows @ table.T - table.square().sum(1)) / temperature).log_softmax(1)
    probabilities = logs.exp()
    return -(probabilities * logs).sum(), probabilities.sum(0)


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, of a distribution ``[K]``; no gradient but zero where a probability vanishes."""
    return -(probabilities * probabilities.clamp(min=1e-30).log()).sum()


def over_processes(mean: Tensor, sync: bool) -> Tensor:
    """The mean of all processes' means, with gradients; itself where they are not synchronised."""
    if not sync:
        return mean
    from torch.distributed import get_world_size
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(mean)
    return total / get_world_size()
