"""EnCodec tokenizers give the package's own codes: alone, in ragged batches, in streams, in segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audio_models import chunked, fill, fused, imported, signals, small_24k, small_32k, small_48k, theirs, ties

from tokkit.errors import DataError, VocabularyError
from tokkit.tokenizers.audio import load_audio_tokenizer, save_audio_tokenizer
from tokkit.tokenizers.audio.base import AudioCode, Buckets
from tokkit.tokenizers.audio.model import EncodecTokenizer, pieces
from tokkit.tokenizers.audio.presets import PRESETS

Pair = tuple[Any, EncodecTokenizer]


def _zero_padded(model: Any) -> EncodecTokenizer:
    """A model that no ``.th`` can describe, with its weights put into the tokenizer by hand."""
    tokenizer = EncodecTokenizer(
        PRESETS["musicgen-32k"].model_copy(
            update={
                "architecture": PRESETS["musicgen-32k"].architecture.model_copy(update={"filters": 4, "dimension": 16}),
                "quantizer": PRESETS["musicgen-32k"].quantizer.model_copy(update={"codebook_size": 64}),
            }
        )
    )
    state = {name: value for name, value in fused(model).state_dict().items() if not name.startswith("quantizer.")}
    books = torch.stack([layer._codebook.embed for layer in model.quantizer.vq.layers])
    tokenizer.load_weights(state | {"codebooks": books})
    return tokenizer


@pytest.fixture(scope="module", params=["24k", "48k", "32k"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    model = {"24k": small_24k, "48k": small_48k, "32k": small_32k}[request.param]()
    return model, _zero_padded(model) if request.param == "32k" else imported(model, folder)


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model = small_24k()
    return model, imported(model, tmp_path_factory.mktemp("mono"))


def _doubled(pair: Pair) -> Pair:
    model, tokenizer = pair
    wide = EncodecTokenizer(tokenizer.config)
    wide.load_weights(tokenizer.weights())
    wide.network.double()
    return fused(model).double(), wide


# ---- the package's codes


def test_the_books_of_these_tests_are_used(pair: Pair) -> None:
    """Else every comparison below would compare zeros with zeros."""
    _, tokenizer = pair
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    codes = tokenizer.encode([clips["long-sweep"], clips["noise-20003"]])
    for book in np.concatenate([code.codes for code in codes], axis=1):
        assert len(np.unique(book)) > 10


def test_alone_and_exact_it_is_the_package_bit_for_bit(pair: Pair) -> None:
    model, tokenizer = pair
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    for name, code in zip(clips, tokenizer.encode(list(clips.values()), exact=True), strict=True):
        codes, scales = theirs(model, clips[name])
        assert code.codes.dtype == np.int32, name
        assert np.array_equal(code.codes, codes), name
        assert code.samples == clips[name].shape[1]
        assert code.codes.shape[1] == tokenizer.frames(code.samples), name
        if scales is None:
            assert code.scales is None
        else:
            assert code.scales is not None
            assert np.array_equal(code.scales, scales.astype(np.float32)), name


def test_in_float64_no_way_of_encoding_makes_a_difference(pair: Pair) -> None:
    model, tokenizer = _doubled(pair)
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    expected = {name: theirs(model, clip)[0] for name, clip in clips.items()}
    for batch_size in (1, 3):
        for name, code in zip(clips, tokenizer.encode(list(clips.values()), batch_size=batch_size), strict=True):
            assert np.array_equal(code.codes, expected[name]), (name, batch_size)
    for name, clip in clips.items():
        assert np.array_equal(tokenizer.encode_stream(chunked(clip, 997)).codes, expected[name]), name


def test_in_float32_differences_are_near_ties_and_few(pair: Pair) -> None:
    model, tokenizer = pair
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    frames = different = 0
    for batch_size in (1, 4):
        for name, code in zip(clips, tokenizer.encode(list(clips.values()), batch_size=batch_size), strict=True):
            different += ties(model, clips[name], theirs(model, clips[name])[0], code.codes)
            frames += code.codes.shape[1]
    assert different <= frames // 100


def test_the_checker_of_ties_knows_an_error(mono: Pair) -> None:
    model, _ = mono
    clip = signals(24000, 1)["sweep"]
    codes, _ = theirs(model, clip)
    wrong = codes.copy()
    wrong[3, 20] = (wrong[3, 20] + 1) % 64
    with pytest.raises(AssertionError, match="no tie"):
        ties(model, clip, codes, wrong)


# ---- one way or another


def test_a_stream_is_the_whole_bit_for_bit_however_it_is_cut(pair: Pair) -> None:
    _, tokenizer = pair
    for name, clip in signals(tokenizer.sample_rate, tokenizer.channels).items():
        (whole,) = tokenizer.encode([clip])
        for size in (1234, clip.shape[1]):
            streamed = tokenizer.encode_stream(chunked(clip, size))
            assert np.array_equal(streamed.codes, whole.codes), name
            assert streamed.samples == whole.samples
            assert (streamed.scales is None) == (whole.scales is None)
            if whole.scales is not None:
                assert np.array_equal(streamed.scales, whole.scales)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_clips_codes_do_not_depend_on_its_neighbours(pair: Pair, batch_size: int) -> None:
    _, tokenizer = pair
    clips = list(signals(tokenizer.sample_rate, tokenizer.channels).values())
    together = tokenizer.encode(clips, batch_size=batch_size)
    backwards = tokenizer.encode(clips[::-1], batch_size=batch_size)[::-1]
    for clip, one, other in zip(clips, together, backwards, strict=True):
        (alone,) = tokenizer.encode([clip], batch_size=batch_size)
        assert np.array_equal(alone.codes, one.codes)
        assert np.array_equal(alone.codes, other.codes)


def test_a_long_clip_takes_no_more_memory_than_a_piece(mono: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of a convolution ever sees more than a piece and what the layer held before."""
    _, tokenizer = mono
    longest = 0
    original = torch.nn.Conv1d.forward

    def watched(self: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
        nonlocal longest
        longest = max(longest, x.shape[-1])
        return original(self, x)

    monkeypatch.setattr(torch.nn.Conv1d, "forward", watched)
    clip = np.random.default_rng(1).standard_normal((1, 24000 * 20)).astype(np.float32)
    tokenizer.encode([clip])
    assert 48000 <= longest < 49000


def test_buckets_and_pieces() -> None:
    buckets = Buckets(320, 1, 10**7)
    for samples in [*range(1, 5000, 7), 24000 * 30, 10**7]:
        length = buckets.of(samples)
        assert length is not None
        assert samples <= length <= max(samples * 1.125 + 320, 320)
        assert length % 320 == 0
    assert Buckets(320, 100, 1000).of(99) is Buckets(320, 100, 1000).of(1001) is None
    assert Buckets(320, 1, 1000, 48000).of(7) == 48000
    wave = np.arange(10, dtype=np.float32)[None]
    for size in (1, 3, 4, 10, 11):
        cut = list(pieces(chunked(wave, size), 4))
        assert [piece.shape[1] for piece in cut] == [4, 4, 2]
        assert np.array_equal(np.concatenate(cut, axis=1), wave)


# ---- decoding


def test_decoding_is_the_packages(pair: Pair) -> None:
    model, tokenizer = pair
    for name, clip in signals(tokenizer.sample_rate, tokenizer.channels).items():
        (code,) = tokenizer.encode([clip], exact=True)
        with torch.no_grad():
            expected = model.decode(model.encode(torch.from_numpy(clip).unsqueeze(0)))[0, :, : clip.shape[1]].numpy()
        found = tokenizer.decode(code)
        assert found.shape == clip.shape
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max()), name
        streamed = list(tokenizer.decode_stream(code))
        assert np.array_equal(np.concatenate(streamed, axis=1), found)
        if name == "long-sweep":
            assert len(streamed) > 2


