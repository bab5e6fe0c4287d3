"""The parts that an audio codec is trained with: losses, their balance, the discriminator, the quantizer that learns."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokkit.tokenizers.audio.encodec_package import import_encodec
from tokkit.training.audio.balancer import LossBalancer
from tokkit.training.audio.discriminator import build_discriminator
from tokkit.training.audio.losses import (
    MultiScaleMelLoss,
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    time_loss,
)
from tokkit.training.audio.residual import ResidualTrainer, draw_books, kmeans, nearest
from tokkit.training.audio.spectrograms import MelSpectrogram, mel_bands


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _quantizer(books: int = 4, bins: int = 16, dim: int = 8) -> Any:
    return import_encodec().quantization.vq.ResidualVectorQuantizer(dimension=dim, n_q=books, bins=bins)


# ---- spectrograms and losses


def test_a_tone_is_where_it_should_be() -> None:
    rate = 16000
    centres = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 66)[1:-1]
    for hertz in (300.0, 1000.0, 5000.0):
        tone = torch.sin(2 * torch.pi * hertz * torch.arange(rate) / rate)
        mel = MelSpectrogram(rate, 1024)(tone[None, None])
        assert mel.shape == (1, 1, 64, (rate - 1024) // 256 + 1)
        expected = int((centres - 2595 * math.log10(1 + hertz / 700)).abs().argmin())
        assert abs(int(mel.mean(dim=-1).argmax()) - expected) <= 1


def test_mel_bands_are_triangles_of_height_one() -> None:
    bands = mel_bands(16000, 2048, 40)
    assert bands.shape == (40, 1025)
    assert float(bands.min()) == 0
    assert 0.8 < float(bands.max()) <= 1
    for band in bands:
        (where,) = torch.nonzero(band, as_tuple=True)
        assert len(where) == int(where[-1] - where[0]) + 1  # in one piece
        peak = int(band.argmax())
        assert bool((band[1 : peak + 1] >= band[:peak]).all())
        assert bool((band[peak + 1 :] <= band[peak:-1]).all())
    inner = bands.sum(dim=0)[int(torch.nonzero(bands[1])[0]) : int(bands[-1].argmax())]
    assert torch.allclose(inner, torch.ones_like(inner), atol=1e-5)  # neighbours overlap to one


def test_reconstruction_losses_measure_differences() -> None:
    real, mel = _draw(2, 1, 8000), MultiScaleMelLoss(24000)
    assert float(time_loss(real, real)) == float(mel(real, real)) == 0
    near, far = real + 0.01 * _draw(2, 1, 8000, seed=1), real + 0.1 * _draw(2, 1, 8000, seed=1)
    assert 0 < float(time_loss(real, near)) < float(time_loss(real, far))
    assert 0 < float(mel(real, near)) < float(mel(real, far))
    assert float(time_loss(real, real + 0.5)) == pytest.approx(0.5, rel=1e-5)
    assert len(mel.spectrograms) == 7
    assert float(mel(real[..., :100], far[..., :100])) > 0  # the longer windows are left out
    with pytest.raises(ValueError, match="shorter than every window"):
        mel(real[..., :10], far[..., :10])


def test_adversarial_losses() -> None:
    sure = [torch.full((2, 1, 5), 2.0), torch.full((2, 1, 3), 1.5)]
    unsure = [torch.zeros(2, 1, 5), torch.zeros(2, 1, 3)]
    assert float(hinge_discriminator(sure, [-logits for logits in sure])) == 0
    assert float(hinge_discriminator(unsure, unsure)) == 2
    assert float(hinge_generator(sure)) == 0
    assert float(hinge_generator([-logits for logits in sure])) == pytest.approx((3 + 2.5) / 2)
    real = [[_draw(2, 4, 6), 100 * _draw(2, 4, 6, seed=1)]]
    fake = [[1.5 * layer for layer in scale] for scale in real]
    assert float(feature_matching(real, real)) == 0
    assert float(feature_matching(real, fake)) == pytest.approx(0.5, rel=1e-5)  # whatever the layers' own sizes


def test_the_discriminator_has_a_say_at_each_window() -> None:
    for channels in (1, 2):
        discriminator = build_discriminator(channels, filters=4, windows=(256, 128))
        logits, features = discriminator(_draw(2, channels, 3000))
        assert len(logits) == len(features) == 2
        assert all(bool(scale.isfinite().all()) and scale.requires_grad for scale in logits)


# ---- balance


def _pulls(balancer: LossBalancer, scales: dict[str, float], steps: int = 50) -> dict[str, float]:
    """Norms of each loss's part in the mixed gradient; the losses look at different samples of the output."""
    for _ in range(steps):
        output = torch.ones(2, 1, 30, requires_grad=True)
        losses = {name: scale * output[..., 10 * i : 10 * i + 10].sum() for i, (name, scale) in enumerate(scales.items())}
        loss, _ = balancer.mix(losses, output)
        (gradient,) = torch.autograd.grad(loss, [output])
    return {name: float(gradient[0, :, 10 * i : 10 * i + 10].norm()) for i, name in enumerate(scales)}


