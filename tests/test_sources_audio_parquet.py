"""Hugging Face parquet of sounds: real clips with transcripts, whatever is declared of them, and rows without a sound."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from sources_helpers import Result, assert_census_agrees, assert_same_for_all_cuts, source_of, write_parquet

from tokkit.documents import Audio, Text
from tokkit.media.audio import load_audio
from tokkit.sources.resolve import resolve_inputs

DECLARED = {
    "info": {
        "features": {
            "audio": {"sampling_rate": 16000, "_type": "Audio"},
            "sentence": {"dtype": "string", "_type": "Value"},
            "speaker": {"dtype": "string", "_type": "Value"},
        }
    }
}


def wav(seconds: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(round(seconds * 16000)) / 9)
    soundfile.write(buffer, samples, 16000, format="WAV")
    return buffer.getvalue()


def sounds(*values: dict[str, object] | None, more: tuple[tuple[str, pa.DataType], ...] = ()) -> pa.Array:
    return pa.array(list(values), pa.struct([("bytes", pa.binary()), ("path", pa.string()), *more]))


def read(*paths: Path, root: Path | None = None) -> Result:
    result = assert_same_for_all_cuts(source_of("hf_parquet", *paths, root=root), [1])
    assert_census_agrees(result)
    return result


def test_real_clips_come_back_with_their_transcripts(shared_data: Path, tmp_path: Path) -> None:
    """The clips of the test corpus, of six formats, several rates and one or two channels, as a dataset's two shards."""
    entries = [json.loads(line) for line in (shared_data / "audio" / "manifest.jsonl").read_text().splitlines()]
    chosen = [entry for entry in entries if entry["format"] != "WAV"] + entries[::9]
    assert len({entry["format"] for entry in chosen}) == 6
    files = []
    for part in range(2):
        rows = chosen[part::2]
        data = [(shared_data / "audio" / row["audio_filepath"]).read_bytes() for row in rows]
        columns = {
            "audio": sounds(*({"bytes": d, "path": Path(r["audio_filepath"]).name} for d, r in zip(data, rows, strict=True))),
            "sentence": [row.get("text") for row in rows],
            "speaker": [row["speaker"] for row in rows],
        }
        name = tmp_path / f"train-{part:05d}-of-00002.parquet"
        files.append(write_parquet(name, columns, 5, metadata={"huggingface": json.dumps(DECLARED)}))
    assert [s.format for s in resolve_inputs([str(tmp_path)]).sources] == ["hf_parquet"]
    result = read(*files)
    expected = [*chosen[0::2], *chosen[1::2]]
    assert len(result.good) == len(expected) == len(result.documents)
    for document, row in zip(result.good, expected, strict=True):
        sound, *said = document.segments
        assert isinstance(sound, Audio)
        assert said == ([Text(row["text"])] if row.get("text") else [])
        assert document.metadata["speaker"] == row["speaker"]
        assert document.pair
        assert sound.data is not None
        seconds = load_audio(sound.data, 16000, 1).shape[1] / 16000
        assert seconds == pytest.approx(row["duration"], abs=0.05)  # an MP3 begins and ends with what its encoder adds


@pytest.mark.slow
def test_what_datasets_itself_writes_is_read(shared_data: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    clips = sorted((shared_data / "audio" / "fsdd").glob("*.wav"))[:5]
    rows = {"audio": [{"bytes": c.read_bytes(), "path": c.name} for c in clips], "transcription": [c.stem for c in clips]}
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(sampling_rate=16000, decode=False))
    made.to_parquet(str(tmp_path / "train.parquet"))
    result = read(tmp_path / "train.parquet")
    assert [d.segments for d in result.good] == [(Audio(c.read_bytes(), c.name), Text(c.stem)) for c in clips]


@pytest.mark.parametrize("name", ["audio", "clip", "speech_en"])
def test_a_sampling_rate_beside_the_bytes_makes_it_a_sound(tmp_path: Path, name: str) -> None:
    """As some tools write it, without declared features; the file's own rate counts."""
    value = {"bytes": wav(), "path": None, "sampling_rate": 8000}
    path = write_parquet(tmp_path / "t.parquet", {name: sounds(value, more=(("sampling_rate", pa.int32()),)), "text": ["said"]})
    (document,) = read(path).good
    assert document.segments == (Audio(value["bytes"], name), Text("said"))  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["sentence", "transcription", "normalized_text", "raw_text"])
def test_transcripts_are_found_under_the_names_that_speech_datasets_have(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"audio": sounds({"bytes": wav(), "path": "a.wav"}), column: ["said"]})
    (document,) = read(path).good
    assert document.segments[1:] == (Text("said"),)


def test_each_row_without_a_sound_has_its_own_outcome(tmp_path: Path) -> None:
    (tmp_path / "there.wav").write_bytes(wav())
    values = (
        {"bytes": None, "path": "there.wav"},
        {"bytes": None, "path": "lost.wav"},
        {"bytes": None, "path": "../../etc/passwd"},
        {"bytes": None, "path": None},
        None,
    )
    result = read(write_parquet(tmp_path / "t.parquet", {"audio": sounds(*values), "text": list("abcde")}))
    assert result.item_failures == {"audio-not-found": 1, "path-outside-source": 1, "not-downloaded": 1}
    assert result.reasons == {"no-media": 1}
    assert result.good[0].media == (Audio(wav(), "there.wav"),)


def test_sounds_as_arrays_of_samples_are_no_text_and_it_is_said_what_to_do(tmp_path: Path) -> None:
    kind = pa.struct([("array", pa.list_(pa.float32())), ("path", pa.string()), ("sampling_rate", pa.int32())])
    value = pa.array([{"array": [0.0, 0.5], "path": "a.wav", "sampling_rate": 16000}], kind)
    write_parquet(tmp_path / "t.parquet", {"audio": value, "text": ["said"]})
    (tmp_path / "other.jsonl").write_text('{"text": "a page"}\n')
    resolved = resolve_inputs([str(tmp_path)])
    assert [source.format for source in resolved.sources] == ["jsonl"]
    (ignored,) = resolved.ignored
    assert "the column audio holds samples and no sound files" in ignored.why
