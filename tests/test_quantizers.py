"""Quantizers: codes and features agree, with each other and with the library; training learns what it should."""

from __future__ import annotations

import itertools
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tokkit.errors import UsageError, VocabularyError
from tokkit.tokenizers.image.quantizer_config import (
    FsqQuantizer,
    LfqQuantizer,
    QuantizerConfig,
    ResidualFsqQuantizer,
    ResidualVqQuantizer,
    SimVqQuantizer,
    VqQuantizer,
)
from tokkit.tokenizers.image.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualFiniteScalarQuantizer,
    SimVectorQuantizer,
    VectorQuantizer,
    build_quantizer,
)
from tokkit.tokenizers.image.quantizers.entropy import table_entropies

FAMILY: dict[str, QuantizerConfig] = {
    "fsq": FsqQuantizer(levels=(5, 6, 10)),
    "residual-fsq": ResidualFsqQuantizer(levels=(5, 6, 10), codebooks=3),
    "vq": VqQuantizer(codebook_size=300, codebook_dim=4),
    "vq-plain": VqQuantizer(codebook_size=300, codebook_dim=4, normalize=False, rotation_trick=False),
    "vq-gradient": VqQuantizer(codebook_size=300, codebook_dim=4, update="gradient"),
    "vq-plain-gradient": VqQuantizer(codebook_size=300, codebook_dim=4, normalize=False, update="gradient"),
    "residual-vq": ResidualVqQuantizer(codebook_size=300, codebook_dim=4, codebooks=3),
    "residual-vq-gradient": ResidualVqQuantizer(codebook_size=300, codebook_dim=4, codebooks=2, update="gradient"),
    "simvq": SimVqQuantizer(codebook_size=300, codebook_dim=4),
    "lfq": LfqQuantizer(bits=8),
    "bsq": LfqQuantizer(bits=8, spherical=True),
}
every = pytest.mark.parametrize("name", FAMILY)