def test_a_losss_share_does_not_depend_on_its_scale() -> None:
    weights = {"time": 0.1, "mel": 1.0, "adversarial": 3.0}
    for scales in ({"time": 1.0, "mel": 1.0, "adversarial": 1.0}, {"time": 1e4, "mel": 1e-3, "adversarial": 7.0}):
        pulls = _pulls(LossBalancer(weights), scales)
        for name, weight in weights.items():
            assert pulls[name] == pytest.approx(weight / 4.1, rel=1e-4)
    assert _pulls(LossBalancer(weights), {"time": 5.0, "mel": 2.0})["mel"] == pytest.approx(1 / 1.1, rel=1e-4)


def test_a_balancer_follows_slowly_and_goes_on_where_it_was() -> None:
    one, two = LossBalancer({"a": 1.0}, decay=0.9), LossBalancer({"a": 1.0}, decay=0.9)
    assert _pulls(one, {"a": 1.0}, 5)["a"] == pytest.approx(1)
    assert _pulls(one, {"a": 2.0}, 1)["a"] > 1.5  # a sudden change is felt ...
    two.restore(one.state())
    assert _pulls(one, {"a": 2.0}, 60)["a"] == pytest.approx(1, rel=0.01)  # ... until it is usual
    assert _pulls(two, {"a": 2.0}, 60) == {"a": pytest.approx(_pulls(one, {"a": 2.0}, 1)["a"], rel=0.01)}


def test_what_a_balancer_refuses() -> None:
    for weights in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}):
        with pytest.raises(ValueError, match="weights of losses"):
            LossBalancer(weights)
    output = torch.ones(1, 1, 3, requires_grad=True)
    with pytest.raises(ValueError, match="without a weight: b"):
        LossBalancer({"a": 1.0}).mix({"b": output.sum()}, output)
    silent, _ = LossBalancer({"a": 1.0}).mix({"a": (output * 0).sum()}, output)
    assert float(torch.autograd.grad(silent, [output])[0].abs().max()) == 0  # and not NaN


# ---- the quantizer


def test_every_book_passes_its_commitment_on() -> None:
    """The package's own passes on the first book's alone."""
    features = _draw(2, 8, 50)

    def pulls(books: int) -> Tensor:
        trainer = ResidualTrainer(_quantizer())
        torch.manual_seed(0)
        trainer.initialise(features)
        z = features.clone().requires_grad_(True)
        found = trainer(z, books, update=False)
        (gradient,) = torch.autograd.grad(found.commitment * books, [z])
        return gradient

    gradients = [pulls(books) for books in (1, 2, 3, 4)]
    for fewer, more in pairwise(gradients):
        assert float((more - fewer).norm()) > 0.01 * float(fewer.norm())
    # by hand: each residual's distance to its vector, all with respect to the input
    trainer = ResidualTrainer(_quantizer())
    torch.manual_seed(0)
    trainer.initialise(features)
    rest, expected = features, torch.zeros_like(features)
    for book in trainer.books:
        chosen = nearest(rest.permute(0, 2, 1).reshape(-1, 8), book.embed)
        rest = rest - book.embed[chosen].reshape(2, 50, 8).permute(0, 2, 1)
        expected += 2 * rest / rest.numel()
    assert torch.allclose(gradients[-1], expected, atol=1e-7)


def test_the_decoders_gradient_reaches_the_encoder_as_it_is() -> None:
    trainer = ResidualTrainer(_quantizer())
    z = _draw(2, 8, 50).requires_grad_(True)
    trainer.initialise(z)
    found = trainer(z)
    weights = _draw(2, 8, 50, seed=3)
    (gradient,) = torch.autograd.grad((found.features * weights).sum(), [z])
    assert torch.equal(gradient, weights)


