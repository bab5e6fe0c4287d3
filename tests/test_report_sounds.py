"""The sounds of ``report.html``: decoded from their tokens, to be heard and seen, bounded, the same bytes in every run."""

from __future__ import annotations

import base64
import io
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from shard_corpus import write_tokenizers
from sound_corpus import write_audio_tokenizers, write_sounds
from sources_helpers import tar_bytes

from tokkit.pipelines import report
from tokkit.pipelines.decoding import DecodedAudio, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.report import ReportConfig, write_report
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard

SILENT = SilentProgress()


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = write_sounds(folder / "sounds")
        self.mono, self.stereo = write_audio_tokenizers(folder / "audio")
        self.text, _ = write_tokenizers(folder / "tokenizers")

    def run(self, out: Path, **options: object) -> ShardResult:
        settings: dict[str, object] = {"inputs": [str(self.folder / "sounds")], "out": out, "text_tokenizer": self.text}
        settings |= {"audio_tokenizer": self.mono, "workers": 0, "unit_bytes": 40_000, "report_documents": 3}
        return shard(ShardConfig.model_validate(settings | options), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def clean(world: World) -> ShardResult:
    return world.run(world.folder / "clean")


def page_of(out: Path) -> str:
    return (out / "report.html").read_text()


def heard(page: str) -> list[tuple[int, np.ndarray]]:
    """Rate and samples of each player's sound."""
    found = []
    for data in re.findall(r'<audio [^>]*src="data:audio/wav;base64,([^"]+)"', page):
        with wave.open(io.BytesIO(base64.b64decode(data))) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            found.append((file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")))
    return found


def seen(page: str) -> list[np.ndarray]:
    """Pictures of spectrograms."""
    uris = re.findall(r'<img class="sound" src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in uris]


def shown_sounds(out: Path, count: int) -> list[DecodedAudio]:
    """The sounds of the documents that the page shows, decoded whole."""
    decoder = DocumentDecoder(out)
    documents = [decoder.decode(split, number) for split, number in report.choose_documents(decoder, count)]
    return [part for document in documents for part in document.parts if isinstance(part, DecodedAudio)]


def test_the_sounds_of_the_documents_are_there_to_hear_and_to_see(clean: ShardResult, world: World) -> None:
    page = page_of(clean.out)
    expected = shown_sounds(clean.out, 3)
    players, pictures = heard(page), seen(page)
    assert len(players) == len(pictures) == len(expected) == 3
    for (rate, samples), picture, sound in zip(players, pictures, expected, strict=True):
        assert sound.samples is not None
        assert rate == sound.sample_rate == 24000
        assert np.array_equal(samples, np.clip(np.rint(sound.samples[0] * 32767), -32768, 32767).astype("<i2"))
        assert picture.shape == (64, len(samples) // 256 + 1, 3)
        assert f"{len(samples) / rate:.2f} s at 24,000 Hz" in page
        assert f"{sound.codes.shape[1]} frames x 4 = {sound.tokens:,} codes" in page
    said = [text for text in world.good.values() if text.replace("<", "&lt;").replace(">", "&gt;") in page]
    assert len(said) == 3  # the transcripts beside them
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)  # nothing is loaded from elsewhere


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_page_is_the_same_in_every_run(world: World, clean: ShardResult, tmp_path: Path, workers: int) -> None:
    """Whoever did the units, in whatever order, and with however many threads whatever called this works."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        result = world.run(tmp_path / "out", workers=workers)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    assert (result.out / "report.html").read_bytes() == (clean.out / "report.html").read_bytes()


def test_decoding_is_done_by_one_thread(clean: ShardResult, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    counts = set()
    decode = DocumentDecoder.decode

    def watched(self: DocumentDecoder, *arguments: object) -> object:
        counts.add(torch.get_num_threads())
        return decode(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DocumentDecoder, "decode", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        write_report(ReportConfig(directory=clean.out, documents=3), SILENT)
    finally:
        torch.set_num_threads(threads)
    assert counts == {1}


def test_of_a_long_sound_the_page_has_the_beginning(world: World, tmp_path: Path) -> None:
    """No more of it is decoded, and what is there is, sample by sample, what the whole begins with."""
    rng, file = np.random.default_rng(1), io.BytesIO()
    soundfile.write(file, 0.2 * rng.standard_normal(13 * 24000), 24000, format="WAV")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "00000.tar").write_bytes(tar_bytes([("a.wav", file.getvalue()), ("a.txt", b"noise")]))
    out = world.run(tmp_path / "out", inputs=[str(tmp_path / "in")]).out
    ((rate, samples),) = heard(page_of(out))
    assert len(samples) == report.LONGEST_SOUND * rate
    (whole,) = shown_sounds(out, 1)
    assert whole.samples is not None
    assert whole.length == whole.samples.shape[1] == 13 * 24000
    assert np.array_equal(samples, np.clip(np.rint(whole.samples[0, : len(samples)] * 32767), -32768, 32767).astype("<i2"))
    assert "13.00 s at 24,000 Hz" in page_of(out)
    assert "the first 10 s of it" in page_of(out)
    short = DocumentDecoder(out).decode("train", 0, 0.5).parts[0]
    assert isinstance(short, DecodedAudio)
    assert short.samples is not None
    assert np.array_equal(short.samples, whole.samples[:, :12000])


def test_the_page_holds_no_more_sound_than_there_is_room_for(
    clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = heard(page_of(clean.out))
    room = 2 * (len(before[0][1]) + len(before[2][1]))
    assert room < 2 * sum(len(samples) for _, samples in before)
    monkeypatch.setattr(report, "MOST_SOUND_BYTES", room)
    kept = page_of(clean.out)
    try:
        page = write_report(ReportConfig(directory=clean.out, documents=3), SILENT).read_text()
    finally:
        (clean.out / "report.html").write_text(kept)
    assert sum(2 * len(samples) for _, samples in heard(page)) <= room
    assert 0 < len(heard(page)) < 3
    assert len(seen(page)) == 3  # each is still to be seen
    assert "the page has sounds enough" in page


def test_a_sound_of_two_channels_is_heard_as_one(world: World, tmp_path: Path) -> None:
    out = world.run(tmp_path / "out", audio_tokenizer=world.stereo, report_documents=1).out
    ((rate, samples),) = heard(page_of(out))
    (sound,) = shown_sounds(out, 1)
    assert sound.samples is not None
    assert (rate, sound.samples.shape[0]) == (48000, 2)
    mono = sound.samples.mean(axis=0)
    assert np.array_equal(samples, np.clip(np.rint(mono * 32767), -32768, 32767).astype("<i2"))
