"""Audio tokenizers whose codes are places on a grid (FSQ, residual FSQ): the grid's own codes, in every way of encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from audio_models import ROUNDING, chunked, signals

from tokkit.errors import ConfigError, DataError, VocabularyError
from tokkit.tokenizers.audio import load_audio_tokenizer, save_audio_tokenizer
from tokkit.tokenizers.audio.base import AudioCode
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.audio.presets import PRESETS, configure
from tokkit.training.audio.grid import GridTrainer
from tokkit.training.audio.task import fresh_codec

KINDS: dict[str, dict[str, object]] = {
    "fsq": {"quantizer.levels": [8, 5, 4, 3], "architecture.dimension": 4},
    "residual-fsq": {
        "quantizer.kind": "residual-fsq",
        "quantizer.levels": [5, 4, 3],
        "quantizer.codebooks": 3,
        "architecture.dimension": 3,
    },
}


def made(kind: str) -> EncodecTokenizer:
    """A small network with its grid laid over what it gives for some sounds."""
    tokenizer = fresh_codec(configure("codec-fsq-tiny", {"architecture.filters": 4} | KINDS[kind]), 0)
    GridTrainer(tokenizer.network.quantizer).initialise(features(tokenizer))
    return tokenizer


@torch.no_grad()
def features(tokenizer: EncodecTokenizer) -> torch.Tensor:
    waves = [signals(tokenizer.sample_rate, 1)[name][:, :4000] for name in ("sweep", "noise-9601", "impulse")]
    found: torch.Tensor = tokenizer.network.encoder(torch.from_numpy(np.stack(waves)))
    return found


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> EncodecTokenizer:
    return made(request.param)


def doubled(tokenizer: EncodecTokenizer) -> EncodecTokenizer:
    wide = EncodecTokenizer(tokenizer.config)
    wide.load_weights(tokenizer.weights())
    wide.network.double()
    return wide


def on_paper(tokenizer: EncodecTokenizer, wave: npt.NDArray[np.float32]) -> tuple[np.ndarray, np.ndarray]:
    """(Codes ``[K, t]``, how far each frame is from where a code would change) of the whole clip, in float64 and by hand."""
    wide = doubled(tokenizer)
    with torch.no_grad():
        z = wide.network.encoder(torch.from_numpy(wave).double().unsqueeze(0))[0].numpy()
    centre, width = tokenizer.weights()["grid"].double().numpy()[..., None]
    z = (z - centre) / width
    levels = np.array(tokenizer.config.quantizer.levels)[:, None]  # type: ignore[union-attr]
    radix = np.cumprod([1, *levels[:-1, 0]])[:, None]
    books, margins = [], []
    if tokenizer.codebooks == 1:
        half = (levels - 1) * 1.001 / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        value = np.tanh(z) * half - offset  # in the middle of the grid, not of its middle level
        books.append((np.rint(value) + levels // 2, value - np.floor(value) - 0.5))
    else:
        c = 1 + 1 / (levels - 1)
        left = np.tanh(z / c) * c
        for k in range(tokenizer.codebooks):
            value = (levels - 1) * (np.clip(left * levels.astype(float) ** k, -1, 1) + 1) / 2
            digit = np.floor(value + 0.5)
            books.append((digit, value + 0.5 - np.rint(value + 0.5)))
            left = left - (2 * digit / (levels - 1) - 1) * levels.astype(float) ** -k
    for _, margin in books:
        margins.append(np.abs(margin).min(axis=0))
    return np.stack([(digit * radix).sum(axis=0) for digit, _ in books]).astype(int), np.min(margins, axis=0)


def test_codes_are_those_on_paper(tokenizer: EncodecTokenizer) -> None:
    clips = signals(tokenizer.sample_rate, 1)
    frames = different = 0
    seen: list[np.ndarray] = []
    for exact in (True, False):
        for (name, clip), code in zip(clips.items(), tokenizer.encode(list(clips.values()), exact=exact), strict=True):
            expected, margin = on_paper(tokenizer, clip)
            assert code.codes.dtype == np.int32
            assert code.codes.shape == expected.shape == (tokenizer.codebooks, tokenizer.frames(clip.shape[1]))
            wrong = (code.codes != expected).any(axis=0)
            assert (margin[wrong] < 1e3 * ROUNDING).all(), name  # only where the grid's border is nearer than rounding
            frames, different = frames + len(wrong), different + int(wrong.sum())
            seen.append(code.codes)
    assert different <= frames // 100
    for book in np.concatenate(seen, axis=1):
        assert len(np.unique(book)) > 20  # else nothing was compared


def test_one_book_is_the_librarys() -> None:
    from vector_quantize_pytorch import FSQ

    tokenizer = made("fsq")
    clip = signals(tokenizer.sample_rate, 1)["sweep"]
    with torch.no_grad():
        laid = tokenizer.network.quantizer
        values, codes = FSQ([8, 5, 4, 3])(laid.onto(tokenizer.network.encoder(torch.from_numpy(clip).unsqueeze(0))))
        expected = tokenizer.network.decoder(laid.off(values))[0, :, : clip.shape[1]].numpy()
    (found,) = tokenizer.encode([clip], exact=True)
    assert np.array_equal(found.codes, codes[0].numpy())
    assert np.allclose(tokenizer.decode(found), expected, atol=1e-5 * np.abs(expected).max())


def test_no_way_of_encoding_makes_a_difference_in_float64(tokenizer: EncodecTokenizer) -> None:
    wide = doubled(tokenizer)
    clips = signals(tokenizer.sample_rate, 1)
    whole = wide.encode(list(clips.values()), exact=True)
    for batch_size in (1, 3):
        for one, other in zip(whole, wide.encode(list(clips.values()), batch_size=batch_size), strict=True):
            assert np.array_equal(one.codes, other.codes)
    for one, clip in zip(whole, clips.values(), strict=True):
        assert np.array_equal(one.codes, wide.encode_stream(chunked(clip, 997)).codes)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_streams_and_neighbours_change_no_code(tokenizer: EncodecTokenizer, batch_size: int) -> None:
    clips = list(signals(tokenizer.sample_rate, 1).values())
    together = tokenizer.encode(clips, batch_size=batch_size)
    backwards = tokenizer.encode(clips[::-1], batch_size=batch_size)[::-1]
    for clip, one, other in zip(clips, together, backwards, strict=True):
        assert np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.codes, tokenizer.encode([clip], batch_size=batch_size)[0].codes)
        if batch_size == 1:
            assert np.array_equal(one.codes, tokenizer.encode_stream(chunked(clip, 1234)).codes)


def test_fewer_books_are_coarser_and_wrong_codes_are_refused(tokenizer: EncodecTokenizer) -> None:
    clip = signals(tokenizer.sample_rate, 1)["long-sweep"]
    (code,) = tokenizer.encode([clip])
    back = tokenizer.decode(code)
    assert back.shape == clip.shape
    assert np.array_equal(np.concatenate(list(tokenizer.decode_stream(code)), axis=1), back)
    if tokenizer.codebooks > 1:
        by_books = [tokenizer._features(code.first_books(n).codes) for n in (1, 2, 3)]
        errors = [float((f - by_books[-1]).abs().mean()) for f in by_books]
        assert errors[0] > errors[1] > 0
        assert not np.array_equal(tokenizer.decode(code.first_books(1)), back)
    for bad in (-1, tokenizer.codebook_size):
        codes = code.codes.copy()
        codes[-1, 3] = bad
        with pytest.raises(VocabularyError, match=str(bad)):
            tokenizer.decode(AudioCode(codes, None, code.samples))


def test_a_folder_there_and_back(tokenizer: EncodecTokenizer, tmp_path: Path) -> None:
    save_audio_tokenizer(tokenizer, tmp_path / "a")
    loaded = load_audio_tokenizer(tmp_path / "a")
    assert (loaded.fingerprint, loaded.config) == (tokenizer.fingerprint, tokenizer.config)
    clip = signals(tokenizer.sample_rate, 1)["sweep"]
    assert np.array_equal(loaded.encode([clip])[0].codes, tokenizer.encode([clip])[0].codes)
    changed = tokenizer.weights()
    name = next(name for name in changed if name.startswith("encoder."))
    changed[name] = changed[name] + 1
    other = EncodecTokenizer(tokenizer.config)
    other.load_weights(changed)
    assert other.fingerprint != tokenizer.fingerprint
    levels = list(tokenizer.config.quantizer.levels)  # type: ignore[union-attr]
    finer = EncodecTokenizer(
        configure(
            "codec-fsq-tiny",
            {"architecture.filters": 4} | KINDS[tokenizer.config.quantizer.kind] | {"quantizer.levels": [9, *levels[1:]]},
        )
    )
    finer.load_weights(tokenizer.weights())
    assert finer.fingerprint != tokenizer.fingerprint  # the grid has no weights, but it makes other codes
    described = tmp_path / "a" / "config.json"
    good = described.read_text()
    for old, new, problem in (
        (f'"dimension": {len(levels)}', '"dimension": 32', "as many as quantizer.levels"),
        (f'"kind": "{tokenizer.config.quantizer.kind}"', '"kind": "fsp"', "quantizer"),
    ):
        assert old in good
        described.write_text(good.replace(old, new))
        with pytest.raises(DataError, match=problem):
            load_audio_tokenizer(tmp_path / "a")
    described.write_text(good)


def test_a_grid_is_laid_over_what_there_is_and_follows_it() -> None:
    """Every level of every channel is in use, whatever the encoder's scale and wherever its values lie."""
    tokenizer = fresh_codec(configure("codec-fsq-tiny", {"architecture.filters": 4} | KINDS["fsq"]), 0)
    trainer = GridTrainer(tokenizer.network.quantizer, decay=0.5)
    with pytest.raises(RuntimeError, match="not laid"):
        trainer(features(tokenizer))
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 4, 500, generator=generator)
    for scale, centre in ((1.0, 0.0), (1e-3, 5.0)):
        trainer.initialise(scale * normal + centre)
        found = trainer(scale * normal + centre)
        radix, levels = torch.tensor([1, 8, 40, 160])[:, None], torch.tensor([8, 5, 4, 3])[:, None]
        digits = found.codes[:, 0, None] // radix % levels
        for channel, count in enumerate((8, 5, 4, 3)):
            shares = torch.bincount(digits[:, channel].flatten(), minlength=count) / digits[:, channel].numel()
            assert float(shares.min()) > 0.5 / count
        errors = (found.features - (scale * normal + centre)).std(dim=(0, 2)) / scale
        assert float(errors.max()) < 0.7  # and what comes back is where it was
    for _ in range(20):
        trainer(7 * normal - 30)  # it wanders off
    centre, width = trainer.laid.place
    assert torch.allclose(centre, torch.full_like(centre, -30), atol=0.5)
    assert torch.allclose(width, torch.full_like(width, 7 / 0.9), rtol=0.05)


