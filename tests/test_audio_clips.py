"""Every clip of the real recordings: the package's codes in each way of encoding, differences proven to be ties."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from audio_models import chunked, imported, model_of, small_24k, small_48k, theirs, ties

from tokkit.tokenizers.audio.model import EncodecTokenizer

pytestmark = pytest.mark.slow


def _clips(data: Path, rate: int, channels: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    soundfile, soxr = pytest.importorskip("soundfile"), pytest.importorskip("soxr")
    folder = data / "audio"
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        name = json.loads(line)["audio_filepath"]
        samples, found = soundfile.read(folder / name, dtype="float32", always_2d=True)
        stereo = samples if samples.shape[1] == 2 else np.repeat(samples.mean(axis=1, keepdims=True), 2, axis=1)
        wanted = stereo if channels == 2 else stereo.mean(axis=1, keepdims=True)
        yield name, np.ascontiguousarray(soxr.resample(wanted, found, rate).T.astype(np.float32))


def _compare(model: Any, tokenizer: EncodecTokenizer, clips: dict[str, npt.NDArray[np.float32]]) -> tuple[int, int]:
    """(Frames, frames that differ) over the three ways; each difference was shown to be a tie."""
    frames = different = 0
    batches = tokenizer.encode(list(clips.values()), batch_size=4)
    for (name, clip), batched in zip(clips.items(), batches, strict=True):
        expected, scales = theirs(model, clip)
        (alone,) = tokenizer.encode([clip])
        streamed = tokenizer.encode_stream(chunked(clip, 4410))
        assert np.array_equal(streamed.codes, alone.codes), name
        if tokenizer.config.segment is None:  # else that is how it was encoded
            assert np.array_equal(tokenizer.encode([clip], exact=True)[0].codes, expected), name
        for code in (alone, batched):
            frames += expected.shape[1]
            different += ties(model, clip, expected, code.codes)
            if scales is not None:
                assert code.scales is not None
                assert np.allclose(code.scales, scales, rtol=1e-6), name
    return frames, different


@pytest.mark.parametrize("kind", ["24k", "48k"])
def test_every_clip_with_a_small_network(kind: str, tmp_path: Path, shared_data: Path) -> None:
    model = small_24k() if kind == "24k" else small_48k()
    tokenizer = imported(model, tmp_path)
    clips = dict(_clips(shared_data, tokenizer.sample_rate, tokenizer.channels))
    assert len(clips) == 166
    frames, different = _compare(model, tokenizer, clips)
    print(f"{kind}: {different} of {frames} frames differ")
    assert different <= frames // 1000


@pytest.mark.parametrize("kind", ["24k", "48k"])
def test_some_clips_with_the_whole_network(kind: str, tmp_path: Path, shared_data: Path) -> None:
    """All books of the released sizes, on some clips of each kind."""
    options = {"full": True, "bins": 1024}
    model = (
        model_of(books=32, **options)
        if kind == "24k"
        else model_of(48000, books=16, channels=2, causal=False, norm="time_group_norm", **options)
    )
    tokenizer = imported(model, tmp_path)
    clips = {}
    for name, clip in _clips(shared_data, tokenizer.sample_rate, tokenizer.channels):
        if sum(other.split("/")[0] == name.split("/")[0] for other in clips) < 2:
            clips[name] = clip[:, : 5 * tokenizer.sample_rate]
    assert len(clips) > 8
    frames, different = _compare(model, tokenizer, clips)
    print(f"{kind}, whole network: {different} of {frames} frames differ")
    assert different <= frames // 10  # the finest of 32 drawn books have vectors that hardly differ
