"""Every odd or broken file beside the real corpora, and what must become of it.

The table says it of each file, from what ``MANIFEST.jsonl`` tells of how the file was made. Each file then goes through the
code that reads its kind, and all of them together through one run, whose outcomes must be the table's and no others.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from PIL import ImageOps
from shard_corpus import write_tokenizers
from sources_helpers import assert_census_agrees, assert_same_for_all_cuts, read_all, source_of, tar_bytes

from tokkit.documents import Audio, Image, Outcome, Text
from tokkit.errors import ConfigError, ItemError
from tokkit.media.images import decode_image
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.sources.resolve import resolve_inputs

Place = str | int
"""Where in its file a document is: the key of a sample, the number of a line (from 1) or of a row (from 0), or "" for a file
that is one document."""


@dataclass(frozen=True)
class Expected:
    """What must become of a file.

    Attributes:
        documents: how many the source hands on; the media in them may still be lost.
        failures: documents that the source cannot hand on: where each is, and the reason.
        lost: media items that are lost, of documents that the source hands on: where the document is, and the reason.
        damage: reason and range of bytes of what cannot be read at all.
        format: what the file is read as, where its name does not say so; "" for a file that is read as nothing.
        nothing_left: documents that are no pairs and lose all that they have.
    """

    documents: int
    failures: dict[Place, str] | None = None
    lost: tuple[tuple[Place, str], ...] = ()
    damage: tuple[str, int, int] | None = None
    format: str | None = None
    nothing_left: tuple[Place, ...] = ()


def picture(reason: str, **others: str) -> Expected:
    """A picture that is lost."""
    return Expected(1, lost=(("", reason),), **others)


ACCEPTED = Expected(1)
TRUNCATED = picture("image-truncated")
DAMAGED = picture("image-damaged")
UNRECOGNISED = picture("image-unrecognised")
TOO_LARGE = picture("image-too-large")
TOO_SMALL = picture("image-too-small")
FILTERED = Expected(1, lost=(("", "no-audio-tokenizer"),), format="")
WEB_ARCHIVE = Expected(0, format="warc")  # of these the table is in test_sources_warc_damage.py

OUTCOMES = {
    "image-not-found": Outcome.FAILED_UPSTREAM,
    "no-audio-tokenizer": Outcome.FILTERED,
    "image-too-small": Outcome.FILTERED,
}
"""Of reasons that are no rejections: what the corpus was meant to have and lacks, what the run cannot encode, and what is sound
but outside of its bounds."""

EXPECTED: dict[str, Expected] = {
    # ---- pictures: cut short, or no pictures
    "images/truncated_half.jpg": TRUNCATED,
    "images/no_eoi.jpg": TRUNCATED,
    "images/header_only.jpg": TRUNCATED,
    "images/pillow_truncated_jpeg.jpg": TRUNCATED,
    "images/imagepng_x_consecutive_idat.png": TRUNCATED,  # another chunk between its pixels: they end there
    "images/imagepng_x_image-issue1075.png": TRUNCATED,  # no pixels at all
    "images/zero_byte.jpg": picture("image-empty"),
    "images/html_saved_as.jpg": UNRECOGNISED,
    "images/vector.svg": picture("image-unrecognised", format=""),  # not even by its name
    "images/svg_named.png": UNRECOGNISED,
    "images/pngsuite_xcrn0g04.png": UNRECOGNISED,  # the signature itself is wrong
    "images/pngsuite_xs1n0g01.png": UNRECOGNISED,
    "images/pngsuite_xs4n0g01.png": UNRECOGNISED,
    "images/pillow_decompression_bomb.ico": UNRECOGNISED,  # icons are decoded while they are opened, so none is
    # ---- pictures: a header that makes no sense
    "images/pillow_broken.png": DAMAGED,
    "images/pngsuite_xc1n0g08.png": DAMAGED,  # colour type 1
    "images/pngsuite_xd0n2c08.png": DAMAGED,  # 0 bits
    "images/pngsuite_xd9n2c08.png": DAMAGED,  # 99 bits
    "images/pngsuite_xhdn0g08.png": DAMAGED,  # checksum
    "images/imagepng_cicp_pq.png": DAMAGED,  # 0x0
    "images/imagepng_x_issue214.png": DAMAGED,  # 0x3
    "images/imagepng_x_issue230.1.png": DAMAGED,  # wider than a PNG can be
    "images/pillow_png_decompression_dos.png": DAMAGED,  # its notes unpack to more than anything should
    # ---- pictures: refused by their size
    "images/bomb_30000x30000_1bit.png": TOO_LARGE,
    "images/bomb_header_only_60000x60000_rgb.png": TOO_LARGE,
    "images/pillow_decompression_bomb.gif": TOO_LARGE,
    "images/one_pixel.png": TOO_SMALL,
    "images/pillow_no_palette.gif": TOO_SMALL,  # 1x1
    "images/pillow_tRNS_null_1x1.png": TOO_SMALL,
    "images/strip_20000x2.png": TOO_SMALL,  # by its 2 pixels, which are looked at before its shape
    # ---- pictures: unusual, and pictures all the same
    "images/cmyk.jpg": ACCEPTED,
    "images/cmyk_adobe.jpg": ACCEPTED,
    "images/progressive.jpg": ACCEPTED,
    "images/grayscale.jpg": ACCEPTED,
    "images/gray16.png": ACCEPTED,
    "images/palette_alpha.png": ACCEPTED,
    "images/gray_alpha.png": ACCEPTED,
    "images/one_bit.png": ACCEPTED,
    "images/animated.gif": ACCEPTED,
    "images/animated.webp": ACCEPTED,
    "images/exif_orientation_3.jpg": ACCEPTED,
    "images/exif_orientation_6.jpg": ACCEPTED,
    "images/exif_orientation_8.jpg": ACCEPTED,
    "images/huge_icc.jpg": ACCEPTED,
    "images/png_named.jpg": ACCEPTED,
    "images/webp_named.png": ACCEPTED,
    "images/bitflips.jpg": ACCEPTED,  # nothing in a JPEG tells of it
    "images/trailing_garbage.jpg": ACCEPTED,
    "images/solid_white.jpg": ACCEPTED,
    "images/dup_a.jpg": ACCEPTED,
    "images/dup_b.jpg": ACCEPTED,
    "images/dup_c_requality.jpg": ACCEPTED,
    "images/dup_d_smaller.jpg": ACCEPTED,
    "images/dup_e_cropped.jpg": ACCEPTED,
    "images/dup_f_pixels_same.png": ACCEPTED,
    "images/pillow_junk_jpeg_header.jpg": ACCEPTED,
    "images/pillow_exif_typeerror.jpg": ACCEPTED,
    "images/pillow_hopper_bad_exif.jpg": ACCEPTED,
    "images/pillow_truncated_app14.jpg": ACCEPTED,
    "images/pillow_missing_background.gif": ACCEPTED,
    "images/pillow_invalid-exif.jpg": ACCEPTED,
    "images/imagepng_F-exif-chunk-early.png": ACCEPTED,
    "images/imagepng_issue1825.png": ACCEPTED,
    "images/imagepng_issue403.png": ACCEPTED,
    "images/exif_image00971.jpg": ACCEPTED,
    "images/exif_image01137.jpg": ACCEPTED,
    "images/exif_image01713.jpg": ACCEPTED,
    "images/exif_image02206.jpg": ACCEPTED,
    # ---- tars
    "tar/good.tar": Expected(6),
    "tar/truncated_mid_member.tar": Expected(3, damage=("tar-truncated", 16896, 22528)),  # where the fourth sample begins
    "tar/no_end_blocks.tar": Expected(6, damage=("tar-no-end", 36352, 36352)),
    "tar/path_traversal.tar": Expected(
        2, {"../../escape": "unsafe-name", "/tmp/absolute_escape": "unsafe-name", "a/../../b": "unsafe-name"}
    ),
    "tar/links.tar": Expected(2, {"000000000": "not-a-regular-file", "000000001": "not-a-regular-file"}),
    "tar/missing_caption.tar": Expected(6),
    "tar/missing_image.tar": Expected(5, {"000000002": "no-media"}),
    "tar/wrong_json.tar": Expected(4, {"000000002": "json-invalid", "000000004": "json-invalid"}),
    "tar/duplicate_keys.tar": Expected(3, {"000000000": "duplicate-key", "000000001": "duplicate-key"}),
    "tar/interleaved_members.tar": Expected(6),
    "tar/dotted_and_nested_names.tar": Expected(2),
    "tar/macos_dotfiles.tar": Expected(3),
    "tar/non_utf8_captions.tar": Expected(  # NUL is a character, and no caption is none
        3, {"000000001": "text-not-utf8", "000000002": "text-not-utf8", "000000003": "text-not-utf8"}
    ),
    "tar/zero_bytes.tar": Expected(0, damage=("tar-empty", 0, 0)),
    "tar/empty_valid.tar": Expected(0),
    "tar/html_named.tar": Expected(0, damage=("tar-invalid-header", 0, 1635)),
    "tar/gzip_named.tar": Expected(0, damage=("tar-compressed", 0, 17971)),
    "tar/mixed_48_samples_8_bad.tar": Expected(
        48,
        lost=(
            ("000000005", "image-truncated"),
            ("000000011", "image-empty"),
            ("000000017", "image-unrecognised"),
            ("000000023", "image-too-large"),
            ("000000041", "image-too-small"),
        ),
    ),
    # ---- texts
    "text/latin1.txt": Expected(0, {"": "text-not-utf8"}),
    "text/shift_jis.txt": Expected(0, {"": "text-not-utf8"}),
    "text/cp1251.txt": Expected(0, {"": "text-not-utf8"}),
    "text/utf16_bom.txt": Expected(0, {"": "text-not-utf8"}),
    "text/mojibake.txt": ACCEPTED,  # UTF-8, whatever it was meant to say
    "text/one_line_1MB.txt": ACCEPTED,
    "text/empty.txt": Expected(0, {"": "empty-document"}),
    "text/blank_only.txt": ACCEPTED,  # whitespace is text
    "text/utf8_bom_crlf.jsonl": Expected(20),
    "text/nul_and_controls.jsonl": Expected(2, {3: "json-invalid"}),
    "text/no_spaces_200kB.jsonl": Expected(1),
    "text/mmc4_cut_last_line.jsonl": Expected(  # none of the pictures was downloaded
        2, {3: "json-invalid"}, (*[(1, "image-not-found")] * 2, *[(2, "image-not-found")] * 3), format="mmc4"
    ),
    "text/bad_lines.jsonl": Expected(
        8,
        {
            2: "json-invalid",
            5: "json-invalid",
            7: "no-text",
            8: "text-not-a-string",
            9: "text-not-a-string",
            10: "not-an-object",
            11: "not-an-object",
            13: "json-repeated-key",
            14: "text-not-a-string",
            17: "json-invalid",
        },
    ),
    "text/bad_utf8_lines.jsonl": Expected(2, {2: "text-not-utf8", 3: "text-not-utf8"}),
    "text/cut.jsonl.gz": Expected(72, damage=("gzip-truncated", 49152, 60000)),  # found to the piece of 16384 bytes
    "text/plain_named.jsonl.gz": Expected(0, damage=("gzip-invalid", 0, 329)),
    "text/duplicates.jsonl": Expected(5),
    # ---- parquet
    "parquet/good.parquet": Expected(8),
    "parquet/truncated.parquet": Expected(0, damage=("parquet-unreadable", 0, 32531)),
    "parquet/zero_bytes.parquet": Expected(0, damage=("parquet-unreadable", 0, 0)),
    "parquet/html_named.parquet": Expected(0, damage=("parquet-unreadable", 0, 1635)),
    "parquet/null_and_bad_images.parquet": Expected(
        7,
        {1: "no-media"},
        ((2, "image-not-found"), (3, "image-empty"), (4, "image-truncated"), (5, "path-outside-source")),
    ),
    "parquet/missing_column.parquet": Expected(0, format=""),
    "parquet/no_rows.parquet": Expected(0),
    "parquet/obelics_uneven_lists.parquet": Expected(
        3,
        {
            1: "uneven-lists",
            2: "metadata-invalid",
            3: "text-and-image-in-one-place",
            4: "empty-document",
            5: "empty-document",
        },
        ((0, "image-not-found"), (6, "path-outside-source"), (7, "image-not-found"), (7, "image-not-found")),
        format="obelics",
        nothing_left=(7,),
    ),
    # ---- sounds: no tokenizer takes them yet, so nothing looks at what is in them
    "audio/zero_samples.wav": FILTERED,
    "audio/nan_inf_float.wav": FILTERED,
    "audio/cut_data.wav": FILTERED,
    "audio/size_ffffffff.wav": FILTERED,
    "audio/bad_header.mp3": FILTERED,
    "audio/html_named.mp3": FILTERED,
    "audio/zero_bytes.wav": FILTERED,
    "audio/cut.flac": FILTERED,
    "audio/cut.ogg": FILTERED,
    "audio/silence_1s.wav": FILTERED,
    "audio/clipped_float.wav": FILTERED,
    "audio/pcm24.wav": FILTERED,
    "audio/alaw.wav": FILTERED,
    "audio/dc_offset.wav": FILTERED,
    "audio/wav_named.flac": FILTERED,
    "audio/ten_samples.wav": FILTERED,
    "audio/mutagen_bad-POPM-frame.mp3": FILTERED,
    "audio/mutagen_emptyfile.mp3": FILTERED,
    "audio/mutagen_too-short.mp3": FILTERED,
    "audio/mutagen_lame397v9short.mp3": FILTERED,
    "audio/mutagen_52-overwritten-metadata.flac": FILTERED,
    "audio/mutagen_ooming-header.flac": FILTERED,
    "audio/mutagen_bad-xing.mp3": FILTERED,
    "audio/mutagen_empty.ogg": FILTERED,
    "audio/pocketsphinx_bad.wav": FILTERED,
    "audio/pocketsphinx_awful.wav": FILTERED,
    "audio/bad_manifest.jsonl": Expected(  # a duration that is wrong is found when the sound is decoded
        3,
        {4: "time-not-understood", 5: "time-not-understood", 6: "json-invalid"},
        ((2, "audio-not-found"), (3, "path-outside-source")),
        format="audio_manifest",
    ),
    # ---- web archives
    "warc/cut_in_middle.warc.gz": WEB_ARCHIVE,
    "warc/junk_between_members.warc.gz": WEB_ARCHIVE,
    "warc/zero_bytes.warc.gz": WEB_ARCHIVE,
    "warc/html_named.warc.gz": WEB_ARCHIVE,
    "warc/content_length_too_big.warc": WEB_ARCHIVE,
    "warc/warcio-example-bad.warc.gz.bad": Expected(0, format=""),  # of no known ending; named warc: it can be read
    "warc/warcio-example-bad-non-chunked.warc.gz": WEB_ARCHIVE,
    "warc/warcio-example-trunc.warc": WEB_ARCHIVE,
}

NO_CORPUS_FILES = {"MANIFEST.jsonl", "tar/mixed_48_samples_8_bad.labels.jsonl"}


def files_of(folder: str, *, read: bool = True) -> list[str]:
    """Names in the table, of those that are read as something or of all."""
    return [name for name in EXPECTED if name.startswith(f"{folder}/") and (not read or format_of(name))]


def format_of(name: str) -> str:
    """What a file is read as; "" for nothing."""
    given = EXPECTED[name].format
    if given is not None:
        return given
    if name.startswith("images/"):
        return "image_folder"
    if ".jsonl" in name:
        return "jsonl"
    return {"tar": "webdataset", "txt": "text", "parquet": "hf_parquet"}[name.rpartition(".")[2]]


def place_of(bad: Path, folder: str, locator: str, identifier: str) -> tuple[str, Place]:
    """The file that a document is of, and where in it."""
    if folder == "tar":
        return f"tar/{locator[: locator.index('.tar') + 4]}", identifier
    if folder == "parquet":
        file, _, row = locator.rpartition(":")
        return f"parquet/{file}", int(row)
    if ".jsonl" in locator:
        file, _, offset = locator.rpartition("@")
        if file.endswith(".gz"):
            return f"{folder}/{file}", int(offset)
        return f"{folder}/{file}", (bad / folder / file).read_bytes()[: int(offset)].count(b"\n") + 1
    return f"{folder}/{locator}", ""


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def bad(shared_data: Path) -> Path:
    return shared_data / "bad"


@contextmanager
def ending() -> Iterator[None]:
    """What goes on for ever over a file fails."""

    def stop(*_: object) -> None:
        raise AssertionError("still at it after five minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _each_test_ends() -> Iterator[None]:
    with ending():
        yield


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_manifests_files_and_no_others(bad: Path) -> None:
    listed = [json.loads(line)["file"] for line in (bad / "MANIFEST.jsonl").read_text().splitlines()]
    assert len(set(listed)) == len(listed) == 146
    assert set(listed) == set(EXPECTED)
    there = {path.relative_to(bad).as_posix() for path in bad.rglob("*") if path.is_file()}
    assert there - NO_CORPUS_FILES == set(EXPECTED)


def test_the_mixed_tars_expectation_is_what_its_labels_say(bad: Path) -> None:
    reasons = {
        "truncated": "image-truncated",
        "empty": "image-empty",
        "html": "image-unrecognised",
        "bomb": "image-too-large",
        "one_pixel": "image-too-small",
    }
    lines = (bad / "tar" / "mixed_48_samples_8_bad.labels.jsonl").read_text().splitlines()
    labels = {entry["key"]: entry["label"] for entry in map(json.loads, lines)}
    assert set(labels.values()) - set(reasons) == {"good", "cmyk", "bitflips", "dup"}  # pictures, all of them
    lost = {key: reasons[label] for key, label in labels.items() if label in reasons}
    assert dict(EXPECTED["tar/mixed_48_samples_8_bad.tar"].lost) == lost


@pytest.mark.parametrize("folder", ["images", "tar", "text", "parquet", "audio", "warc"])
def test_each_file_is_taken_for_what_it_is_or_named_as_not_read(bad: Path, folder: str) -> None:
    if folder == "warc":
        pytest.importorskip("resiliparse")
    wanted = {name: format_of(name) for name in files_of(folder, read=False)}
    if not any(wanted.values()):
        with pytest.raises(ConfigError, match="none of the 27 files"):
            resolve_inputs([str(bad / folder)])
        return
    resolved = resolve_inputs([str(bad / folder)])
    found = {f"{folder}/{Path(file.path).name}": "" for file in resolved.ignored}
    assert all(file.why for file in resolved.ignored)
    for source in resolved.sources:
        if source.format == "image_folder":
            names = [document.locator for document in read_all(source).documents]
        else:
            names = [Path(file.path).name for file in source.files]
        found |= {f"{folder}/{name}": source.format for name in names}
    assert {name: found[name] for name in found if name not in NO_CORPUS_FILES} == wanted


@pytest.mark.parametrize("name", [name for name in EXPECTED if not format_of(name)])
def test_a_file_that_is_read_as_nothing_is_refused_when_it_is_named(bad: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"Name the format \(FORMAT:PATH\) if you know better"):
        resolve_inputs([str(bad / name)])


# --- file by file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", files_of("images", read=False))
def test_a_picture(bad: Path, name: str) -> None:
    data = (bad / name).read_bytes()
    reason = dict(EXPECTED[name].lost).get("")
    if reason is not None:
        with pytest.raises(ItemError) as caught:
            decode_image(data)
        assert caught.value.reason == reason, caught.value.message
        assert caught.value.message
        return
    image = decode_image(data)
    assert image.mode in ("RGB", "RGBA")
    entries = map(json.loads, (bad / "MANIFEST.jsonl").read_text().splitlines())
    told = next(entry["observed"] for entry in entries if entry["file"] == name)  # "Pillow: JPEG RGB 371x500 frames=1"
    width, height = map(int, told.split()[-2].split("x"))
    if name.startswith("images/exif_orientation_"):
        turned = ImageOps.exif_transpose(PIL.Image.open(bad / name))
        assert np.array_equal(image, turned)
        width, height = turned.size
    assert image.size == (width, height)


@pytest.mark.parametrize("name", [name for kind in ("tar", "text", "parquet", "audio") for name in files_of(kind)])
def test_a_container(bad: Path, name: str) -> None:
    """Documents, failures and damage are those of the table, and the same however the file is cut into units."""
    expected, folder = EXPECTED[name], name.partition("/")[0]
    result = assert_same_for_all_cuts(source_of(format_of(name), bad / name), [5000])
    failures = {
        place_of(bad, folder, d.locator, d.id): (d.failure.reason, d.failure.outcome)
        for d in result.documents
        if d.failure is not None
    }
    assert failures == {(name, place): (why, Outcome.REJECTED) for place, why in (expected.failures or {}).items()}
    assert all(d.failure.message for d in result.documents if d.failure is not None)
    assert len(result.good) == expected.documents
    assert [(d.reason, d.start, d.stop) for d in result.damage] == ([expected.damage] if expected.damage else [])
    assert all(d.message for d in result.damage)
    lost = [
        (place_of(bad, folder, d.locator, d.id)[1], item.failure.reason)
        for d in result.good
        for item in d.media
        if item.failure is not None
    ]
    assert lost == [
        (place, why) for place, why in expected.lost if why in ("image-not-found", "audio-not-found", "path-outside-source")
    ]
    if expected.damage is None:
        assert result.counted == len(result.documents)
        if format_of(name) != "obelics":  # where a row is irregular only reading tells its pictures
            assert_census_agrees(result)
    else:
        assert result.counted is None


@pytest.mark.parametrize("name", files_of("images") + files_of("audio", read=False))
def test_a_member_of_a_tar_is_handed_on_as_it_is(bad: Path, tmp_path: Path, name: str) -> None:
    """Whatever bytes a picture or a sound has, the source neither looks at them nor changes them."""
    data, path = (bad / name).read_bytes(), tmp_path / "a.tar"
    suffix = Path(name).suffix
    path.write_bytes(tar_bytes([(f"0{suffix}", data), ("0.txt", b"says this")]))
    result = read_all(source_of("webdataset", path))
    if suffix == ".jsonl":
        assert list(result.failures.values()) == ["no-media"]
        return
    kind = Audio if name.startswith("audio/") else Image
    assert [d.segments for d in result.documents] == [(kind(data, f"0{suffix}"), Text("says this"))]
    assert_census_agrees(result)


def test_web_archives_have_their_own_table(bad: Path) -> None:
    pytest.importorskip("resiliparse")
    from test_sources_warc_damage import EXPECTED as ARCHIVES

    assert {f"warc/{name}" for name in ARCHIVES} == set(files_of("warc", read=False))


# --- what must never happen ------------------------------------------------------------------------------------------

ABSOLUTE = "/tmp/absolute_escape.txt"


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """Names of the files that Python opens from now on."""
    names: list[str] = []
    watching = [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes):
            names.append(os.fsdecode(arguments[0]))

    sys.addaudithook(note)  # which cannot be taken away again
    yield names
    watching.clear()


@pytest.mark.parametrize(
    "name",
    [
        "tar/path_traversal.tar",
        "tar/links.tar",
        "parquet/null_and_bad_images.parquet",
        "parquet/obelics_uneven_lists.parquet",
    ],
)
def test_nothing_outside_is_opened_or_written(bad: Path, tmp_path: Path, opened: list[str], name: str) -> None:
    """Names that climb out lead to files that are there; they are as good as not."""
    inside = tmp_path / "x" / "y"
    inside.mkdir(parents=True)
    wanted = ["etc/passwd", "etc/hosts", "x/etc/passwd", "x/etc/hosts", "x/escape.txt", "escape.txt", "b.jpg", "x/b.jpg"]
    baits = {tmp_path / bait for bait in wanted}
    for bait in baits:
        bait.parent.mkdir(exist_ok=True)
        bait.write_text("SECRET")
    system = {Path(place) for place in ("/etc/passwd", "/etc/hosts", ABSOLUTE)}
    path = inside / Path(name).name
    path.write_bytes((bad / name).read_bytes())
    before = digests(tmp_path), Path(ABSOLUTE).exists()
    opened.clear()
    result = read_all(source_of(format_of(name), path))
    touched = {Path(file).resolve() for file in opened}
    assert (digests(tmp_path), Path(ABSOLUTE).exists()) == before
    assert touched.isdisjoint(baits | system)
    assert name.startswith("parquet/") or path in touched  # Arrow opens files of its own accord, the rest is seen
    assert result.documents
    for document in result.documents:
        held = [item.data for item in document.media] + [s.text.encode() for s in document.segments if isinstance(s, Text)]
        assert not any(b"SECRET" in data or b"root:" in data for data in held if data is not None)


BOMBS = [
    "images/bomb_30000x30000_1bit.png",
    "images/bomb_header_only_60000x60000_rgb.png",
    "images/pillow_decompression_bomb.gif",
    "images/pillow_decompression_bomb.ico",
    "images/pillow_png_decompression_dos.png",
]

DECODE = """
import json, sys
from pathlib import Path
from tokkit.errors import ItemError
from tokkit.media.images import decode_image

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