def made(name: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = build_quantizer(FAMILY[name])
    if isinstance(quantizer, VectorQuantizer) and not quantizer.normalize:
        quantizer.codebook.mul_(torch.rand(*quantizer.codebook.shape[:-1], 1) + 0.5)
    return quantizer


def random_codes(quantizer: Quantizer, *shape: int) -> Tensor:
    books = () if quantizer.codebooks == 1 else (quantizer.codebooks,)
    return torch.randint(0, quantizer.codebook_size, (shape[0], *books, *shape[1:]))


def features_for(quantizer: Quantizer, batch: int = 2, side: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, quantizer.dim, side, side, generator=torch.Generator().manual_seed(seed))


# ---- what all have in common


@every
def test_shapes_types_and_range(name: str) -> None:
    quantizer = made(name)
    codes = quantizer.codes_from_features(features_for(quantizer))
    assert codes.dtype == torch.int64
    assert codes.shape == random_codes(quantizer, 2, 6, 6).shape
    assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size
    features = quantizer.features_from_codes(codes)
    assert (features.dtype, tuple(features.shape)) == (torch.float32, (2, quantizer.dim, 6, 6))


@every
def test_each_item_has_the_codes_it_has_alone(name: str) -> None:
    quantizer = made(name)
    features = features_for(quantizer, batch=5)
    together = quantizer.codes_from_features(features)
    for slot in range(5):
        assert torch.equal(quantizer.codes_from_features(features[slot : slot + 1])[0], together[slot])


@every
def test_half_precision_features_count_as_the_same_values_in_float32(name: str) -> None:
    quantizer = made(name)
    for dtype in (torch.bfloat16, torch.float16):
        features = features_for(quantizer, side=16).to(dtype)
        assert torch.equal(quantizer.codes_from_features(features), quantizer.codes_from_features(features.float()))


@every
@pytest.mark.parametrize("bad", [-1, 300, 2**31])
def test_codes_out_of_range_are_an_error(name: str, bad: int) -> None:
    quantizer = made(name)
    assert quantizer.codebook_size <= 300
    codes = random_codes(quantizer, 1, 2, 2)
    codes[..., -1, -1] = bad
    with pytest.raises(VocabularyError, match=str(bad)):
        quantizer.features_from_codes(codes)


@every
def test_training_sees_the_codes_and_features_that_inference_has(name: str) -> None:
    quantizer = made(name)
    quantizer.start_training(72, seed_codebook=False)
    features = features_for(quantizer)
    before = quantizer.codes_from_features(features)
    expected = quantizer.features_from_codes(before)
    trained = quantizer(features)
    assert torch.equal(trained.codes, before)
    assert torch.allclose(trained.features, expected, atol=1e-5)


@every
def test_gradients_reach_the_encoder_once(name: str) -> None:
    """Not once a codebook: the step would grow with their number."""
    quantizer = made(name)
    quantizer.start_training(72, seed_codebook=False)
    features = (0.05 * features_for(quantizer)).requires_grad_()
    target = torch.randn_like(features)
    (quantizer(features).features * target).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    if quantizer.codebooks > 1:
        single = FAMILY[name].model_copy(update={"codebooks": 2})
        fewer = build_quantizer(single)
        fewer.start_training(72, seed_codebook=False)
        if isinstance(quantizer, VectorQuantizer):
            return  # other tables, another rotation; the same code passes the gradient of one codebook and of many
        again = features.detach().requires_grad_()
        (fewer(again).features * target).sum().backward()
        assert again.grad is not None
        assert torch.allclose(again.grad, features.grad)


@every
def test_forward_needs_to_be_told_that_training_starts(name: str) -> None:
    if name == "residual-fsq":
        pytest.skip("has nothing to start")
    with pytest.raises(RuntimeError, match="start_training"):
        made(name)(torch.zeros(1, FAMILY[name].dim, 2, 2))


@every
def test_training_lowers_the_error(name: str) -> None:
    """A learned linear layer before the quantizer and the quantizer itself come to fit structured data."""
    torch.manual_seed(0)
    quantizer = made(name)
    project = torch.nn.Conv2d(8, quantizer.dim, 1)
    back = torch.nn.Conv2d(quantizer.dim, 8, 1)
    basis = torch.randn(8, 3)
    quantizer.start_training(4 * 64)
    parameters = [*project.parameters(), *back.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    errors = []
    for step in range(250):
        data = torch.einsum("dk,bkhw->bdhw", basis, torch.randn(4, 3, 8, 8))
        out = quantizer(project(data))
        error = (back(out.features) - data).square().mean()
        (error + torch.stack([torch.zeros(()), *out.losses.values()]).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(error.detach()))
        assert torch.isfinite(torch.tensor(errors[-1])), step
    assert sum(errors[-20:]) / 20 < 0.5 * sum(errors[:5]) / 5
    data = torch.einsum("dk,bkhw->bdhw", basis, torch.randn(4, 3, 8, 8))
    with torch.no_grad():  # what inference reads is what was learned
        codes = quantizer.codes_from_features(project(data))
        used = (back(quantizer.features_from_codes(codes)) - data).square().mean()
    assert float(used) < 2 * sum(errors[-20:]) / 20


# ---- finite scalars


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5), (3, 4, 7, 16, 64), (3,)])
def test_fsq_round_trip_of_all_codes(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(FsqQuantizer(levels=levels))
    codes = torch.arange(quantizer.codebook_size).view(1, -1, 1)
    features = quantizer.features_from_codes(codes)
    assert features.shape == (1, len(levels), codes.shape[1], 1)
    assert features.abs().max() <= 1
    assert torch.equal(quantizer._codes_from_quantized(features), codes)
    assert len(torch.unique(features.flatten(2), dim=2)[0, 0]) == quantizer.codebook_size


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5)])
def test_fsq_agrees_with_the_library(levels: tuple[int, ...]) -> None:
    from vector_quantize_pytorch import FSQ

    peer = FSQ(list(levels)).eval()
    quantizer = FiniteScalarQuantizer(FsqQuantizer(levels=levels))
    quantizer.start_training(64)
    features = torch.randn(3, len(levels), 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    expected_features, expected_codes = peer(features)
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes, expected_codes.long())
    assert torch.equal(quantizer(features).codes, codes)
    assert torch.allclose(quantizer.features_from_codes(codes), expected_features, atol=1e-6)


