"""Faults of vector-quantize-pytorch that were measured on 1.32, and that ours does not have.

Each test shows the fault first: where a newer release has mended one, its test says so, and the guard can be looked at again.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tokkit.tokenizers.image.quantizer_config import (
    FsqQuantizer,
    ResidualFsqQuantizer,
    ResidualVqQuantizer,
    SimVqQuantizer,
    VqQuantizer,
)
from tokkit.tokenizers.image.quantizers import build_quantizer


class LargestTensor(TorchFunctionMode):
    """Notes the largest tensor that any operation gives, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


# ---- V1: whether processes share a codebook is guessed once, and cached for the life of the process

TWO_PROCESSES = """
    import json, sys, torch, torch.distributed as dist
    from vector_quantize_pytorch import VectorQuantize
    from tokkit.tokenizers.image.quantizer_config import QuantizerConfig
    from tokkit.tokenizers.image.quantizers import build_quantizer
    from pydantic import TypeAdapter

    torch.set_num_threads(1)
    rank, configurations = int(sys.argv[1]), json.loads(sys.argv[2])
    VectorQuantize(dim=4, codebook_size=8)  # built before the processes know of each other: its guess is kept
    dist.init_process_group("gloo", rank=rank, world_size=2)
    theirs = VectorQuantize(dim=4, codebook_size=8)
    if rank == 0:
        print("library shares:", theirs._codebook.use_ddp)
    for options in configurations:
        torch.manual_seed(0)  # the same start in both
        ours = build_quantizer(TypeAdapter(QuantizerConfig).validate_python(options))
        ours.start_training(2 * 2 * 64, sync=True)
        torch.manual_seed(rank)  # other data in each
        for _ in range(20):
            ours(torch.randn(2, 4, 8, 8) + 3 * rank)
        ours.settle()
        gathered = [torch.empty_like(ours.codebook) for _ in range(2)]
        dist.all_gather(gathered, ours.codebook)
        if rank == 0:
            print("ours equal:", torch.equal(*gathered))
    dist.destroy_process_group()
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_v1_processes_share_a_codebook_whenever_it_was_built(tmp_path: Path) -> None:
    configurations = [
        VqQuantizer(codebook_size=16, codebook_dim=4),
        VqQuantizer(codebook_size=16, codebook_dim=4, normalize=False, start="kmeans"),
        ResidualVqQuantizer(codebook_size=16, codebook_dim=4, codebooks=2),
    ]
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    options = json.dumps([config.model_dump() for config in configurations])
    other = subprocess.Popen([*command, "1", options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        first = subprocess.run([*command, "0", options], env=environment, capture_output=True, text=True, timeout=120)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    assert "library shares: False" in first.stdout, first.stderr  # the fault
    assert first.stdout.count("ours equal: True") == len(configurations)


# ---- V2: evaluation builds a one-hot matrix and all distances


@pytest.mark.parametrize("kind", ["vq", "residual-vq", "simvq"])
def test_v2_no_matrix_of_vectors_by_codes(kind: str) -> None:
    from vector_quantize_pytorch import VectorQuantize

    vectors, codes = 4096, 4096
    whole = vectors * codes * 4
    with torch.no_grad(), LargestTensor() as theirs:
        VectorQuantize(dim=8, codebook_size=codes, use_cosine_sim=True).eval()(torch.randn(1, vectors, 8))
    assert theirs.bytes >= 2 * whole  # the fault: one-hot of int64

    sizes = {"codebook_size": codes, "codebook_dim": 8}
    config = {"vq": VqQuantizer, "residual-vq": ResidualVqQuantizer, "simvq": SimVqQuantizer}[kind].model_validate(sizes)
    quantizer = build_quantizer(config)
    with LargestTensor() as ours:
        quantizer.codes_from_features(torch.randn(1, 8, 64, 64))
    assert ours.bytes <= whole / 8


# ---- V3: FSQ's codes_to_indices is wrong for half-precision codes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_v3_codes_of_half_precision_values_are_right(dtype: torch.dtype) -> None:
    from vector_quantize_pytorch import FSQ

    levels = (8, 8, 8, 5, 5, 5)
    features = torch.randn(1, 6, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    peer = FSQ(list(levels)).eval()
    values, right = peer(features)
    wrong = (peer.codes_to_indices(values.permute(0, 2, 3, 1)) != right).float().mean()
    assert wrong > 0.5  # the fault

    quantizer = build_quantizer(FsqQuantizer(levels=levels))
    quantizer.start_training(1024)
    trained = quantizer(features)
    assert trained.features.dtype == dtype
    assert torch.equal(trained.codes, right.long())
    assert torch.equal(quantizer.codes_from_features(features), right.long())


# ---- V4: noise_dropout's noise is as wide for eight levels as for two


def test_v4_noise_dropout_is_not_used() -> None:
    from vector_quantize_pytorch import FSQ

    torch.manual_seed(0)
    peer = FSQ([8, 8, 8], preserve_symmetry=True, noise_dropout=1.0).train()
    z = torch.zeros(1, 4096, 3)
    step = 2 / 7
    noise = peer(z)[0] - peer.eval()(z)[0]
    assert noise.abs().max() > 1.5 * step  # the fault: more than one level away

    for config in (FsqQuantizer(levels=(8, 8, 8)), ResidualFsqQuantizer(levels=(8, 8, 8))):
        quantizer = build_quantizer(config).train()
        quantizer.start_training(64)
        features = torch.randn(1, 3, 16, 16)
        out = quantizer(features)
        assert torch.allclose(out.features, quantizer.features_from_codes(out.codes), atol=1e-5)


# ---- V5: defaults that are not those of image work


def test_v5_defaults_are_those_of_image_work() -> None:
    from vector_quantize_pytorch import VectorQuantize

    theirs = {name: p.default for name, p in inspect.signature(VectorQuantize).parameters.items()}
    assert (theirs["decay"], theirs["threshold_ema_dead_code"], theirs["use_cosine_sim"]) == (0.8, 0, False)  # the fault

    ours = VqQuantizer()
    assert (ours.decay, ours.normalize, ours.codebook_dim) == (0.99, True, 8)
    assert ours.dead_code_share > 0
    quantizer = build_quantizer(ours)
    quantizer.start_training(4096)
    book = quantizer.learner.stages[0].vq._codebook  # type: ignore[union-attr]
    assert book.has_dead_code_replacement
    assert (book.decay, book.use_ddp) == (0.99, False)


# ---- seen while reading 1.32


def test_k_codebooks_pass_the_gradient_once() -> None:
    """In the library each codebook passes it, so that K of them pass K times as much."""
    from vector_quantize_pytorch import ResidualVQ

    def gradient(codebooks: int) -> float:
        torch.manual_seed(0)
        x = torch.randn(1, 64, 4, requires_grad=True)
        peer = ResidualVQ(
            dim=4, codebook_size=16, num_quantizers=codebooks, rotation_trick=False, commitment_weight=0.0, sync_codebook=False
        )
        peer(x)[0].sum().backward()
        assert x.grad is not None
        return float(x.grad.mean())

    assert gradient(4) == pytest.approx(4 * gradient(1))  # the fault

    def ours(codebooks: int) -> float:
        torch.manual_seed(0)
        quantizer = build_quantizer(
            ResidualVqQuantizer(codebook_size=16, codebook_dim=4, codebooks=codebooks, rotation_trick=False)
        )
        quantizer.start_training(64)
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        quantizer(x).features.sum().backward()
        assert x.grad is not None
        return float(x.grad.mean())

    assert ours(4) == pytest.approx(ours(2)) == pytest.approx(1.0)