def test_fewer_books_are_a_lower_bandwidth(mono: Pair) -> None:
    model, tokenizer = mono
    clip = signals(24000, 1)["sweep"]
    (code,) = tokenizer.encode([clip])
    fewer = code.first_books(2)
    wave = torch.from_numpy(clip).unsqueeze(0)
    with torch.no_grad():
        codes = model.quantizer.vq.encode(model.encoder(wave), n_q=2)
        expected = model.decoder(model.quantizer.vq.decode(codes))[0, :, : clip.shape[1]].numpy()
    assert np.array_equal(fewer.codes, codes[:, 0].numpy())
    assert np.allclose(tokenizer.decode(fewer), expected, atol=1e-6)
    for wrong in (0, 7):
        with pytest.raises(ValueError, match="codebooks"):
            code.first_books(wrong)


def test_codes_that_cannot_be_are_refused(pair: Pair) -> None:
    _, tokenizer = pair
    clip = signals(tokenizer.sample_rate, tokenizer.channels)["noise-9601"]
    (code,) = tokenizer.encode([clip])
    for bad in (-1, tokenizer.codebook_size):
        codes = code.codes.copy()
        codes[0, 0] = bad
        with pytest.raises(VocabularyError, match=str(bad)):
            tokenizer.decode(AudioCode(codes, code.scales, code.samples))
    with pytest.raises(ValueError, match="frames"):
        tokenizer.decode(AudioCode(code.codes[:, 1:], code.scales, code.samples))
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode(AudioCode(code.codes.astype(np.float32), code.scales, code.samples))  # type: ignore[arg-type]
    if code.scales is not None:
        with pytest.raises(ValueError, match="scales"):
            tokenizer.decode(AudioCode(code.codes, None, code.samples))