@pytest.mark.parametrize(("levels", "codebooks"), [((8, 5, 5, 5), 4), ((5, 5, 3), 8), ((4, 4), 2), ((8, 8, 8, 5, 5, 5), 2)])
def test_residual_fsq_agrees_with_the_library(levels: tuple[int, ...], codebooks: int) -> None:
    from vector_quantize_pytorch import ResidualFSQ

    peer = ResidualFSQ(levels=list(levels), num_quantizers=codebooks, is_channel_first=True).eval()
    quantizer = ResidualFiniteScalarQuantizer(ResidualFsqQuantizer(levels=levels, codebooks=codebooks))
    features = torch.randn(3, len(levels), 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    expected_features, expected_codes = peer(features)
    codes = quantizer.codes_from_features(features)
    expected = expected_codes.long()
    # both take what is left over between float32 roundings; a tie may fall either way, and all behind it follows
    same = (codes == expected).all(1)
    assert same.float().mean() > 0.99
    assert torch.allclose(quantizer.features_from_codes(codes), expected_features, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(levels=st.lists(st.integers(3, 12), min_size=1, max_size=4), codebooks=st.integers(2, 5), seed=st.integers(0, 999))
def test_every_residual_fsq_codebook_comes_closer(levels: list[int], codebooks: int, seed: int) -> None:
    quantizer = ResidualFiniteScalarQuantizer(ResidualFsqQuantizer(levels=tuple(levels), codebooks=codebooks))
    features = features_for(quantizer, seed=seed)
    codes = quantizer.codes_from_features(features)
    target = quantizer.squashed(features)
    errors = []
    for count in range(1, codebooks + 1):
        total = torch.zeros_like(target)
        for k in range(count):
            digits = quantizer._split(codes[:, k]).float()
            total += (digits * quantizer._steps - 1) * quantizer._scale(k)
        errors.append(float((target - total).abs().max()))
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] <= 1.01 * float((quantizer._scale(codebooks - 1) / (quantizer._levels - 1)).max()) + 1e-5


# ---- tables


def vq(**options: object) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VqQuantizer.model_validate(options))
    quantizer.codebook.mul_(torch.rand(quantizer.codebook_size, 1) + 0.5)
    return quantizer


@pytest.mark.parametrize("normalize", [True, False])
def test_vq_lookup_is_the_brute_force_one(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # chunks that do not divide the item
    monkeypatch.setattr("tokkit.tokenizers.image.quantizers.base.LOOKUP_ELEMENTS", 7 * 500)
    quantizer = vq(codebook_size=500, codebook_dim=4, normalize=normalize)
    features = torch.randn(3, 4, 5, 7)
    rows, table = features.permute(0, 2, 3, 1).double(), quantizer.codebook.double()
    if normalize:
        rows, table = torch.nn.functional.normalize(rows, dim=-1), torch.nn.functional.normalize(table, dim=-1)
    expected = (rows[..., None, :] - table).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.codes_from_features(features), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_vq_lookup_is_the_librarys(normalize: bool) -> None:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = vq(codebook_size=300, codebook_dim=8, normalize=normalize)
    peer = VectorQuantize(dim=8, codebook_size=300, use_cosine_sim=normalize).eval()
    peer._codebook.embed.copy_(quantizer._tables())
    features = torch.randn(2, 8, 6, 6)
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)
    expected_rows, expected_codes, _ = peer(rows)
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes.flatten(1), expected_codes)
    assert torch.allclose(quantizer.features_from_codes(codes).permute(0, 2, 3, 1).flatten(1, 2), expected_rows, atol=1e-6)


def test_residual_vq_lookup_is_the_librarys() -> None:
    from vector_quantize_pytorch import ResidualVQ

    quantizer = made("residual-vq")
    assert isinstance(quantizer, VectorQuantizer)
    peer = ResidualVQ(dim=4, codebook_size=300, num_quantizers=3).eval()
    for layer, table in zip(peer.layers, quantizer.codebook, strict=True):
        layer._codebook.embed.copy_(table.unsqueeze(0))
    features = features_for(quantizer)
    expected_rows, expected_codes, _ = peer(features.permute(0, 2, 3, 1).flatten(1, 2))
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes.flatten(2), expected_codes.transpose(1, 2))
    found = quantizer.features_from_codes(codes).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.allclose(found, expected_rows, atol=1e-5)