def test_gradients_reach_the_encoder_and_codes_are_those_of_encoding(tokenizer: EncodecTokenizer) -> None:
    trainer = GridTrainer(tokenizer.network.quantizer, decay=1.0)
    z = features(tokenizer).requires_grad_(True)
    found = trainer(z)
    assert torch.equal(found.codes, trainer.all_codes(z))
    assert torch.allclose(found.features, tokenizer.books.features(found.codes), atol=1e-5 * float(z.detach().abs().max()))
    (gradient,) = torch.autograd.grad((found.features * torch.sign(z.detach())).sum(), [z])
    assert float((gradient != 0).float().mean()) > 0.9
    if tokenizer.codebooks > 1:
        assert torch.equal(trainer(z, 2).codes, found.codes[:, :2])


def test_a_grid_that_was_never_laid_is_refused(tmp_path: Path) -> None:
    fresh = fresh_codec(PRESETS["codec-fsq-tiny"], 0)
    for attempt in (
        lambda: fresh.encode([np.zeros((1, 3000), np.float32)]),
        lambda: save_audio_tokenizer(fresh, tmp_path / "a"),
    ):
        with pytest.raises(DataError, match="never initialised"):
            attempt()


def test_presets_and_what_cannot_be() -> None:
    preset = PRESETS["fsq-24k-50hz"]
    assert (preset.sample_rate, preset.hop, preset.frames(30 * 24000)) == (24000, 480, 1500)
    assert (preset.quantizer.codebooks, preset.quantizer.codebook_size) == (1, 65536)
    with pytest.raises(ConfigError, match=r"must be 3, as many as quantizer\.levels"):
        configure("fsq-24k-50hz", {"quantizer.levels": [5, 5, 5]})
    with pytest.raises(ConfigError, match="residual-vq, fsq, residual-fsq"):
        configure("fsq-24k-50hz", {"quantizer.kind": "lfq"})
    tables = configure("fsq-24k-50hz", {"quantizer.kind": "residual-vq", "architecture.dimension": 128})
    assert tables.quantizer.codebooks == 32  # the kind's own defaults