# ---- what is refused


def test_waveforms_that_cannot_be_are_refused(pair: Pair) -> None:
    _, tokenizer = pair
    good = np.zeros((tokenizer.channels, 3000), dtype=np.float32)
    bad = good.copy()
    bad[0, 2999] = np.nan
    for wave, problem in (
        (good[:, :0], "no samples"),
        (good[0], "expected float32"),
        (np.zeros((3, 3000), dtype=np.float32), "expected float32"),
        (good.astype(np.float64), "expected float32"),
        (bad, "not finite"),
    ):
        with pytest.raises(ValueError, match=problem):
            tokenizer.encode([good, wave])  # type: ignore[list-item]
    for chunks in ([], [good[:, :0]]):
        with pytest.raises(ValueError, match="no samples"):
            tokenizer.encode_stream(chunks)
    with pytest.raises(ValueError, match="not finite"):
        tokenizer.encode_stream([good, bad])
    assert tokenizer.encode([]) == []


def test_empty_codebooks_are_refused(tmp_path: Path) -> None:
    fresh = EncodecTokenizer(PRESETS["encodec-tiny"])
    wave = np.zeros((1, 3000), dtype=np.float32)
    for attempt in (
        lambda: fresh.encode([wave]),
        lambda: fresh.encode_stream([wave]),
        lambda: fresh.decode(AudioCode(np.zeros((4, 10), dtype=np.int32), None, 3000)),
        lambda: save_audio_tokenizer(fresh, tmp_path / "fresh"),
    ):
        with pytest.raises(DataError, match="never initialised"):
            attempt()
    fill(fresh.network)
    assert fresh.encode([wave])[0].codes.shape == (4, 10)
    weights = fresh.weights()
    weights["codebooks"][2] = 0
    with pytest.raises(DataError, match=r"never initialised \(all zero\): 2"):
        fresh.load_weights(weights)


# ---- files