def test_simvq_is_the_librarys() -> None:
    torch.manual_seed(0)
    quantizer = SimVectorQuantizer(SimVqQuantizer(codebook_size=300, codebook_dim=8))
    quantizer.start_training(64)
    assert quantizer.learner is not None
    features = features_for(quantizer)
    with torch.no_grad():
        expected_rows, expected_codes, _ = quantizer.learner.eval()(features.permute(0, 2, 3, 1).flatten(1, 2))
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes.flatten(1), expected_codes)
    assert torch.allclose(quantizer.features_from_codes(codes).permute(0, 2, 3, 1).flatten(1, 2), expected_rows, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        VqQuantizer(codebook_size=70_000, codebook_dim=8),
        VqQuantizer(codebook_size=2**18, codebook_dim=8),
        SimVqQuantizer(codebook_size=70_000, codebook_dim=16),
        LfqQuantizer(bits=18),
        LfqQuantizer(bits=18, spherical=True),
        LfqQuantizer(bits=24),
        FsqQuantizer(levels=(8, 8, 8, 8, 8, 8)),
    ],
    ids=lambda c: f"{c.kind}-{c.codebook_size}",
)
def test_round_trip_of_more_codes_than_16_bits_hold(config: QuantizerConfig) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    last = config.codebook_size - 1
    edges = [0, 1, 32_767, 32_768, 65_535, 65_536, last - 1, last]
    codes = torch.cat([torch.tensor(edges), torch.randint(0, last, (32,))]).view(1, 1, -1)
    features = quantizer.features_from_codes(codes)
    if isinstance(quantizer, FiniteScalarQuantizer):
        assert torch.equal(quantizer._codes_from_quantized(features), codes)
        assert torch.equal(quantizer._codes_from_quantized(features.to(torch.bfloat16)), codes)
    else:
        assert torch.equal(quantizer.codes_from_features(features), codes)


def test_of_equally_near_entries_the_lowest_is_taken() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4)
    quantizer.codebook.copy_(quantizer.codebook[:8].repeat(8, 1))
    assert quantizer.codes_from_features(torch.randn(2, 4, 9, 9)).max() < 8


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_vq_training_starts_from_data_and_revives_dead_codes(update: str) -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4, update=update)
    quantizer.start_training(2 * 64)
    generator = torch.Generator().manual_seed(0)
    # all in one direction: a random codebook would use few codes
    narrow = torch.randn(2, 4, 8, 8, generator=generator) * 0.05 + 1
    first = quantizer(narrow)
    assert len(torch.unique(first.codes)) > 32
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2) if update == "gradient" else None
    for _ in range(600):  # now the features move elsewhere
        moved = torch.randn(2, 4, 8, 8, generator=generator)
        last = quantizer(moved)
        if optimizer is not None:
            sum(last.losses.values(), torch.zeros(())).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(torch.unique(torch.cat([quantizer.codes_from_features(moved), last.codes]))) > 45
    assert set(last.losses) == ({"commitment"} if update == "ema" else {"commitment", "codebook"})


