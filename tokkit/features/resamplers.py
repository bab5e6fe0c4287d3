"""Learned resamplers from released checkpoints: however many tokens a view has, a fixed number of queries comes out.

* BLIP-2's Q-Former (arXiv:2301.12597): 32 query tokens that attend to the vision tower's tokens, from a BLIP-2 folder.
* Flamingo's Perceiver resampler (arXiv:2204.14198), as IDEFICS has it: 64 latents, from an IDEFICS folder.

Both are transformers' own modules with the weights that the folder holds; nothing else of the model is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.errors import DataError, UsageError
from tokkit.features.checkpoints import fill, read_config, tensors_under, weights_digest


@dataclass(frozen=True)
class LearnedResampler:
    """A resampler, ready to use.

    Attributes:
        kind: ``q-former`` or ``perceiver``.
        queries: tokens that come out of each view.
        input_dim, dim: of a token going in and coming out.
        digest: SHA-256 (hex) of its weights.
    """

    kind: str
    queries: int
    input_dim: int
    dim: int
    digest: str
    module: nn.Module

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """float ``[B, T, input_dim]`` to float ``[B, queries, dim]``."""
        return self.module(tokens)

    def describe(self) -> dict[str, Any]:
        """For a manifest."""
        return {"kind": self.kind, "queries": self.queries, "dim": self.dim, "weights": self.digest}


def load_resampler(folder: Path, device: str | torch.device) -> LearnedResampler:
    """Read a resampler. UsageError where the folder's model has none, DataError where its weights are missing or damaged."""
    config = read_config(folder)
    if config.model_type == "blip-2":
        return _q_former(folder, config, device)
    if config.model_type == "idefics":
        return _perceiver(folder, config, device)
    raise UsageError(f"{folder}: a {config.model_type} model has no resampler that is known here (BLIP-2 and IDEFICS have)")


class _QFormer(nn.Module):
    def __init__(self, qformer: nn.Module, queries: int, dim: int) -> None:
        super().__init__()
        self.qformer = qformer
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        attended = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        out = self.qformer(query_embeds=queries, encoder_hidden_states=tokens, encoder_attention_mask=attended)
        return out.last_hidden_state


def _q_former(folder: Path, config: Any, device: str | torch.device) -> LearnedResampler:
    from transformers import Blip2QFormerModel

    inner = config.qformer_config
    with torch.random.fork_rng(devices=[]):
        module = _QFormer(Blip2QFormerModel(inner), config.num_query_tokens, inner.hidden_size)
    found = tensors_under(folder, "qformer.", keep_prefix=True) | tensors_under(folder, "query_tokens", keep_prefix=True)
    fill(module, found, f"{folder} (Q-Former)")
    return _ready("q-former", module, config.num_query_tokens, inner.encoder_hidden_size, inner.hidden_size, device)


def _perceiver(folder: Path, config: Any, device: str | torch.device) -> LearnedResampler:
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    if not config.use_resampler:
        raise UsageError(f"{folder}: this IDEFICS model has no resampler")
    inner, dim = config.perceiver_config, config.vision_config.embed_dim
    shape = (dim, inner.resampler_depth, inner.resampler_n_heads, inner.resampler_head_dim, inner.resampler_n_latents)
    with torch.random.fork_rng(devices=[]):
        module = IdeficsPerceiverResampler(config, *shape)
    found = tensors_under(folder, "model.perceiver_resampler.") or tensors_under(folder, "perceiver_resampler.")
    if not found:
        raise DataError(f"{folder}: its weights hold no perceiver_resampler")
    fill(module, found, f"{folder} (Perceiver resampler)")
    return _ready("perceiver", module, inner.resampler_n_latents, dim, dim, device)


def _ready(
    kind: str, module: nn.Module, queries: int, input_dim: int, dim: int, device: str | torch.device
) -> LearnedResampler:
    digest = weights_digest(module)
    return LearnedResampler(kind, queries, input_dim, dim, digest, module.to(device).eval().requires_grad_(False))