def test_a_folder_there_and_back(pair: Pair, tmp_path: Path) -> None:
    _, tokenizer = pair
    for name in ("a", "b"):
        save_audio_tokenizer(tokenizer, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    random = torch.get_rng_state()
    loaded = load_audio_tokenizer(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), random)
    assert (loaded.fingerprint, loaded.config) == (tokenizer.fingerprint, tokenizer.config)
    clip = signals(tokenizer.sample_rate, tokenizer.channels)["sweep"]
    assert np.array_equal(loaded.encode([clip])[0].codes, tokenizer.encode([clip])[0].codes)


def test_a_fingerprint_stays_what_it_was() -> None:
    """Of a tokenizer as tokkit 0.1 wrote it: shards name it, so no later version may call it another."""
    tokenizer = EncodecTokenizer(PRESETS["encodec-tiny"])
    weights = {
        name: (torch.arange(tensor.numel(), dtype=torch.float32) % 97 / 97 - 0.5).reshape(tensor.shape)
        for name, tensor in tokenizer.shapes().items()
    }
    tokenizer.load_weights(weights)
    assert tokenizer.fingerprint == "b2cd392bac860b0c6283b1da8f6ec04f32d7fc523dc578ad4a4ff1c1d7177795"


def test_every_part_of_a_tokenizer_is_in_its_fingerprint(mono: Pair) -> None:
    _, tokenizer = mono
    before = tokenizer.fingerprint
    changed = EncodecTokenizer(tokenizer.config)
    for name, tensor in tokenizer.weights().items():
        weights = {n: t.clone() for n, t in tokenizer.weights().items()}
        weights[name].view(-1)[-1] += 1
        changed.load_weights(weights)
        assert changed.fingerprint != before, name
        assert tensor.dtype == torch.float32
    other = EncodecTokenizer(tokenizer.config.model_copy(update={"sample_rate": 16000}))
    other.load_weights(tokenizer.weights())
    assert other.fingerprint != before


def test_damaged_folders_are_refused(mono: Pair, tmp_path: Path) -> None:
    _, tokenizer = mono
    folder = tmp_path / "t"
    save_audio_tokenizer(tokenizer, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    good, tensors = config.read_text(), weights.read_bytes()

    def refused(problem: str) -> None:
        with pytest.raises(DataError, match=problem):
            load_audio_tokenizer(folder)
        config.write_text(good)
        weights.write_bytes(tensors)

    config.write_text(good.replace('"sample_rate": 24000', '"sample_rate": 16000'))
    refused("do not belong together")
    config.write_text(good.replace("tokkit-audio-tokenizer", "tokkit-image-tokenizer"))
    refused("format")
    config.write_text(good.replace('"filters": 4', '"filters": 8'))
    refused("does not fit")
    config.write_text(good.replace('"causal": true', '"causal": true, "colour": 1'))
    refused("colour")
    config.write_text(good[:100])
    refused("not JSON")
    config.unlink()
    refused("no config.json")
    weights.write_bytes(tensors[:-10])
    refused("damaged")
    altered = bytearray(tensors)
    altered[-1] ^= 1
    weights.write_bytes(altered)
    refused("do not belong together")
    weights.unlink()
    refused("never from pickles")
    with pytest.raises(DataError, match="no such folder"):
        load_audio_tokenizer(tmp_path / "absent")


def test_the_figures_of_the_literature() -> None:
    config = PRESETS["encodec-24k"]
    assert (config.sample_rate / config.hop, config.frames(30 * 24000)) == (75, 2250)
    assert 6000 == 75 * 8 * 10  # 6 kbit/s: 8 books of 10 bits
    assert PRESETS["musicgen-32k"].frames(30 * 32000) * 4 == 6000
    stereo = PRESETS["encodec-48k"]
    assert (stereo.frames(48000), len(stereo.segments(48000))) == (152, 2)
    assert (stereo.frames(15 * 48000), len(stereo.segments(15 * 48000))) == (2273, 16)