def test_without_revival_codes_stay_dead() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4, dead_code_share=0)
    quantizer.start_training(2 * 64)
    generator = torch.Generator().manual_seed(0)
    quantizer(torch.randn(2, 4, 8, 8, generator=generator) * 0.05 + 1)
    for _ in range(200):
        moved = torch.randn(2, 4, 8, 8, generator=generator)
        quantizer(moved)
    assert len(torch.unique(quantizer.codes_from_features(moved))) < 40


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_entropy_loss_spreads_features_that_fell_onto_one_code(update: str) -> None:
    """An encoder whose features are all alike, and nothing revived: only the entropy loss can bring codes into use."""

    def used(entropy_weight: float) -> int:
        torch.manual_seed(0)
        quantizer = vq(codebook_size=64, codebook_dim=4, update=update, dead_code_share=0, entropy_weight=entropy_weight)
        quantizer.start_training(2 * 64)
        encoder = torch.nn.Conv2d(4, 4, 1)
        torch.nn.init.normal_(encoder.weight, std=0.02)
        torch.nn.init.ones_(encoder.bias)
        optimizer = torch.optim.Adam([*encoder.parameters(), *quantizer.parameters()], lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(80):
            out = quantizer(encoder(torch.randn(2, 4, 8, 8, generator=generator)))
            assert ("entropy" in out.losses) == (entropy_weight > 0)
            optimizer.zero_grad()
            sum(out.losses.values(), torch.zeros(())).backward()
            optimizer.step()
        return len(out.codes.unique())

    assert used(0.0) < 4
    assert used(0.1) > 8


def test_entropies_over_a_table_are_what_they_are_defined_as(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 3, requires_grad=True)
    table = torch.randn(7, 3, requires_grad=True)
    soft = (-(rows.unsqueeze(1) - table).square().sum(2) / 0.5).softmax(1)
    single, together = -(soft * soft.log()).sum(1).mean(), -(soft.mean(0) * soft.mean(0).log()).sum()
    expected = [single, together, *torch.autograd.grad(single - 2 * together, [rows, table])]
    for at_once in (2**24, 7 * 8):  # all, and chunks of eight with a rest
        monkeypatch.setattr("tokkit.tokenizers.image.quantizers.entropy.CHUNK_ELEMENTS", at_once)
        single, together = table_entropies(rows, table, 0.5)
        found = [single, together, *torch.autograd.grad(single - 2 * together, [rows, table])]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_the_entropy_loss_leaves_codes_and_fingerprints_alone() -> None:
    features = torch.randn(2, 4, 8, 8)
    outputs = []
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        quantizer = vq(codebook_size=16, codebook_dim=4, entropy_weight=weight)
        quantizer.start_training(2 * 64)
        outputs.append([quantizer(features) for _ in range(3)][-1])
    assert torch.equal(outputs[0].codes, outputs[1].codes)
    assert torch.equal(outputs[0].features, outputs[1].features)
    assert {"entropy_weight", "diversity", "temperature"} <= VqQuantizer.TRAINING


def test_a_revived_code_is_given_time_to_be_used() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4)
    quantizer.start_training(4)
    generator = torch.Generator().manual_seed(0)
    replaced = 0
    for _ in range(500):  # a step has 4 vectors for 64 codes, so most go unused in it
        quantizer.settle()
        before = quantizer.codebook.clone()
        used = quantizer(torch.randn(1, 4, 2, 2, generator=generator)).codes.unique()
        quantizer.settle()
        moved = (quantizer.codebook - before).norm(dim=1) > 1e-4
        moved[used] = False
        replaced += int(moved.sum())
    assert 0 < replaced < 3 * 64


def test_a_kmeans_start_finds_the_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 4, generator=generator) * 5
    rows = centres.repeat(32, 1) + torch.randn(512, 4, generator=generator) * 0.01
    features = rows.T.reshape(1, 4, 16, 32)

    def error(start: str) -> float:
        torch.manual_seed(3)
        quantizer = VectorQuantizer(VqQuantizer(codebook_size=64, codebook_dim=4, normalize=False, start=start))  # type: ignore[arg-type]
        quantizer.start_training(512)
        out = quantizer(features)
        return float((out.features - features).square().mean())

    assert error("kmeans") < error("features")


def test_a_kmeans_start_needs_as_many_vectors_as_codes() -> None:
    quantizer = VectorQuantizer(VqQuantizer(codebook_size=64, start="kmeans"))
    with pytest.raises(UsageError, match="at least 64 vectors"):
        quantizer.start_training(63)
    quantizer.start_training(63, seed_codebook=False)  # trained before: nothing is started
    quantizer.start_training(64)


@pytest.mark.parametrize("name", ["vq", "vq-plain-gradient", "residual-vq", "simvq"])
def test_going_on_from_trained_weights_changes_no_code(name: str) -> None:
    quantizer = made(name)
    features = features_for(quantizer)
    before = quantizer.codes_from_features(features)
    quantizer.start_training(72, seed_codebook=False)
    assert torch.equal(quantizer.codes_from_features(features), before)


