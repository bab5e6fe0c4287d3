"""Sounds with transcripts: NeMo manifests, lhotse cuts and recordings, LibriSpeech folders, Common Voice tables."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sources_helpers import Result, assert_census_agrees, assert_same_for_all_cuts, read_all, source_of

from tokkit.documents import Audio, Document, Outcome, Text
from tokkit.errors import ConfigError, ItemError
from tokkit.media.audio import Segment, load_audio
from tokkit.sources.resolve import resolve_inputs

RATE = 8000


def tone(seconds: float, pitch: float = 300.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def sound(path: Path, seconds: float = 1.0, pitch: float = 300.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, pitch), RATE, format="FLAC" if path.suffix == ".flac" else "WAV")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def lines(path: Path, entries: list[object]) -> Path:
    text = "".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


def said(document: Document) -> list[str]:
    return [s.text if isinstance(s, Text) else f"<{s.ref}>" for s in document.segments]


def audio_of(document: Document) -> Audio:
    (found,) = document.media
    assert isinstance(found, Audio)
    return found


def read(format_name: str, *paths: Path, root: Path | None = None) -> Result:
    result = assert_same_for_all_cuts(source_of(format_name, *paths, root=root), [1, 150])
    assert_census_agrees(result)
    return result


def recognised(folder: Path) -> dict[str, str]:
    """Format by source, and why other files are not read."""
    resolved = resolve_inputs([str(folder)])
    return {s.format: ",".join(f.name for f in s.files) for s in resolved.sources} | {
        Path(f.path).name: f.why for f in resolved.ignored if not f.why.startswith("a sound beside a manifest")
    }


# ---- NeMo


def test_a_manifest_line_is_a_sound_with_its_transcript(tmp_path: Path) -> None:
    data = sound(tmp_path / "wavs" / "a.wav", 2.0)
    manifest = lines(
        tmp_path / "m.jsonl",
        [
            {"audio_filepath": "wavs/a.wav", "duration": 2.0, "text": "all of it", "speaker": "s1"},
            {"audio_filepath": "wavs/a.wav", "offset": 0.5, "duration": 0.25, "text": "a part"},
            {"audio_filepath": str(tmp_path / "wavs" / "a.wav"), "text": None},
            {"audio_filepath": "wavs/a.wav", "offset": 1, "text": ""},
        ],
    )
    result = read("audio_manifest", manifest)
    assert [said(d) for d in result.documents] == [
        ["<wavs/a.wav>", "all of it"],
        ["<wavs/a.wav>", "a part"],
        [f"<{tmp_path}/wavs/a.wav>"],
        ["<wavs/a.wav>"],
    ]
    assert all(d.pair for d in result.documents)
    assert result.documents[0].metadata == {"duration": 2.0, "speaker": "s1"}
    sounds = [audio_of(d) for d in result.documents]
    assert all(s.data == data for s in sounds)
    assert [(s.start, s.seconds) for s in sounds] == [(0.0, 2.0), (0.5, 0.25), (0.0, None), (1.0, None)]
    assert len({s.hash for s in sounds}) == 4  # another part is another item
    assert len({d.hash for d in result.documents}) == 4
    assert recognised(tmp_path) == {"audio_manifest": "m.jsonl"}


def test_names_are_relative_to_the_manifest_and_then_to_the_source(tmp_path: Path) -> None:
    near, far = sound(tmp_path / "lists" / "a.wav", pitch=500), sound(tmp_path / "wavs" / "b.wav")
    sound(tmp_path / "a.wav", pitch=700)
    manifest = lines(tmp_path / "lists" / "m.jsonl", [{"audio_filepath": "a.wav"}, {"audio_filepath": "wavs/b.wav"}])
    assert [audio_of(d).data for d in read("audio_manifest", manifest, root=tmp_path).documents] == [near, far]


def test_each_bad_manifest_line_has_its_outcome(shared_data: Path) -> None:
    result = read_all(source_of("audio_manifest", shared_data / "bad" / "audio" / "bad_manifest.jsonl"))
    assert_census_agrees(result)
    assert [d.failure.reason if d.failure else "" for d in result.documents] == [
        "",
        "",
        "",
        "time-not-understood",
        "time-not-understood",
        "json-invalid",
    ]
    wrong, absent, climbs = (audio_of(d) for d in result.documents[:3])
    assert absent.failure is not None
    assert absent.failure.outcome == Outcome.FAILED_UPSTREAM
    assert absent.failure.reason == "audio-not-found"
    assert climbs.failure is not None
    assert climbs.failure.reason == "path-outside-source"
    assert wrong.data is not None
    with pytest.raises(ItemError, match="audio-segment"):  # of 99 seconds, of a file of half a second
        load_audio(wrong.data, 16000, 1, segment=Segment(wrong.start, wrong.seconds))


def test_the_real_manifest_is_read_and_its_durations_hold(shared_data: Path) -> None:
    result = read_all(source_of("audio_manifest", shared_data / "audio" / "manifest.jsonl"))
    assert_census_agrees(result)
    assert len(result.good) == len(result.documents) == 166
    assert sum(len(d.segments) == 2 for d in result.documents) == 147
    assert not result.item_failures
    for document in result.documents[::7]:
        item = audio_of(document)
        assert item.data is not None
        whole = load_audio(item.data, 16000, 1)
        segment = load_audio(item.data, 16000, 1, segment=Segment(item.start, item.seconds))
        assert np.array_equal(segment, whole), item.ref  # rounding a duration cuts nothing off


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"audio_filepath": 3}, "audio-not-named"),
        ({"text": "x"}, "audio-not-named"),
        ({"audio_filepath": ["a.wav", "b.wav"]}, "audio-not-named"),
        ({"audio_filepath": "a.wav", "offset": True}, "time-not-understood"),
        ({"audio_filepath": "a.wav", "duration": 1e12}, "time-not-understood"),
        ({"audio_filepath": "a.wav", "text": ["x"]}, "text-not-a-string"),
        ("[1]", "not-an-object"),
    ],
)
def test_a_line_that_cannot_be_understood_is_rejected(tmp_path: Path, entry: object, reason: str) -> None:
    sound(tmp_path / "a.wav")
    assert read("audio_manifest", lines(tmp_path / "m.jsonl", [entry])).reasons == {reason: 1}


def test_nothing_outside_of_the_source_is_opened(tmp_path: Path) -> None:
    sound(tmp_path / "out.wav")
    sound(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "link.wav").symlink_to(tmp_path / "out.wav")
    names = ["../out.wav", str(tmp_path / "out.wav"), "link.wav", "/etc/passwd", "a\0.wav", "n" * 5000]
    manifest = lines(tmp_path / "in" / "m.jsonl", [{"audio_filepath": name} for name in names])
    items = [audio_of(d) for d in read("audio_manifest", manifest).documents]
    reasons = [item.failure.reason for item in items if item.failure is not None]
    assert len(reasons) == len(names)
    assert reasons[:4] == ["path-outside-source"] * 4
    assert set(reasons[4:]) == {"audio-not-found"}


# ---- lhotse


def cut(number: int, start: float, seconds: float, *texts: str, **recording: object) -> dict[str, object]:
    spoken = [
        {"id": f"s{n}", "start": len(texts) - n, "duration": 1.0, "text": text, "language": "en", "speaker": f"p{n}"}
        for n, text in enumerate(texts)
    ]
    made: dict[str, object] = {
        "id": "rec",
        "sources": [{"type": "file", "channels": [0], "source": "audio/r.flac"}],
        "sampling_rate": RATE,
        "num_samples": 3 * RATE,
        "duration": 3.0,
        "channel_ids": [0],
    }
    return {
        "id": f"cut-{number}",
        "start": start,
        "duration": seconds,
        "channel": 0,
        "supervisions": spoken,
        "recording": made | recording,
        "custom": {"quality": number},
        "type": "MonoCut",
    }


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_are_segments_with_the_texts_of_their_supervisions(tmp_path: Path, name: str) -> None:
    sound(tmp_path / "audio" / "r.flac", 3.0)
    entries: list[object] = [cut(0, 0.0, 3.0, "one"), cut(1, 0.5, 1.25, "second", "first"), cut(2, 2.0, 1.0)]
    result = read("lhotse", lines(tmp_path / name, entries))
    assert [said(d)[1:] for d in result.documents] == [["one"], ["first second"], []]
    assert [d.id for d in result.documents] == ["cut-0", "cut-1", "cut-2"]
    items = [audio_of(d) for d in result.documents]
    assert [(i.start, i.seconds) for i in items] == [(0.0, None), (0.5, 1.25), (2.0, 1.0)]
    assert items[1].data is not None
    part = load_audio(items[1].data, RATE, 1, segment=Segment(items[1].start, items[1].seconds))
    assert np.abs(part[0] - tone(3.0)[4000:14000]).max() < 1e-4
    assert result.documents[1].metadata == {"quality": 1, "recording_id": "rec", "language": "en", "speaker": ["p1", "p0"]}
    assert recognised(tmp_path) == {"lhotse": name}


def test_recordings_are_sounds_alone(tmp_path: Path) -> None:
    data = sound(tmp_path / "audio" / "r.flac", 3.0)
    result = read("lhotse", lines(tmp_path / "recordings.jsonl.gz", [cut(0, 0, 1)["recording"]]))
    (document,) = result.documents
    assert (document.id, said(document), audio_of(document).data) == ("rec", ["<audio/r.flac>"], data)
    assert recognised(tmp_path) == {"lhotse": "recordings.jsonl.gz"}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (cut(0, 0, 1) | {"type": "MixedCut"}, "cut-not-understood"),
        (cut(0, 0, 1) | {"recording": None}, "cut-not-understood"),
        (cut(0, 0, 1, sources=[{"type": "url", "channels": [0], "source": "http://x/a.wav"}]), "cut-not-understood"),
        (cut(0, 0, 1, sources=[{"type": "command", "channels": [0], "source": "cat a"}]), "cut-not-understood"),
        (cut(0, 0, 1, sources=[{"type": "file", "channels": [0, 1], "source": "audio/r.flac"}]), "cut-not-understood"),
        (cut(0, 0, 1, transforms=[{"name": "Speed"}]), "cut-not-understood"),
        (cut(0, -1, 1), "time-not-understood"),
        (cut(0, 0, 0), "time-not-understood"),
        (cut(0, 0, 1) | {"supervisions": [{"text": 3}]}, "text-not-a-string"),
        ({"text": "x"}, "cut-not-understood"),
    ],
)
def test_a_cut_that_cannot_be_read_as_it_is_meant_is_rejected(tmp_path: Path, entry: object, reason: str) -> None:
    sound(tmp_path / "audio" / "r.flac", 3.0)
    assert read("lhotse", lines(tmp_path / "cuts.jsonl", [entry])).reasons == {reason: 1}


def recording(number: int, seconds: float, *channels: int, **changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "id": f"rec-{number}",
        "sources": [{"type": "file", "channels": list(channels or (0,)), "source": f"audio/{number}.wav"}],
        "sampling_rate": RATE,
        "num_samples": round(seconds * RATE),
        "duration": seconds,
        "channel_ids": list(channels or (0,)),
    }
    return made | changes


def supervision(number: int, of: int, start: float, seconds: float, text: str | None, **changes: object) -> dict[str, object]:
    made: dict[str, object] = {"id": f"sup-{number}", "recording_id": f"rec-{of}", "start": start, "duration": seconds}
    made |= {"channel": 0, "text": text, "language": "en", "speaker": f"p{number}", "alignment": {"word": []}}
    return {key: value for key, value in (made | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("recordings", "supervisions"),
    [
        ("recordings.jsonl", "supervisions.jsonl"),
        ("libri_recordings_dev.jsonl.gz", "libri_supervisions_dev.jsonl.gz"),
        ("r_recordings_all.jsonl", "r_supervisions_all.jsonl.gz"),
    ],
)
def test_supervisions_are_stretches_of_the_recordings_beside_them(tmp_path: Path, recordings: str, supervisions: str) -> None:
    one, two = sound(tmp_path / "audio" / "0.wav", 2.0), sound(tmp_path / "audio" / "1.wav", 1.0, pitch=500)
    lines(tmp_path / recordings, [recording(1, 1.0), recording(0, 2.0), recording(2, 3.0)])
    spoken = lines(
        tmp_path / supervisions,
        [
            supervision(0, 0, 1.0, 0.5, "the middle", custom={"mos": 4.5}),
            supervision(1, 1, 0.0, 1.0, "all of it"),
            supervision(2, 0, 0.0, 0.75, None, speaker=None),
        ],
    )
    result = read("lhotse", spoken, root=tmp_path)
    assert [d.id for d in result.documents] == ["sup-0", "sup-1", "sup-2"]
    assert [said(d) for d in result.documents] == [
        ["<audio/0.wav>", "the middle"],
        ["<audio/1.wav>", "all of it"],
        ["<audio/0.wav>"],
    ]
    items = [audio_of(d) for d in result.documents]
    assert [i.data for i in items] == [one, two, one]
    assert [(i.start, i.seconds) for i in items] == [(1.0, 0.5), (0.0, None), (0.0, 0.75)]
    assert result.documents[0].metadata == {"recording_id": "rec-0", "language": "en", "speaker": "p0", "mos": 4.5}
    part = load_audio(one, RATE, 1, segment=Segment(items[0].start, items[0].seconds))
    assert np.abs(part[0] - tone(2.0)[8000:12000]).max() < 1e-4
    assert recognised(tmp_path) == {"lhotse": supervisions}
    (source,) = resolve_inputs([str(tmp_path)]).sources
    assert [file.name for file in source.companions()] == [recordings]  # a change of it is noticed


def test_the_recordings_beside_supervisions_can_be_had_by_themselves(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "0.wav", 2.0)
    lines(tmp_path / "recordings.jsonl", [recording(0, 2.0)])
    lines(tmp_path / "supervisions.jsonl", [supervision(0, 0, 1.0, 0.5, "x")])
    with pytest.raises(ConfigError, match=r"recordings\.jsonl goes with supervisions\.jsonl"):
        resolve_inputs([str(tmp_path / "recordings.jsonl")])
    (source,) = resolve_inputs([f"lhotse:{tmp_path / 'recordings.jsonl'}"]).sources
    assert [said(d) for d in read_all(source).documents] == [["<audio/0.wav>"]]


def test_a_supervision_whose_recording_is_missing_was_lost_upstream(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "0.wav", 2.0)
    lines(
        tmp_path / "recordings.jsonl", [recording(0, 2.0), recording(2, 2.0), recording(2, 1.0), recording(3, 1.0), "{", "[]"]
    )
    entries = [supervision(n, of, 0.0, 0.5, "x") for n, of in enumerate((0, 1, 2, 3))]
    result = read("lhotse", lines(tmp_path / "supervisions.jsonl", list(entries)))
    failures = [audio_of(d).failure for d in result.documents]
    assert [None if f is None else (f.outcome, f.reason) for f in failures] == [
        None,
        (Outcome.FAILED_UPSTREAM, "recording-not-found"),
        (Outcome.FAILED_UPSTREAM, "recording-not-unique"),
        (Outcome.FAILED_UPSTREAM, "audio-not-found"),
    ]
    assert failures[1] is not None
    assert failures[1].message == "recordings.jsonl has none of this id; 2 of its lines are no recordings"
    (tmp_path / "recordings.jsonl").unlink()
    failure = audio_of(read("lhotse", tmp_path / "supervisions.jsonl").documents[0]).failure
    assert failure is not None
    assert failure.reason == "recording-not-found"
    assert "no manifest of recordings beside supervisions.jsonl" in failure.message


def test_damage_in_the_recordings_is_told_by_those_that_miss_one(tmp_path: Path) -> None:
    for number in range(2):
        sound(tmp_path / "audio" / f"{number}.wav", 2.0)
    many = lines(tmp_path / "recordings.jsonl.gz", [recording(n, 2.0, pad=f"{n * 7919:x}") for n in range(4000)])
    many.write_bytes(many.read_bytes()[:-2000])
    spoken = lines(tmp_path / "supervisions.jsonl", [supervision(n, of, 0.0, 0.5, "x") for n, of in enumerate((0, 3999))])
    first, last = (audio_of(d) for d in read("lhotse", spoken).documents)
    assert first.data is not None
    assert last.failure is not None
    assert "it is damaged, and not read to its end" in last.failure.message


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (supervision(0, 0, 0.0, 0.0, "x"), "time-not-understood"),
        (supervision(0, 0, -1.0, 1.0, "x"), "time-not-understood"),
        (supervision(0, 0, 0.0, 1.0, "x") | {"text": ["x"]}, "text-not-a-string"),
        (supervision(0, 0, 0.0, 1.0, "x") | {"recording_id": 3}, "cut-not-understood"),
        (supervision(0, 1, 0.0, 1.0, "x"), "cut-not-understood"),  # channel 0 of a file of two
        (supervision(0, 2, 0.0, 1.0, "x"), "cut-not-understood"),  # of a recording on the web
    ],
)
def test_a_supervision_that_cannot_be_read_as_it_is_meant_is_rejected(tmp_path: Path, entry: object, reason: str) -> None:
    sound(tmp_path / "audio" / "0.wav", 2.0)
    web = [{"type": "url", "channels": [0], "source": "https://x.example/a.wav"}]
    lines(tmp_path / "recordings.jsonl", [recording(0, 2.0), recording(1, 2.0, 0, 1), recording(2, 2.0, sources=web)])
    assert read("lhotse", lines(tmp_path / "supervisions.jsonl", [entry])).reasons == {reason: 1}


def test_channels_are_taken_where_a_file_holds_just_them(tmp_path: Path) -> None:
    left, right = sound(tmp_path / "audio" / "l.wav"), sound(tmp_path / "audio" / "r.wav", pitch=500)
    files = [{"type": "file", "channels": [n], "source": f"audio/{name}.wav"} for n, name in enumerate("lr")]
    lines(tmp_path / "recordings.jsonl", [recording(0, 1.0, sources=files), recording(1, 1.0, 0, 1)])
    spoken = lines(
        tmp_path / "supervisions.jsonl",
        [
            supervision(0, 0, 0.0, 0.5, "a"),
            supervision(1, 0, 0.0, 0.5, "b", channel=1),
            supervision(2, 1, 0, 1, "c", channel=[0, 1]),
        ],
    )
    sound(tmp_path / "audio" / "1.wav", pitch=700)
    assert [audio_of(d).data for d in read("lhotse", spoken).documents][:2] == [left, right]
    both = cut(0, 0.0, 1.0, "both") | {"type": "MultiCut", "channel": [0, 1], "recording": recording(1, 1.0, 0, 1)}
    assert [d.failure for d in read("lhotse", lines(tmp_path / "cuts.jsonl", [both])).documents] == [None]


# ---- LibriSpeech


def test_librispeech_folders(tmp_path: Path) -> None:
    chapter = tmp_path / "dev" / "84" / "121123"
    one, two = sound(chapter / "84-121123-0000.flac"), sound(chapter / "84-121123-0001.flac", pitch=500)
    (chapter / "84-121123.trans.txt").write_text(
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS\n84-121123-0002 LOST\n"
    )
    other = tmp_path / "dev" / "85" / "1"
    sound(other / "85-1-0000.wav")
    (other / "85-1.trans.txt").write_text("85-1-0000 ANOTHER\nno-text\n\n../../x y\n")
    result = read("librispeech", chapter / "84-121123.trans.txt", other / "85-1.trans.txt", root=tmp_path)
    good = result.good
    assert [d.id for d in good] == ["84-121123-0000", "84-121123-0001", "84-121123-0002", "85-1-0000"]
    assert [audio_of(d).data for d in good][:2] == [one, two]
    assert said(good[0]) == ["<84-121123-0000.flac>", "GO DO YOU HEAR"]
    assert good[0].metadata == {"speaker": "84", "chapter": "121123"}
    assert said(good[3]) == ["<85-1-0000.wav>", "ANOTHER"]
    assert result.item_failures == {"audio-not-found": 1}
    assert result.reasons == {"line-not-understood": 2}
    assert recognised(tmp_path) == {
        "librispeech": "dev/84/121123/84-121123.trans.txt,dev/85/1/85-1.trans.txt",
    }


def test_librispeech_ids_that_no_file_can_have(tmp_path: Path) -> None:
    sound(tmp_path / "1-2-0000.flac")
    (tmp_path / "1-2.trans.txt").write_text(f"1-2-0000 GOOD\n1-2-{'n' * 300} LONG\n1-2-\0 ZERO\n.. DOTS\n")
    result = read("librispeech", tmp_path / "1-2.trans.txt")
    assert [said(d)[-1] for d in result.good] == ["GOOD", "LONG", "ZERO", "DOTS"]
    assert result.item_failures == {"audio-not-found": 3}


# ---- Common Voice


def test_common_voice_tables(tmp_path: Path) -> None:
    data = sound(tmp_path / "clips" / "common_voice_en_1.wav")
    heading = "client_id\tpath\tsentence\tup_votes\tage\taccents\n"
    rows = 'c1\tcommon_voice_en_1.wav\tHe said "go" and\u2019 went.\t2\t\tUS\nc2\tcommon_voice_en_2.wav\t"Lost"\t1\t\t\nc3\tx\n'
    (tmp_path / "train.tsv").write_text(heading + rows)
    result = read("common_voice", tmp_path / "train.tsv")
    first, second = result.good
    assert said(first) == ["<common_voice_en_1.wav>", 'He said "go" and\u2019 went.']
    assert audio_of(first).data == data
    assert first.metadata == {"client_id": "c1", "up_votes": "2", "accents": "US"}
    assert audio_of(second).failure is not None
    assert result.reasons == {"field-count": 1}
    assert recognised(tmp_path) == {"common_voice": "train.tsv"}
    (tmp_path / "dev.tsv").write_text(heading)
    assert read("common_voice", tmp_path / "dev.tsv").documents == []


def test_common_voice_of_another_heading_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("path\tvotes\na.wav\t1\n")
    assert read("common_voice", tmp_path / "a.tsv").reasons == {"columns-missing": 1}