def test_codes_and_features_are_the_packages() -> None:
    quantizer = _quantizer()
    trainer, z = ResidualTrainer(quantizer), _draw(3, 8, 40)
    with pytest.raises(RuntimeError, match="initialise"):
        trainer(z)
    trainer.initialise(z)
    assert trainer.initialised
    for books in (1, 3, 4):
        found = trainer(z, books, update=False)
        expected = quantizer.vq.encode(z, n_q=books)
        assert torch.equal(found.codes, expected.transpose(0, 1))
        assert torch.allclose(found.features, quantizer.vq.decode(expected), atol=1e-6)
    assert {int(draw_books([2, 4, 8])) for _ in range(100)} == {2, 4, 8}


def test_books_learn_and_are_used() -> None:
    """Features that wander away are followed, no vector stays unused, and the error falls with every book."""
    torch.manual_seed(0)
    trainer = ResidualTrainer(_quantizer(books=3, bins=32), decay=0.8, dead=0.5)
    trainer.initialise(_draw(4, 8, 100))
    for step in range(60):
        found = trainer(3 + 2 * _draw(4, 8, 100, seed=step))
    z = 3 + 2 * _draw(4, 8, 100, seed=999)
    errors = [float((trainer(z, books, update=False).features - z).pow(2).mean()) for books in (1, 2, 3)]
    assert errors[0] < 0.8 * 4
    assert errors == sorted(errors, reverse=True)
    for book in range(3):
        share = np.bincount(found.codes[:, book].flatten().numpy(), minlength=32) / found.codes[:, book].numel()
        perplexity = math.exp(-sum(p * math.log(p) for p in share if p))
        assert perplexity >= 16


def test_a_dead_vector_is_replaced_and_lives() -> None:
    torch.manual_seed(0)
    trainer = ResidualTrainer(_quantizer(books=1), decay=0.5, dead=1.0)
    z = _draw(2, 8, 100)
    trainer.initialise(z)
    book = trainer.books[0]
    book.embed[3] = 1e3
    book.embed_avg[3], book.cluster_size[3] = 1e3, 0.0
    trainer(z)
    assert float(book.embed[3].abs().max()) < 10
    before = book.embed[3].clone()
    assert float(book.cluster_size[3]) >= 1
    trainer(z)
    assert float((book.embed[3] - before).abs().max()) < 5  # moved by what it was chosen for, not thrown away again


def test_kmeans_finds_what_lies_apart_with_few_rows_and_many() -> None:
    torch.manual_seed(0)
    centres = 10 * _draw(5, 4)
    rows = (centres[:, None] + 0.1 * _draw(5, 200, 4, seed=1)).reshape(-1, 4)
    found, counts = kmeans(rows, 16, 20)
    assert int(counts.sum()) == len(rows)
    assert float(torch.cdist(centres, found).min(dim=1).values.max()) < 0.5
    few, counts = kmeans(rows[:3], 16, 5)
    assert few.shape == (16, 4)
    assert int(counts.sum()) == 3


def _learnt(trainer: ResidualTrainer) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in book.named_buffers()} for book in trainer.books]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(100 + rank)
    trainer = ResidualTrainer(_quantizer(books=2), decay=0.9, dead=0.0)
    trainer.initialise(_draw(2, 8, 60, seed=rank))
    states = [_learnt(trainer)]
    for step in range(2):
        trainer(_draw(2, 8, 60, seed=10 * step + rank))
        states.append(_learnt(trainer))
    trainer.dead = 5.0  # now some are replaced, by frames that the processes draw apart
    trainer(_draw(2, 8, 60, seed=50 + rank))
    states.append(_learnt(trainer))
    torch.save(states, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_the_same_books_and_learn_from_both_halves(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for when, (first, second) in enumerate(zip(one, two, strict=True)):
        for a, b in zip(first, second, strict=True):
            for name in a:
                assert torch.equal(a[name], b[name]), (when, name)
    assert not torch.equal(one[2][0]["embed"], one[3][0]["embed"])
    alone = ResidualTrainer(_quantizer(books=2), decay=0.9, dead=0.0)
    for book, state in zip(alone.books, one[0], strict=True):
        book.load_state_dict(state)
    for step in range(2):  # one process that sees the whole batch learns the same
        alone(torch.cat([_draw(2, 8, 60, seed=10 * step + rank) for rank in (0, 1)]))
        for mine, theirs in zip(_learnt(alone), one[step + 1], strict=True):
            for name in mine:
                assert torch.allclose(mine[name], theirs[name], atol=1e-5), (step, name)
