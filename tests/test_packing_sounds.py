"""Sounds in packing plans: cut at frame boundaries alone, where policy and layout allow it; every token exactly once."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.data.packed import MODALITY_IDS, PackedDataset
from tokkit.errors import FingerprintMismatch, MalformedSequence, MediaTooLongError
from tokkit.interleave import AudioCodes, AudioPiece, ImageCodes, Layout, Part, TextCodes, decode, encode
from tokkit.packing.advise import advise, common_media
from tokkit.packing.cuts import cut_within, must_hold
from tokkit.packing.plan import PackPlan, plan_packs
from tokkit.packing.policy import SplitPolicy, TooLong
from tokkit.packing.split import REASONS, Reason, split_documents
from tokkit.packing.store import StoredPlan, load_plan, pack_folder
from tokkit.packing.too_long import media_too_long
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.verify_packs import check_packs
from tokkit.shards.native import open_shards
from tokkit.shards.spans import SpanTable
from tokkit.storage import digest_of, pretty_json
from tokkit.vocabulary import MODALITIES, UnifiedVocabulary

NEVER, OVERLONG, FILL = SplitPolicy.NEVER, SplitPolicy.OVERLONG, SplitPolicy.FILL
TEXT, IMAGE, AUDIO = (MODALITIES.index(name) for name in ("text", "image", "audio"))
VOCABULARY = UnifiedVocabulary.build(500, [64], [16, 16, 9], audio_pads=True)
LAYOUTS = {
    "flat": Layout(),
    "delay": Layout(audio="delay"),
    "odd delays": Layout(audio="delay", audio_delays=(2, 0, 3)),
    "book_major": Layout(audio="book_major"),
}


def allowed(begin: int, length: int, modality: int, frame: int) -> list[int]:
    """All places inside of a span at which it may be cut, by the rule as it is told."""
    if modality == TEXT:
        return list(range(begin + 1, begin + length))
    if not frame:
        return []
    borders = range(begin + 1, begin + length, frame)  # behind the begin marker, behind each frame
    return list(borders)[1:-1]  # a marker is never alone


@settings(deadline=None, max_examples=300)
@given(st.data(), st.integers(0, 5), st.integers(0, 6), st.integers(1, 12))
def test_the_last_place_to_cut_is_found(data: st.DataObject, begin: int, frame: int, number: int) -> None:
    modality = data.draw(st.sampled_from([TEXT, IMAGE, AUDIO]))
    frame = frame if modality == AUDIO else 0
    length = 2 + frame * number if frame else number + 1
    limit = data.draw(st.integers(begin + 1, begin + length - 1))
    places = [place for place in allowed(begin, length, modality, frame) if place <= limit]
    assert cut_within(limit, begin, length, modality, frame) == max(places, default=begin)
    if modality != TEXT:
        edges = [begin, *allowed(begin, length, modality, frame), begin + length]
        assert must_hold(length, frame) == max(b - a for a, b in pairwise(edges))


@st.composite
def documents_with_sounds(draw: st.DrawFn) -> tuple[list[int], SpanTable]:
    """Documents of text, pictures, sounds that may be cut and such that may not, between document markers or not."""
    lengths, offsets, rows = [], [0], []
    for _ in range(draw(st.integers(0, 10))):
        position = draw(st.integers(0, 1))
        for kind in draw(st.lists(st.sampled_from([TEXT, IMAGE, AUDIO, AUDIO]), max_size=5)):
            frame = draw(st.integers(0, 5)) if kind == AUDIO else 0
            size = 2 + frame * draw(st.integers(1, 12)) if frame else draw(st.integers(0, 25))
            rows.append((position, size, kind, frame))
            position += size
        lengths.append(position + draw(st.integers(0, 1)))
        offsets.append(len(rows))
    flat = np.array(rows, dtype=np.int64).reshape(-1, 4)
    columns = flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].astype(np.uint8)
    return lengths, SpanTable(np.array(offsets, dtype=np.int64), *columns, frame=flat[:, 3].astype(np.int32))


def spans_of(table: SpanTable, document: int) -> list[tuple[int, int, int, int]]:
    rows = slice(int(table.offsets[document]), int(table.offsets[document + 1]))
    columns = table.start[rows], table.length[rows], table.modality[rows], table.frames[rows]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def by_document(plan: PackPlan | StoredPlan) -> dict[int, list[tuple[int, int]]]:
    """The pieces of each document, first and one behind the last token, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    pieces = plan.pieces
    for d, s, n in zip(pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True):
        found.setdefault(d, []).append((s, s + n))
    return {d: sorted(stretches) for d, stretches in found.items()}