decode_image(Path(sys.argv[1]).read_bytes())
before, reasons = peak(), []
for name in sys.argv[2:]:
    try:
        decode_image(Path(name).read_bytes())
    except ItemError as error:
        reasons.append(error.reason)
print(json.dumps([reasons, peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_bombs_are_refused_by_their_header(bad: Path) -> None:
    """The smallest would fill 900 MB; its refusal takes none of that."""
    names = [str(bad / name) for name in ("images/png_named.jpg", *BOMBS)]
    done = subprocess.run([sys.executable, "-c", DECODE, *names], check=True, capture_output=True, text=True, timeout=300)
    reasons, kilobytes = json.loads(done.stdout)
    assert reasons == [dict(EXPECTED[name].lost)[""] for name in BOMBS]
    assert kilobytes < 64 << 10


# --- all of them in one run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished run and what it left: locators committed by source, and the lines of the reject lists."""

    result: ShardResult
    committed: list[tuple[str, str]]
    rejects: list[dict[str, object]]


@pytest.fixture(scope="module")
def run(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bad")
    text, image = write_tokenizers(folder / "tokenizers")
    (folder / "audio").mkdir()
    members = []
    for name in files_of("audio", read=False):
        key, data = Path(name).name.replace(".", "-"), (shared_data / "bad" / name).read_bytes()
        members += [(f"{key}{Path(name).suffix}", data), (f"{key}.txt", b"a sound")]
    (folder / "audio" / "a.tar").write_bytes(tar_bytes(members))
    folders = ["images", "tar", "text", "parquet", *(["warc"] if find_spec("resiliparse") else [])]
    inputs = [*(str(shared_data / "bad" / name) for name in folders), str(folder / "audio")]
    settings = {"text_tokenizer": text, "image_tokenizer": image, "workers": 0, "report_documents": 0, "unit_bytes": 20_000}
    config = {"inputs": inputs, "out": folder / "out", "max_reject_ratio": 1.0, **settings}
    with ending():
        result = shard(ShardConfig.model_validate(config), SilentProgress())
    tables = [pq.read_table(path, columns=["source", "locator"]) for path in sorted(result.out.glob("tokens/*/*.parquet"))]
    committed = [(str(row["source"]), str(row["locator"])) for table in tables for row in table.to_pylist()]
    lists = [path.read_text().splitlines() for path in sorted((result.out / "rejects").iterdir())]
    return Run(result, committed, [json.loads(line) for lines in lists for line in lines])


def outcome_of(reason: str) -> str:
    return OUTCOMES.get(reason, Outcome.REJECTED).value


def test_a_run_over_all_of_them_has_the_tables_outcomes(run: Run, bad: Path) -> None:
    """Every document, item and damage of the table, with its reason, and nothing that the table does not have."""
    wanted_documents: Counter[tuple[str, Place, str, str]] = Counter()
    wanted_items: Counter[tuple[str, Place, str, str]] = Counter()
    committed: Counter[str] = Counter()
    for name in (name for folder in ("images", "tar", "text", "parquet") for name in files_of(folder)):
        expected = EXPECTED[name]
        failed = dict(expected.failures or {})
        if format_of(name) not in ("obelics", "mmc4"):  # pairs are nothing without their picture
            failed |= dict(expected.lost)
        causes = {place: outcome_of(why) for place, why in (*failed.items(), *expected.lost)}
        failed |= dict.fromkeys(expected.nothing_left, "nothing-left")
        wanted_documents.update((name, place, causes[place], why) for place, why in failed.items())
        wanted_items.update((name, place, outcome_of(why), why) for place, why in expected.lost)
        committed[name] = expected.documents + len(expected.failures or {}) - len(failed)
    found: dict[str, Counter[tuple[str, Place, str, str]]] = {"document": Counter(), "item": Counter()}
    damage = {}
    for line in run.rejects:
        folder = str(line["source"]).partition("-")[0]
        if folder in ("audio", "warc"):
            continue
        assert line["message"]
        if line["level"] == "container":
            damage[f"{folder}/{line['locator']}"] = (line["reason"], *line["bytes"])  # type: ignore[misc]
        else:
            place = place_of(bad, folder, str(line["locator"]), str(line["id"]))
            found[str(line["level"])][(*place, str(line["outcome"]), str(line["reason"]))] += 1
    assert found["document"] == wanted_documents
    assert found["item"] == wanted_items
    assert damage == {name: EXPECTED[name].damage for name in EXPECTED if EXPECTED[name].damage is not None}
    folders = [(source.partition("-")[0], locator) for source, locator in run.committed]
    read_back = Counter(place_of(bad, folder, locator, "")[0] for folder, locator in folders if folder != "warc")
    assert read_back == +committed


def test_a_run_over_web_archives_has_their_tables_outcomes(run: Run) -> None:
    pytest.importorskip("resiliparse")
    from test_sources_warc_damage import EXPECTED as ARCHIVES

    rejects = [line for line in run.rejects if line["source"] == "warc"]
    committed = [locator for source, locator in run.committed if source == "warc"]
    for name in (Path(name).name for name in files_of("warc")):
        documents, failures, damage = ARCHIVES[name]
        lines = [line for line in rejects if str(line["locator"]).startswith(name)]
        lost = [str(line["reason"]) for line in lines if line["level"] == "document"]
        assert Counter(lost) == failures
        assert sum(locator.startswith(name) for locator in committed) == documents - len(lost)
        told = [(*line["bytes"], line["reason"]) for line in lines if line["level"] == "container"]  # type: ignore[misc]
        assert told == damage


def test_a_run_filters_sounds(run: Run) -> None:
    sounds = [name for name in files_of("audio", read=False) if EXPECTED[name] is FILTERED]
    lines = [line for line in run.rejects if line["source"] == "audio" and line["level"] == "item"]
    assert Counter((line["outcome"], line["reason"]) for line in lines) == {("filtered", "no-audio-tokenizer"): len(sounds)}
    (found,) = [source for source in run.result.manifest.sources if source.name == "audio"]
    assert found.documents == {"filtered": len(sounds), "rejected": 1}  # the manifest, which is no sound
    assert found.reasons["document/rejected/no-media"] == 1


def test_a_run_adds_up(run: Run) -> None:
    names = ["audio", "images", "parquet-hf_parquet", "parquet-obelics", "tar", "text-jsonl", "text-mmc4", "text-text"]
    names += ["warc"] if find_spec("resiliparse") else []
    assert sorted(source.name for source in run.result.manifest.sources) == names
    for source in run.result.manifest.sources:
        committed = sum(name == source.name for name, _ in run.committed)
        lines = Counter((line["level"], line.get("outcome")) for line in run.rejects if line["source"] == source.name)
        assert source.documents.get("committed", 0) == committed
        for outcome in ("rejected", "filtered", "failed_upstream"):
            assert source.documents.get(outcome, 0) == lines["document", outcome]
            assert sum(item.get(outcome, 0) for item in source.items.values()) == lines["item", outcome]
        if source.counted_documents is not None:
            assert source.counted_documents == sum(source.documents.values())
    result = verify(VerifyConfig(directory=run.result.out), SilentProgress())
    assert result.problems == []