def test_unit_vectors_stay_unit_vectors_under_an_optimiser() -> None:
    quantizer = made("vq-gradient")
    quantizer.start_training(72)
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.5)
    for seed in range(5):
        out = quantizer(features_for(quantizer, seed=seed))
        sum(out.losses.values(), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.allclose(out.features.norm(dim=1), torch.ones(2, 6, 6), atol=1e-4)


# ---- lookup-free


def test_lfq_codes_and_features_are_the_librarys() -> None:
    from vector_quantize_pytorch import LFQ

    for spherical in (False, True):
        peer = LFQ(codebook_size=2**10, dim=10, spherical=spherical).eval()
        quantizer = LookupFreeQuantizer(LfqQuantizer(bits=10, spherical=spherical))
        features = torch.randn(2, 10, 6, 6)
        expected_features, expected_codes, _ = peer(features)
        codes = quantizer.codes_from_features(features)
        assert torch.equal(codes, expected_codes.long())
        # the library gives the corners of LFQ where ours are on the sphere already
        found = quantizer.features_from_codes(codes)
        assert torch.allclose(found, peer.indices_to_codes(expected_codes), atol=1e-6)
        if not spherical:
            assert torch.allclose(found, expected_features, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_lfq_entropies_are_the_librarys(temperature: float) -> None:
    from vector_quantize_pytorch import LFQ

    peer = LFQ(codebook_size=2**8, dim=8).train()
    quantizer = LookupFreeQuantizer(LfqQuantizer(bits=8, temperature=temperature, entropy_group=8))
    features = torch.randn(2, 8, 6, 6) * 0.05
    _, breakdown = peer(features, inv_temperature=1 / temperature, return_loss_breakdown=True)
    single, together = quantizer.entropies(features.permute(0, 2, 3, 1).reshape(-1, 8))
    # the library takes the logarithm of at least 1e-5
    assert float(single) == pytest.approx(float(breakdown.per_sample_entropy), rel=2e-2, abs=1e-3)
    assert float(together) == pytest.approx(float(breakdown.batch_entropy), rel=2e-2, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(2, 10), group=st.integers(1, 10), scale=st.floats(0.01, 1), seed=st.integers(0, 999))
def test_entropy_by_groups_is_never_less_than_the_whole(bits: int, group: int, scale: float, seed: int) -> None:
    rows = torch.randn(40, bits, generator=torch.Generator().manual_seed(seed)) * scale

    def together(entropy_group: int) -> float:
        return float(LookupFreeQuantizer(LfqQuantizer(bits=bits, entropy_group=entropy_group)).entropies(rows)[1])

    assert together(group) >= together(bits) - 1e-4
    assert together(group) <= bits * log(2) + 1e-4


def test_lfq_trains_with_as_many_codes_as_no_table_could_hold() -> None:
    quantizer = LookupFreeQuantizer(LfqQuantizer(bits=24))
    quantizer.start_training(64)
    features = torch.randn(1, 24, 8, 8, requires_grad=True)
    out = quantizer(features)
    sum(out.losses.values(), torch.zeros(())).backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert out.codes.max() > 2**18


# ---- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "fsq", "levels": [8, 2]}, "greater than or equal to 3"),
        ({"kind": "fsq", "levels": []}, "at least 1"),
        ({"kind": "residual-fsq", "codebooks": 1}, "greater than or equal to 2"),
        ({"kind": "vq", "codebook_dim": 1}, "rotation_trick needs"),
        ({"kind": "vq", "codebook_dim": 1, "rotation_trick": False}, "normalize needs"),
        ({"kind": "residual-vq", "normalize": True}, "Extra inputs"),
        ({"kind": "lfq", "bits": 25}, "less than or equal to 24"),
        ({"kind": "simvq", "decay": 0.5}, "Extra inputs"),
        ({"kind": "gumbel"}, "does not match any of the expected tags"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(QuantizerConfig).validate_python(options)
