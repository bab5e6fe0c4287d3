"""Picture stores: what is recognised, what is found in each kind and why not, hostile names, damage, changes, memory."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_helpers import JPEG, tar_bytes
from stores_helpers import FAILED, downloaded, opened
from warc_helpers import png, record, response, write

from tokkit.documents import Failure, Outcome
from tokkit.errors import ConfigError, FingerprintMismatch
from tokkit.sources.stores import index as index_module
from tokkit.sources.stores.kinds import resolve_stores
from tokkit.sources.stores.lookup import PictureStores
from tokkit.sources.stores.names import names_of_url, spelled, tidy_path
from tokkit.sources.warc.pictures import same_url

MISSING = Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", "nowhere")
URL = "https://example.org/a/{}.jpg"


def picture(number: int) -> bytes:
    return JPEG + bytes([number]) * (50 + number)


def by_url(stores: PictureStores, *urls: str) -> bytes | str:
    """The picture, or the reason why there is none."""
    found, _ = stores.instead(MISSING, urls=urls)
    return found.reason if isinstance(found, Failure) else found


def by_name(stores: PictureStores, name: str) -> bytes | str:
    found, _ = stores.instead(MISSING, name=name)
    return found.reason if isinstance(found, Failure) else found


# ---- each kind


@pytest.mark.parametrize("form", ["tar", "tar without table", "parquet", "files"])
def test_what_img2dataset_wrote_is_found_by_url(tmp_path: Path, form: str) -> None:
    pictures = {URL.format(n): None if n in (2, 5) else picture(n) for n in range(8)}
    folder = downloaded(tmp_path / "d", pictures, form.split()[0], table=form != "tar without table")
    stores = opened(tmp_path / "index", folder)
    assert [store.kind for store in stores.stores] == ["img2dataset"]
    stores = pickle.loads(pickle.dumps(stores))
    for url, data in pictures.items():
        told = "not-in-store" if form == "tar without table" else "failed-to-download"
        assert by_url(stores, url) == (told if data is None else data)
    assert by_url(stores, "HTTPS://EXAMPLE.org:443/a/0.jpg#x") == picture(0)
    assert by_url(stores, "http://example.org/a/0.jpg") == picture(0)  # the other scheme
    assert by_url(stores, "//example.org/a/0.jpg") == picture(0)
    assert by_url(stores, "data:image/png;base64,AAAA") == by_url(stores, "file:///a/0.jpg") == "not-in-store"
    assert by_url(stores, "https://example.org/a/9.jpg") == "not-in-store"
    assert by_name(stores, "a/0.jpg") == "not-in-store"
    if form == "tar":
        failure, _ = stores.instead(MISSING, urls=(URL.format(2),))
        assert failure == Failure(Outcome.FAILED_UPSTREAM, "failed-to-download", FAILED)
        (summary,) = stores.summaries()
        assert (summary.entries, summary.failed, summary.damage) == (6, 2, ())


def test_a_folder_and_a_tar_by_name_and_by_the_path_of_a_url(tmp_path: Path) -> None:
    names = ["a.jpg", "deep/er/b.png", "example.org/a/1.jpg", "example.org/a b.jpg", "example.org/c.jpg?x=1"]
    (tmp_path / "f").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(picture(number))
    (tmp_path / "t.tar").write_bytes(tar_bytes([(f"./{name}", picture(n)) for n, name in enumerate(names)]))
    for place, kind in ((tmp_path / "f", "folder"), (tmp_path / "t.tar", "tar")):
        stores = opened(tmp_path / kind, place)
        assert stores.stores[0].kind == kind
        for number, name in enumerate(names):
            assert by_name(stores, name) == by_name(stores, f"./{name}") == picture(number)
        assert by_url(stores, "https://example.org/a/1.jpg") == picture(2)
        assert by_url(stores, "https://example.org/a%20b.jpg") == picture(3)
        assert by_url(stores, "https://example.org/c.jpg?x=1") == picture(4)
        assert by_name(stores, "b.png") == "not-in-store"  # names are whole, from the store's top
        assert by_name(stores, "deep/er") == "not-in-store"


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_web_archives_with_redirections_and_revisits_across_files(tmp_path: Path, layout: str) -> None:
    folder, site = tmp_path / "w", "https://pictures.org"
    folder.mkdir()
    moved = ("Location", "/there.png")
    revisit = ("WARC-Refers-To-Target-URI", f"{site}/there.png"), ("WARC-Refers-To-Date", "2024-05-01T00:00:00Z")
    first = [
        response(f"{site}/moved.png", b"", "text/html", 301, moved),
        record("revisit", f"{site}/again.png", b"", "application/http", *revisit),
        response(f"{site}/lost.png", b"", "text/html", 302, ("Location", "/nowhere.png")),
        response(f"{site}/page", "<p>no picture"),
    ]
    write(folder / "0.warc.gz", first, layout)
    write(folder / "1.warc.gz", [response(f"{site}/there.png", png(colour=7), "image/png")], layout)
    stores = opened(tmp_path / "index", folder)
    assert stores.stores[0].kind == "warc"
    for name in ("there", "moved", "again"):
        assert by_url(stores, f"{site}/{name}.png") == png(colour=7), name
    assert by_url(stores, f"{site}/lost.png") == "not-downloaded"
    assert by_url(stores, f"{site}/page") == "not-in-store"
    assert by_url(stores, f"{site}/none.png", f"{site}/there.png") == png(colour=7)  # the second of several URLs


# ---- which of several


def test_stores_are_asked_in_order_and_a_success_comes_before_a_failure(tmp_path: Path) -> None:
    one = downloaded(tmp_path / "one", {URL.format(0): None, URL.format(1): picture(1), URL.format(2): None})
    two = downloaded(tmp_path / "two", {URL.format(0): picture(10), URL.format(1): picture(11)}, "parquet")
    both, other = opened(tmp_path / "i", one, two), opened(tmp_path / "j", two, one)
    assert both.instead(MISSING, urls=(URL.format(0),)) == (picture(10), "two")
    assert both.instead(MISSING, urls=(URL.format(1),)) == (picture(1), "one")
    assert other.instead(MISSING, urls=(URL.format(1),)) == (picture(11), "two")
    assert by_url(both, URL.format(2)) == "failed-to-download"
    # what a corpus says itself of why a picture is not there stands, unless the picture is somewhere
    said = Failure(Outcome.FAILED_UPSTREAM, "failed-to-resize", "in the URL map")
    assert both.instead(said, urls=(URL.format(2),)) == (said, "")
    assert both.instead(said, urls=(URL.format(0),)) == (picture(10), "two")
    rejected = Failure(Outcome.REJECTED, "path-outside-source", "x")
    assert both.instead(rejected, name="00000.tar") == (rejected, "")
    assert both.instead(JPEG, urls=(URL.format(0),)) == (JPEG, "")


def test_of_one_key_the_first_that_worked_in_the_order_of_files(tmp_path: Path) -> None:
    url = URL.format(0)
    folder = tmp_path / "d"
    for number, data in enumerate((None, picture(3), picture(4))):
        part = downloaded(tmp_path / f"part{number}", {url: data})
        folder.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.rename(folder / f"0000{number}{file.suffix}")
    assert by_url(opened(tmp_path / "i", folder), url) == picture(3)


def test_a_success_behind_more_failures_than_are_looked_at(tmp_path: Path) -> None:
    url = URL.format(0)
    rows = {"url": [url] * 41, "key": [f"{n}" for n in range(41)], "status": [*["failed_to_download"] * 40, "success"]}
    rows["jpg"] = [None] * 40 + [picture(0)]  # type: ignore[list-item]
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert by_url(opened(tmp_path / "i", tmp_path / "a.parquet"), url) == picture(0)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="htps:/aA%2fé.?#&=[]@0 1\\8", max_size=30))
def test_the_quick_way_to_spell_a_url_is_the_slow_one(tail: str) -> None:
    for url in (tail, f"http://host.org/{tail}", f"https://host.org{tail}"):
        assert spelled(url) == same_url(url)


# ---- untrusted names


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "a/../../secret", "", ".", "a\0b", "x" * 5000, "link", "down/secret", "a" * 300]
)
def test_no_name_leads_out_of_a_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    store = tmp_path / "store"
    store.mkdir()
    (store / "a").mkdir()
    (store / "link").symlink_to(tmp_path / "secret")
    (store / "down").symlink_to(tmp_path)
    members = [(n, b"secret") for n in ("../secret", "/etc/passwd", "a/../../secret")]
    (tmp_path / "t.tar").write_bytes(tar_bytes(members))
    assert by_name(opened(tmp_path / "i", f"folder:{store}"), name) in ("not-in-store", "path-outside-source")
    assert by_name(opened(tmp_path / "j", tmp_path / "t.tar"), name) == "not-in-store"


def test_urls_that_would_be_paths_lead_nowhere(tmp_path: Path) -> None:
    for url in (
        "http://../../secret",
        "http://h/../../../secret",
        "http://h/%2e%2e/%2e%2e/%2e%2e/secret",
        "http://[x",
        "file:///x",
    ):
        assert not any(".." in name.split("/") or name.startswith("/") for name in names_of_url(url)), url
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "s" / "h").mkdir(parents=True)
    stores = opened(tmp_path / "i", f"folder:{tmp_path / 's'}")
    for url in ("http://h/%2e%2e/%2e%2e/secret", "http://../secret", "http://h/..%2f..%2fsecret"):
        assert by_url(stores, url) == "not-in-store"
    assert tidy_path("a//./b") == "a/b"


# ---- damage


def test_damage_is_told_once_and_the_rest_is_found(tmp_path: Path) -> None:
    pictures = {URL.format(n): picture(n) for n in range(9)}
    folder = downloaded(tmp_path / "d", pictures)
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:4300])
    (folder / "00001.parquet").write_bytes(b"PAR1 not really")
    stores = opened(tmp_path / "i", folder)
    (summary,) = stores.summaries()
    assert sorted((d.locator, d.reason) for d in summary.damage) == [
        ("00000.tar", "tar-truncated"),
        ("00001.parquet", "parquet-unreadable"),
    ]
    assert by_url(stores, URL.format(0)) == picture(0)
    assert by_url(stores, URL.format(2)) == "missing-from-tar"
    assert [by_url(stores, URL.format(n)) for n in range(3, 9)] == [picture(n) for n in range(3, 9)]  # by their own .json


def test_a_table_that_breaks_in_the_middle(tmp_path: Path) -> None:
    folder = downloaded(tmp_path / "d", {URL.format(n): bytes([n]) * 3000 for n in range(6)}, "parquet", per_file=6)
    path = folder / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
    info = pq.read_metadata(path).row_group(1).column(table.schema.get_field_index("jpg"))
    data = bytearray(path.read_bytes())
    data[info.data_page_offset : info.data_page_offset + 12] = b"\xff" * 12
    path.write_bytes(data)
    stores = opened(tmp_path / "i", folder)
    assert by_url(stores, URL.format(1)) == bytes([1]) * 3000
    assert by_url(stores, URL.format(2)) == "store-damaged"
    assert by_url(stores, URL.format(5)) == bytes([5]) * 3000


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_an_archive_that_is_cut_off(tmp_path: Path, layout: str) -> None:
    made = [response(f"https://h/{n}.png", png(64, 64, colour=n) + bytes(3000), "image/png") for n in range(3)]
    path = write(tmp_path / "a.warc.gz", made, layout)
    path.write_bytes(path.read_bytes()[:-40])
    stores = opened(tmp_path / "i", path)
    (damage,) = stores.summaries()[0].damage
    assert damage.reason in ("warc-truncated", "gzip-truncated")
    assert by_url(stores, "https://h/0.png") == png(64, 64, colour=0) + bytes(3000)
    assert by_url(stores, "https://h/2.png") in ("store-damaged", "not-in-store")


def test_a_record_that_breaks_in_the_middle_of_an_archive(tmp_path: Path) -> None:
    made = [response(f"https://h/{n}.png", random.Random(n).randbytes(3000), "image/png") for n in range(3)]
    path = write(tmp_path / "a.warc.gz", made)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    stores = opened(tmp_path / "i", path)
    assert [by_url(stores, f"https://h/{n}.png") for n in (0, 2)] == [random.Random(n).randbytes(3000) for n in (0, 2)]
    failure, _ = stores.instead(MISSING, urls=("https://h/1.png",))
    assert isinstance(failure, Failure)
    assert (failure.outcome, failure.reason) == (Outcome.REJECTED, "store-damaged")
    assert "a.warc.gz" in failure.message


def test_a_picture_larger_than_any_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.sources.stores import reading

    folder = downloaded(tmp_path / "d", {URL.format(0): b"x" * 100}, "tar")
    table = downloaded(tmp_path / "e", {URL.format(0): b"x" * 100}, "parquet")
    monkeypatch.setattr(reading, "MAX_ITEM_BYTES", 99)
    assert by_url(opened(tmp_path / "i", folder), URL.format(0)) == "image-too-large"
    assert by_url(opened(tmp_path / "j", table), URL.format(0)) == "image-too-large"


# ---- changes


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_file_that_changes_after_it_was_indexed(tmp_path: Path, form: str) -> None:
    folder = downloaded(tmp_path / "d", {URL.format(n): picture(n) for n in range(2)}, form)
    stores = opened(tmp_path / "i", folder)
    path = folder / f"00000.{form}"
    assert by_url(stores, URL.format(0)) == picture(0)
    stores.check()
    os.utime(path)
    stores.check()  # nothing of it was read since
    by_url(stores, URL.format(0))
    with pytest.raises(FingerprintMismatch, match=r"00000\."):
        stores.check()
    with pytest.raises(FingerprintMismatch, match=r"00000\."):
        by_url(pickle.loads(pickle.dumps(stores)), URL.format(0))


def test_a_picture_of_a_folder_that_is_newer_than_all(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.jpg").write_bytes(JPEG)
    stores = opened(tmp_path / "i", tmp_path / "f")
    assert by_name(stores, "a.jpg") == JPEG
    os.utime(tmp_path / "f" / "a.jpg", (2e9, 2e9))
    with pytest.raises(FingerprintMismatch, match=r"a\.jpg"):
        by_name(stores, "a.jpg")


def test_output_in_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (before,) = resolve_stores([str(tmp_path)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"format": "tokkit-config"}')
    (tmp_path / "out" / "b.tar").write_bytes(b"x" * 5000)
    (after,) = resolve_stores([str(tmp_path)])
    assert (after.kind, after.bytes) == (before.kind, before.bytes) == ("folder", len(JPEG))


def test_an_index_is_made_once_and_again_for_other_files(tmp_path: Path) -> None:
    folder = downloaded(tmp_path / "d", {URL.format(0): picture(0)})
    stores = PictureStores(resolve_stores([str(folder)]), tmp_path / "i")
    assert stores.build()
    assert not stores.build()
    before = {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()}
    assert set(before) == {"keys.bin", "entries.bin", "stores.json"}
    (tmp_path / "i" / "stores.json").unlink()  # as where a run was killed before the end
    assert stores.build()
    assert {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()} == before
    folder.rename(tmp_path / "moved")
    moved = PictureStores(resolve_stores([f"d={tmp_path / 'moved'}"]), tmp_path / "i")
    assert not moved.build()
    assert by_url(moved, URL.format(0)) == picture(0)
    os.utime(tmp_path / "moved" / "00000.tar")
    assert PictureStores(resolve_stores([f"d={tmp_path / 'moved'}"]), tmp_path / "i").build()


def test_the_index_is_the_same_in_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    members = [(f"{rng.randrange(400):03d}.jpg", bytes(8)) for _ in range(3000)]
    (tmp_path / "t.tar").write_bytes(tar_bytes(members))
    made = {}
    for memory in (1 << 28, 20_000):
        spilled: list[int] = []
        real = index_module.Spill

        class Watched(real):  # type: ignore[valid-type, misc]
            def close(self, spilled: list[int] = spilled) -> None:
                spilled.append(self.spilled)
                super().close()

        monkeypatch.setattr(index_module, "Spill", Watched)
        monkeypatch.setattr(index_module.write_index, "__defaults__", (memory,))
        monkeypatch.setattr(index_module, "_BLOCK", 100)
        stores = opened(tmp_path / str(memory), tmp_path / "t.tar")
        monkeypatch.setattr(index_module, "Spill", real)
        made[memory] = [(tmp_path / str(memory) / name).read_bytes() for name in ("keys.bin", "entries.bin")]
        assert (spilled[0] > 0) == (memory < 1 << 28)
        assert by_name(stores, members[0][0]) == bytes(8)
        assert by_name(stores, "400.jpg") == "not-in-store"
    assert made[1 << 28] == made[20_000]


# ---- what people type


def test_what_is_typed_and_is_wrong_is_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "mixed" / "b.tar").write_bytes(tar_bytes([("a.jpg", JPEG)]))
    (tmp_path / "a.txt").write_text("x")
    typed = ["nowhere", "zip:nowhere", str(tmp_path / "mixed"), str(tmp_path / "a.txt"), f"warc:{tmp_path / 'mixed'}"]
    with pytest.raises(ConfigError) as caught:
        resolve_stores(typed)
    assert len(caught.value.problems) == 5
    for problem, says in zip(
        caught.value.problems,
        ["no such file", "no kind of store 'zip'", "tar:", "name its kind", "there are no files .warc"],
        strict=True,
    ):
        assert says in problem
    for url in ("s3://bucket/pictures", "tar:s3://bucket/a.tar"):
        with pytest.raises(ConfigError, match="a URL; picture stores lie on a local disk"):
            resolve_stores([url])
    named = resolve_stores([f"tar:{tmp_path / 'mixed'}", f"folder:{tmp_path / 'mixed'}", f"x={tmp_path / 'mixed' / '*.tar'}"])
    assert [(store.name, store.kind) for store in named] == [("mixed", "tar"), ("mixed-2", "folder"), ("x", "tar")]
    with pytest.raises(ConfigError, match="is taken"):
        resolve_stores([f"x=folder:{tmp_path / 'mixed'}", f"x=tar:{tmp_path / 'mixed'}"])


def test_tables_of_something_else_are_damage_of_a_store_that_is_said_to_be_img2dataset(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "a.parquet")
    (damage,) = opened(tmp_path / "i", f"img2dataset:{tmp_path / 'a.parquet'}").summaries()[0].damage
    assert damage.reason == "columns-missing"