def textbook(length: int, spans: list[tuple[int, int, int, int]], seq_len: int) -> list[tuple[int, int]] | None:
    """``overlong`` one place at a time: the last place that a document may be cut at; None where there is none."""
    barred = set()
    for begin, size, modality, frame in spans:
        places = allowed(begin, size, modality, frame if size > seq_len else 0)
        barred |= set(range(begin + 1, begin + size)) - set(places)
    pieces, position = [], 0
    while length - position > seq_len:
        cut = next((place for place in range(position + seq_len, position, -1) if place not in barred), None)
        if cut is None:
            return None
        pieces.append((position, cut))
        position = cut
    return [*pieces, (position, length)]


@settings(deadline=None, max_examples=300)
@given(
    documents_with_sounds(),
    st.integers(1, 30),
    st.sampled_from([NEVER, OVERLONG, OVERLONG, FILL, FILL]),
    st.sampled_from([1, 1, 2, 3, 8]),
    st.sampled_from([0.0, 0.0, 0.5]),
)
def test_every_token_once_and_no_cut_but_between_frames(
    documents: tuple[list[int], SpanTable], seq_len: int, policy: SplitPolicy, align: int, mixing: float
) -> None:
    lengths, table = documents
    seq_len = -(-seq_len // align) * align
    plan = plan_packs(np.array(lengths, dtype=np.int64), table, seq_len, policy, align=align, mixing=mixing)
    used = [sum(-(-n // align) * align for n in plan.pack(k).length.tolist()) for k in range(plan.num_packs)]
    assert max(used, default=0) <= seq_len
    pieces, left_out = by_document(plan), plan.left_out
    assert plan.num_tokens + left_out.num_tokens == sum(lengths)
    assert set(pieces) | set(left_out.document.tolist()) == set(range(len(lengths)))
    for d, stretches in pieces.items():
        assert [0, *(e for _, e in stretches)] == [*(s for s, _ in stretches), lengths[d]]
        spans = spans_of(table, d)
        for cut, _ in stretches[1:]:
            for begin, size, modality, frame in spans:
                if begin < cut < begin + size:
                    assert policy is not NEVER
                    assert cut in allowed(begin, size, modality, frame)
        if policy is OVERLONG:
            expected = textbook(lengths[d], spans, seq_len) if lengths[d] > seq_len else [(0, lengths[d])]
            assert stretches == expected
    for d, reason, needs in zip(
        left_out.document.tolist(), [REASONS[r] for r in left_out.reason.tolist()], left_out.needs.tolist(), strict=True
    ):
        if reason is Reason.ATOMIC_SPAN:
            assert textbook(lengths[d], spans_of(table, d), seq_len) is None
            for enough, fits in ((needs, True), (needs - 1, False)):
                again = split_documents(np.array(lengths, dtype=np.int64), table, enough, policy)[1]
                assert (d not in again.document) == fits
    assert plan.algorithm_version == (2 if _may_cut(table, seq_len, policy) else 1)


def _may_cut(table: SpanTable, seq_len: int, policy: SplitPolicy) -> bool:
    sounds = table.length[table.frames > 0]
    return {NEVER: False, OVERLONG: bool((sounds > seq_len).any()), FILL: bool(len(sounds))}[policy]


@settings(deadline=None, max_examples=100)
@given(documents_with_sounds(), st.integers(1, 40), st.sampled_from([1, 4]))
def test_plans_with_sounds_that_stay_whole_are_those_of_before(
    documents: tuple[list[int], SpanTable], seq_len: int, align: int
) -> None:
    """Nothing changes but where a sound is longer than a sequence, or ``fill`` may cut it."""
    lengths, table = np.array(documents[0], dtype=np.int64), documents[1]
    whole = replace(table, frame=None)
    for policy in SplitPolicy:
        with_frames, without = (plan_packs(lengths, spans, align * seq_len, policy, align=align) for spans in (table, whole))
        if with_frames.algorithm_version == 1:
            for name in ("document", "start", "length"):
                assert np.array_equal(getattr(with_frames.pieces, name), getattr(without.pieces, name))
        assert without.algorithm_version == 1


def test_fill_cuts_sounds_where_whole_ones_leave_holes() -> None:
    """Clips of 10 s, 6,002 tokens: one to a sequence of 8,192 where none is cut, and hardly a hole where they are."""
    many, clip = 1200, 2 + 750 * 8
    lengths = np.full(many, clip + 32)
    start = np.tile([1, 1 + clip], many)
    spans = SpanTable(
        2 * np.arange(many + 1),
        start,
        np.tile([clip, 30], many),
        np.tile(np.array([AUDIO, TEXT], dtype=np.uint8), many),
        frame=np.tile(np.array([8, 0], dtype=np.int32), many),
    )
    whole, filled = (plan_packs(lengths, spans, 8192, policy) for policy in (OVERLONG, FILL))
    assert whole.num_packs == many
    assert filled.efficiency > 0.985
    assert filled.algorithm_version == 2
    cut = filled.pieces.start[(filled.pieces.start > 1) & (filled.pieces.start < 1 + clip)]
    assert len(cut) > many // 4
    assert ((cut - 2) % 8 == 0).all()


# ---- of a directory


def words(count: int) -> TextCodes:
    return TextCodes(np.arange(count, dtype=np.int32))


def sound(books: int, frames: int, seed: int = 0) -> AudioCodes:
    codes = np.random.default_rng(seed).integers(0, 9, (books, frames)).astype(np.int32)
    return AudioCodes(codes, 24_000, 320 * frames, f"{seed:032x}")


PICTURE = ImageCodes(np.arange(16, dtype=np.int32).reshape(1, 4, 4))
DOCUMENTS: list[list[Part]] = [
    [sound(3, 50, 1), words(20)],
    [words(15), sound(3, 9, 2), PICTURE, sound(3, 31, 3)],
    [words(25)],
    [PICTURE, words(10)],
    [sound(2, 1, 4), words(3), sound(1, 90, 5)],
    [sound(3, 14, 6)],
]
LENGTH = 40


def written(path: Path, layout: Layout) -> Path:
    documents = [encode(parts, VOCABULARY, layout) for parts in DOCUMENTS]
    return packing_corpus.write_directory(path, {"train": documents}, vocabulary=VOCABULARY, layout=layout)


def packed(directory: Path, seq_len: int = LENGTH, **options: object) -> StoredPlan:
    config = PackConfig.model_validate({"directory": directory, "seq_len": seq_len, **options})
    pack(config, SilentProgress())
    return load_plan(pack_folder(directory, config.plan_name, "train"))


def steps(codes: np.ndarray, layout: Layout) -> np.ndarray:
    """A sound's rows [K, S] as its layout has them, -1 where a pad stands."""
    if layout.audio == "flat":
        return codes
    late = layout.audio_delays[: len(codes)] or tuple(range(len(codes)))
    found = np.full((len(codes), codes.shape[1] + max(late)), -1, dtype=np.int32)
    for book, delay in enumerate(late):
        found[book, delay : delay + codes.shape[1]] = codes[book]
    return found


@pytest.mark.parametrize("policy", [OVERLONG, FILL])
@pytest.mark.parametrize("name", ["flat", "delay", "odd delays"])
def test_the_pieces_of_a_sound_are_its_frames_one_after_another(tmp_path: Path, name: str, policy: SplitPolicy) -> None:
    layout = LAYOUTS[name]
    directory = written(tmp_path / "out", layout)
    plan = packed(directory, split_policy=policy)
    assert plan.record.algorithm_version == 2
    assert not plan.record.left_out
    shards, cut = open_shards(directory, "train"), 0
    for d, stretches in by_document(plan).items():
        found: list[Part | AudioPiece] = []
        for first, last in stretches:
            for part in decode(shards.tokens(d, first, last), VOCABULARY, layout, whole=False):
                previous = found[-1] if found else None
                if isinstance(part, AudioPiece) and not part.begins:
                    assert isinstance(previous, AudioPiece)
                    assert not previous.ends
                    found[-1] = AudioPiece(np.concatenate([previous.codes, part.codes], axis=1), previous.begins, part.ends)
                    cut += 1
                elif isinstance(part, TextCodes) and isinstance(previous, TextCodes):
                    found[-1] = TextCodes(np.concatenate([previous.codes, part.codes]))
                else:
                    found.append(part)
        assert len(found) == len(DOCUMENTS[d])
        for part, expected in zip(found, DOCUMENTS[d], strict=True):
            if isinstance(part, AudioPiece):
                assert part.begins
                assert part.ends
                assert isinstance(expected, AudioCodes)
                assert np.array_equal(part.codes, steps(expected.codes, layout))
            else:
                assert np.array_equal(part.codes, expected.codes)
    assert cut == plan.record.by_modality["audio"].frame_cuts > plan.record.by_modality["audio"].cut_spans > 0
    assert plan.record.by_modality["image"].cut_spans == 0
    assert not problems(directory)


def test_what_is_no_piece_of_a_sound_is_refused() -> None:
    layout = LAYOUTS["delay"]
    ids, (span,) = encode([sound(3, 5)], VOCABULARY, layout)
    body = ids[span.start + 1 : span.start + span.length - 1]
    again = np.concatenate([body[-3:], body[:3]])
    for wrong in (body[1:], body[:-1], again, np.concatenate([ids[1:2], body[3:]]), np.concatenate([body[3:-3], ids[-2:]])):
        with pytest.raises(MalformedSequence):
            decode(wrong, VOCABULARY, layout, whole=False)
    with pytest.raises(MalformedSequence, match="expected audio code or end_audio"):
        decode(np.concatenate([body[-3:], ids[:1]]), VOCABULARY, layout, whole=False)
    with pytest.raises(MalformedSequence):
        decode(body, VOCABULARY, layout)


def test_where_sounds_have_no_frames_they_stay_whole(tmp_path: Path) -> None:
    directory = written(tmp_path / "out", LAYOUTS["book_major"])
    assert open_shards(directory, "train").spans.frame is None
    for policy in (OVERLONG, FILL):
        with pytest.raises(MediaTooLongError, match="4 audio spans") as refused:
            packed(directory, split_policy=policy)
        assert "overlong" not in str(refused.value)
        plan = packed(directory, split_policy=policy, too_long=TooLong.LEAVE_OUT)
        assert plan.record.by_modality["audio"].left_out_spans == 6
        assert plan.record.algorithm_version == 1


def test_never_refuses_them_and_says_what_would_cut_them(tmp_path: Path) -> None:
    directory = written(tmp_path / "out", LAYOUTS["flat"])
    with pytest.raises(MediaTooLongError, match=r"the longest of 152 tokens.*--split overlong") as refused:
        packed(directory, split_policy=NEVER)
    assert refused.value.needs == 152
    assert packed(directory, split_policy=NEVER, too_long=TooLong.LEAVE_OUT).record.algorithm_version == 1


def test_a_frame_must_fit(tmp_path: Path) -> None:
    """Of sounds a marker and a frame; of all the longest picture, 18 tokens."""
    directory = written(tmp_path / "out", LAYOUTS["flat"])
    with pytest.raises(MediaTooLongError, match="image spans") as refused:
        packed(directory, 17)
    assert refused.value.needs == 18
    assert "audio" not in str(refused.value)
    packed(directory, 18)
    spans = open_shards(directory, "train").spans
    lengths = open_shards(directory, "train").lengths
    found = media_too_long(lengths, spans, 3)
    assert found is not None
    assert found.longest == {"image": 18, "audio": 4}
    assert [row.too_long for row in advise(lengths, spans, [3, 4, 17, 18])] == [5, 2, 2, 0]
    assert [row.too_long for row in advise(lengths, spans, [18, 152], NEVER)] == [4, 0]
    media = common_media(lengths, spans)
    assert media is not None
    assert (media.length, media.held) == (152, 4)


def test_a_damaged_length_is_cut_nowhere() -> None:
    import pyarrow as pa

    from tokkit.shards.spans import SPAN_TYPE, span_to_dict

    _, spans = encode([sound(3, 5), sound(3, 5), words(2)], VOCABULARY, Layout())
    rows = [span_to_dict(span) for span in (spans[0], replace(spans[1], length=spans[1].length - 1), spans[2])]
    column = pa.chunked_array([pa.array([rows], type=pa.list_(SPAN_TYPE))])
    assert SpanTable.from_columns([column], "flat").frames.tolist() == [3, 0, 0]
    assert SpanTable.from_columns([column], "delay").frames.tolist() == [3, 0, 0]
    assert SpanTable.from_columns([column], "book_major").frame is None
    assert SpanTable.from_columns([column]).frame is None


def test_rows_have_the_pieces_with_their_modalities(tmp_path: Path) -> None:
    directory = written(tmp_path / "out", LAYOUTS["delay"])
    plan = packed(directory, split_policy=FILL, materialize=True)
    rows, shards = PackedDataset(directory, plan.record.name), open_shards(directory, "train")
    sounds = boundaries = 0
    for number in range(len(rows)):
        row, at = rows[number], 0
        pieces = plan.pack(number)
        for d, s, n in zip(pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True):
            assert row["input_ids"][at : at + n].tolist() == shards.tokens(d, s, s + n).tolist()
            at += n
        sounds += int((row["modality_ids"] == MODALITY_IDS["audio"]).sum())
        boundaries += int((row["modality_ids"] == MODALITY_IDS["audio-boundary"]).sum())
    audio = shards.spans.modality == AUDIO
    assert (boundaries, sounds) == (2 * audio.sum(), shards.spans.length[audio].sum() - 2 * audio.sum())


def problems(directory: Path) -> list[str]:
    result = VerifyResult()
    check_packs(directory, {"train": open_shards(directory, "train")}, False, result, SilentProgress())
    return [str(problem) for problem in result.problems]


@pytest.mark.parametrize("shift", [1, -1])
def test_verify_finds_a_sound_that_is_cut_within_a_frame(tmp_path: Path, shift: int) -> None:
    directory = written(tmp_path / "out", LAYOUTS["flat"])
    plan = packed(directory, 64)
    assert not problems(directory)
    start, length = (np.array(a) for a in (plan.pieces.start, plan.pieces.length))
    (first,), (second,) = (np.flatnonzero((plan.pieces.document == 0) & (start == at)) for at in (0, start[start > 0].min()))
    assert start[second] == length[first]
    length[first] += shift
    start[second] += shift
    length[second] -= shift
    np.save(plan.folder / "piece_start.npy", start)
    np.save(plan.folder / "piece_length.npy", length)
    found = problems(directory)
    assert any("document 0 is cut at token" in problem or "in sequences of" in problem for problem in found), found


def test_a_plan_of_the_version_that_cut_no_sound_is_not_taken_for_this_one(tmp_path: Path) -> None:
    directory = written(tmp_path / "out", LAYOUTS["flat"])
    plan = packed(directory)
    packed(directory)  # found again
    record = plan.folder / "plan.json"
    entry = json.loads(record.read_text()) | {"algorithm_version": 1}
    record.write_text(pretty_json(entry | {"digest": digest_of(entry)}))
    with pytest.raises(FingerprintMismatch, match="algorithm version 1 there, 2 asked for"):
        packed(directory)


def test_the_commands(tmp_path: Path) -> None:
    directory = written(tmp_path / "out", LAYOUTS["flat"])
    run = CliRunner()
    told = run.invoke(app, ["pack", str(directory), "--advise", "--seq-len", "17", "--seq-len", "64", "--quiet"])
    assert told.exit_code == 0, told.output
    words = " ".join(told.output.split())
    assert "Up to 18 tokens of media must stay together. Too short for some: 17 (2 documents)" in words
    assert "Where none is cut" in words
    assert "None is cut" in " ".join(
        run.invoke(app, ["pack", str(directory), "--advise", "--seq-len", "64", "--split", "never", "--quiet"]).output.split()
    )
    done = run.invoke(app, ["pack", str(directory), "--seq-len", "64", "--json", "--quiet"])
    assert json.loads(done.output)["splits"]["train"]["by_modality"]["audio"]["frame_cuts"] > 0
    shown = run.invoke(app, ["pack", str(directory), "--seq-len", "64", "--quiet"])
    assert "cuts in sounds" in " ".join(shown.output.split())
