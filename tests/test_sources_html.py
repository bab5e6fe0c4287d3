"""Pages as text and pictures: layout as plain text, what is left out, which picture is meant, charsets, payloads, bounds."""

from __future__ import annotations

import base64
import gzip
import random
import zlib

import pytest
from warc_helpers import http, png

from tokkit.errors import ItemError
from tokkit.sources.html.charset import decode_page
from tokkit.sources.html.dom import MAX_NODES, check_bounds
from tokkit.sources.html.pictures import Picture, absolute
from tokkit.sources.html.walk import read_page
from tokkit.sources.warc.http import parse_http, payload_of

pytest.importorskip("resiliparse")

URL = "https://example.org/a/b.html"
LONG = "<p>" + "There is enough of a text here to be the content of the page. " * 8 + "</p>"


def parts(body: str) -> list[str]:
    """Texts, and pictures as their URLs below the page's folder."""
    found = read_page(f"<!doctype html><html><body>{body}</body></html>", URL).parts
    return [part if isinstance(part, str) else f"<{part.shown.removeprefix('https://example.org/a/')}>" for part in found]


def pictures(body: str) -> list[Picture]:
    return [part for part in read_page(body, URL).parts if isinstance(part, Picture)]


# --- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>a  \n b</p>\n\n<p> c </p>", "a b\n\nc"),
        ("one<b> two</b><i>three </i> four", "one twothree four"),
        ("a<br>b<br/>\n c<br><br><br>d", "a\nb\nc\n\nd"),
        ("<h1>T</h1>x<h2>U</h2>y", "T\n\nx\n\nU\n\ny"),
        ("<div>a<div>b</div></div><div>c</div>", "a\nb\nc"),
        ("<blockquote><p>q</p></blockquote>r<hr>s", "q\n\nr\n\ns"),
        ("<ul><li>a<li>b <b>c</b></ul>d", "- a\n- b c\n\nd"),
        ("<ol><li>a<li value=7>b<li>c</ol>", "1. a\n7. b\n8. c"),
        ("<ol start=3><li>a<ul><li>x<ol><li>y</ol></ul><li>b</ol>", "3. a\n  - x\n    1. y\n4. b"),
        ("<ul><li></li><li>a</li></ul>", "- a"),
        ("<dl><dt>t<dd>d<dt>u<dd>e</dl>", "t\nd\nu\ne"),
        ("<table><caption>C</caption><tr><th>a<th>b<tr><td>1<td>2</table>", "C\n\na\tb\n1\t2"),
        ("<table><tr><td>a<td><td>c<tr><td><td></table>x", "a\t\tc\n\nx"),
        ("<table><tr><td><p>left</p><td><div>right</div></table>", "left\n\nright"),
        ("a<pre>  x\n\ty </pre>b", "a\n\n  x\n\ty \n\nb"),
        ("a <code>x  y</code> b", "a x y b"),
        ("a&nbsp;b &nbsp; c&nbsp;&nbsp;d<br>&nbsp;<br>e", "a\xa0b c d\n\ne"),
        ("&lt;image&gt; &amp; <b>x</b>&#8364;", "<image> & x\u20ac"),
        ("x<script>var a = '<p>no</p>';</script><style>p{}</style><!-- no --><template>no</template>y", "xy"),
        ("x<button>no</button><select><option>no</select><textarea>no</textarea><input value=no>y", "xy"),
        ("x<svg><title>no</title><text>no</text></svg>y<iframe>no</iframe><object>no</object>", "xy"),
        ("E = <math><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup><annotation>no</annotation></math>", "E = mc2"),
        ("<details><summary>S</summary>inside</details>", "S\ninside"),
    ],
)
def test_text_is_laid_out_as_a_person_would_read_it(body: str, text: str) -> None:
    assert parts(body) == [text]


def test_pictures_part_the_text() -> None:
    body = "<p>a <img src=1.png> b<img src=2.png><img src=3.png></p><ul><li><img src=4.png>c</ul><img src=5.png>"
    assert parts(body) == ["a", "<1.png>", "b", "<2.png>", "<3.png>", "<4.png>", "c", "<5.png>"]


def test_captions_stay_beside_their_pictures() -> None:
    above = "<figure><figcaption>Above</figcaption><img src=1.png></figure>"
    links = "<a href=1>a</a> <a href=2>b</a> <a href=3>c</a>"
    below = f"<figure><a href=x><img src=2.png></a><figcaption class=share-text>Below <p>{links}</p></figcaption></figure>"
    found = parts(f"<p>x</p>{above}<p>y</p>{below}<p>z</p>")
    assert found == ["x\n\nAbove", "<1.png>", "y", "<2.png>", "Below\n\na b c\n\nz"]


def test_deep_nesting_is_no_trouble() -> None:
    assert parts("<div>" * 50_000 + "deep <b>down</b>" + "</div>" * 50_000) == ["deep down"]
    assert parts("<ul><li>" * 3_000 + "x")[0].endswith("- x")


# --- boilerplate -----------------------------------------------------------------------------------------------------

LINKS = "<a href=1>One thing</a> <a href=2>Another thing</a> <a href=3>A third thing</a>"


@pytest.mark.parametrize(
    "left_out",
    [
        "<nav>no</nav>",
        "<header>no</header>",
        "<footer>no</footer>",
        "<aside>no</aside>",
        "<menu><li>no</menu>",
        "<div role=navigation>no</div>",
        "<div role=Banner>no</div>",
        "<div role=contentinfo>no</div>",
        "<div role=dialog>no</div>",
        "<div aria-modal=true>no</div>",
        "<div hidden>no</div>",
        "<div aria-hidden=true>no</div>",
        "<div style='color: red; DISPLAY : none'>no</div>",
        "<span style='visibility:hidden'>no</span>",
        "<span class='x sr-only'>no</span>",
        "<div class='cookie-banner'>no</div>",
        "<div id='CookieConsent'>no</div>",
        "<div class='ad-slot'>no</div>",
        "<div class='sidebarRight'>no</div>",
        "<div class='breadcrumbs'>no</div>",
        "<p class='share_this'>no</p>",
        "<div id='newsletterSignup'>no</div>",
        "<ul class='pagination'><li>no</ul>",
        "<a class='skip-link' href='#x'>no</a>",
        "<form><label>no</label></form>",
        f"<ul><li>{LINKS}</ul>",
        f"<div>{LINKS}</div>",
        f"<table><tr><td>{LINKS}<td>no</table>",
        f"<p>Tags: {LINKS}</p>",
        "<footer><img src=no.png></footer>",
        "<noscript>no</noscript>",
    ],
)
def test_what_is_left_out(left_out: str) -> None:
    assert parts(f"{LONG}{left_out}<p>end</p>") == [*parts(LONG)[:-1], parts(LONG)[-1] + "\n\nend"]


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ("<article><header><h1>Title</h1></header></article>", "Title"),
        ("<section><header>Title</header></section>", "Title"),
        ("<div class='heading'>Heads</div>", "Heads"),
        ("<div class='padding adverb shade'>Shade</div>", "Shade"),
        ("<p class='navy'>Blue</p>", "Blue"),
        ("<p>See <a href=1>here</a> and <a href=2>there</a>.</p>", "See here and there."),
        (f"<p>This paragraph says a good deal more than its links do, so it stays: {LINKS}</p>", None),
        ("<div class='social'><article>In it</article></div>", "In it"),
        ("<aside><main>In it</main></aside>", "In it"),
        (f"<main>{LINKS}</main>", "One thing Another thing A third thing"),
        ("<ul><li><a href=1>One</a><li><a href=2>Two</a></ul>", "- One\n- Two"),
        ("<div style='display: block'>Shown</div>", "Shown"),
    ],
)
def test_what_is_not(kept: str, text: str | None) -> None:
    found = parts(f"{LONG}{kept}")[0]
    assert len(found) > len(parts(LONG)[0]) + 3
    assert text is None or found.endswith(text)


def test_a_page_that_lies_within_one_form_or_an_odd_name_is_read() -> None:
    assert parts(f"<form id=aspnetForm>{LONG}<input></form><p>x</p>")[0].startswith("There is enough")
    assert parts(f"<div class='has-sidebar'>{LONG}</div><p>x</p>")[0].startswith("There is enough")


def test_a_long_division_of_many_links_is_looked_into() -> None:
    """What is content in it is found; the link lists in it are not."""
    lists = "".join(f"<ul><li>{LINKS}</ul>" for _ in range(30))
    assert parts(f"<div id=page><div>{lists}</div>{LONG}</div>") == parts(LONG)


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "urls"),
    [
        ("<img src=x.png>", ["a/x.png"]),
        ("<img src='/x.png#top'>", ["x.png"]),
        ("<img src='../c/ x y.png '>", ["c/%20x%20y.png"]),
        ("<img src='//other.net/x.png'>", ["https://other.net/x.png"]),
        ("<base href='/b/'><img src=x.png>", ["b/x.png"]),
        ("<base href='http://h.net/q/r'><base href='/no/'><img src=x.png>", ["http://h.net/q/x.png"]),
        ("<img src=small.gif data-src=big.jpg>", ["a/big.jpg", "a/small.gif"]),
        ("<img data-original=o.jpg>", ["a/o.jpg"]),
        ("<img src=a.jpg srcset='b.jpg 320w, c.jpg 1024w'>", ["a/a.jpg", "a/c.jpg", "a/b.jpg"]),
        ("<img srcset='b.jpg, c.jpg 2x'>", ["a/c.jpg", "a/b.jpg"]),
        ("<img srcset='b,1.jpg 1x,c,2.jpg 3x'>", ["a/c,2.jpg", "a/b,1.jpg"]),
        (
            "<picture><source srcset='w.webp 2x'><source data-srcset=v.avif><img src=f.jpg></picture>",
            ["a/f.jpg", "a/w.webp", "a/v.avif"],
        ),
        ("<picture><source srcset=w.webp><img></picture>", ["a/w.webp"]),
        ("<img data-lazy-srcset='l.jpg 2x' src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", ["a/l.jpg"]),
        ("<noscript><img src=x.png></noscript>", ["a/x.png"]),
        ("<img data-src=x.png><noscript><img src=x.png></noscript>", ["a/x.png"]),
        ("<amp-img src=x.png></amp-img>", ["a/x.png"]),
        ("<IMG SRC=x.png>", ["a/x.png"]),
    ],
)
def test_where_a_picture_is(body: str, urls: list[str]) -> None:
    found = pictures(body)
    assert len(found) == 1
    assert list(found[0].urls) == [url if "://" in url else f"https://example.org/{url}" for url in urls]
    assert found[0].shown == found[0].urls[0]


@pytest.mark.parametrize(
    "body",
    [
        "<img>",
        "<img src=''>",
        "<img src=x.png width=1 height=1>",
        "<img src=x.png width='1px'>",
        "<img src=x.png height=0>",
        "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>",
        "<img src='data:image/svg+xml;utf8,<svg " + "x" * 300 + "/>'>",
        "<img src='about:blank'>",
        "<img src=x.png hidden>",
        "<div style='display:none'><img src=x.png></div>",
        "<video poster=x.png></video>",
        "<svg><image href=x.png></svg>",
    ],
)
def test_what_is_no_picture(body: str) -> None:
    assert pictures(body + "<p>x</p>") == []


def test_pictures_within_the_page_are_its_bytes() -> None:
    data = png(64, 64) + bytes(200)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    found = pictures(f"<img src='{uri}' alt=' A \n dot '>")[0]
    assert (found.data, found.urls, found.alt) == (data, (), "A dot")
    assert len(found.shown) < 100
    assert pictures(f"<img src='data:image/png;base64,{'A' * (24 << 20)}'>") == []


def test_signs_and_formulas_are_their_alternative_text() -> None:
    assert parts("<p>Hi <img class=emoji src=x.png alt='\U0001f600'>, <img class='latex' src=y.png alt='x^2'>!</p>") == [
        "Hi \U0001f600, x^2!"
    ]


@pytest.mark.parametrize("reference", ["http://[bad", "javascript:x()", "http://", "x" * 5000, "", "mailto:a@b"])
def test_what_is_no_url(reference: str) -> None:
    assert absolute(reference, URL) is None


# --- charsets --------------------------------------------------------------------------------------------------------

RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 5


@pytest.mark.parametrize(
    ("data", "header", "encoding"),
    [
        (RUSSIAN.encode("cp1251"), "text/html; charset=windows-1251", "cp1251"),
        (b"<meta charset='windows-1251'>" + RUSSIAN.encode("cp1251"), "text/html", "cp1251"),
        (b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>" + RUSSIAN.encode("koi8-r"), "", "koi8-r"),
        (b"<?xml version='1.0' encoding='iso-8859-5'?>" + RUSSIAN.encode("iso-8859-5"), "", "iso8859-5"),
        (RUSSIAN.encode("cp1251"), "", "cp1251"),
        (RUSSIAN.encode(), "text/html; charset=iso-8859-1", "utf-8"),
        (RUSSIAN.encode(), "", "utf-8"),
        (b"\xef\xbb\xbf" + RUSSIAN.encode(), "text/html; charset=koi8-r", "utf-8"),
        (b"\xff\xfe" + RUSSIAN.encode("utf-16-le"), "text/html; charset=utf-8", "utf-16-le"),
        (RUSSIAN.encode("utf-16-be"), "text/html; charset=utf-16be", "utf-16-be"),
        (b"<meta charset=utf-16>" + RUSSIAN.encode(), "", "utf-8"),
        ("日本語のテキストです。".encode("cp932") * 9, "text/html; charset=Shift_JIS", "cp932"),
        ("中文网页的内容".encode("gb18030") * 9, "text/html; charset=gb2312", "gb18030"),
        ("caf\xe9 \u201cquoted\u201d".encode("cp1252"), "text/html; charset=ISO-8859-1", "cp1252"),
        (b"plain", "text/html; charset=nonsense", "utf-8"),
        (RUSSIAN.encode("cp1251"), "text/html; charset=unicode_escape", "cp1251"),
    ],
)
def test_charsets(data: bytes, header: str, encoding: str) -> None:
    found = decode_page(data, header)
    assert found.encoding == encoding
    assert found.errors == 0
    assert found.text.encode(encoding) == data.removeprefix(b"\xef\xbb\xbf" if encoding == "utf-8" else b"\xff\xfe")


def test_bytes_that_an_encoding_does_not_know_are_counted() -> None:
    found = decode_page("gut \ufffd ".encode() + b"\xff\xff", "text/html; charset=utf-8")
    assert (found.encoding, found.errors) == ("utf-8", 2)
    assert found.text == "gut \ufffd \ufffd\ufffd"


# --- payloads --------------------------------------------------------------------------------------------------------


def payload(body: bytes, *fields: tuple[str, str], truncated: bool = False, limit: int = 1 << 20) -> bytes:
    block = http(body, "text/html", 200, *fields)
    head = parse_http(block)
    assert head is not None
    return payload_of(head, block, limit, truncated=truncated)


CHUNKED, GZIP, DEFLATE, BROTLI = (
    ("Transfer-Encoding", "chunked"),
    ("Content-Encoding", "gzip"),
    ("content-encoding", "Deflate"),
    ("Content-Encoding", "br"),
)
TEXT = b"<p>" + b"some words and more of them " * 200


def chunks(data: bytes, size: int = 100) -> bytes:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


def test_payloads_come_out_whole() -> None:
    brotli = pytest.importorskip("brotli")
    assert payload(TEXT) == TEXT
    assert payload(chunks(TEXT), CHUNKED) == TEXT
    assert payload(gzip.compress(TEXT), GZIP) == TEXT
    assert payload(gzip.compress(TEXT) + gzip.compress(TEXT), GZIP) == TEXT * 2
    assert payload(chunks(gzip.compress(TEXT)), CHUNKED, GZIP) == TEXT
    assert payload(zlib.compress(TEXT), DEFLATE) == payload(raw_deflate(TEXT), DEFLATE) == TEXT
    assert payload(brotli.compress(TEXT), BROTLI) == TEXT
    assert payload(gzip.compress(zlib.compress(TEXT)), ("Content-Encoding", "deflate, gzip")) == TEXT


def test_what_the_archive_has_undone_already_is_taken_as_it_is() -> None:
    for fields in ([CHUNKED], [GZIP], [DEFLATE], [BROTLI], [CHUNKED, GZIP], [("Content-Encoding", "UTF-8")]):
        assert payload(TEXT, *fields) == TEXT


@pytest.mark.parametrize("cut", [1, 9, 100, 400])
def test_payloads_that_are_cut_short_are_rejected_unless_the_archive_says_so(cut: int) -> None:
    rng = random.Random(1)
    data = bytes(rng.choices(b"abcdefgh<>", k=3000))
    for body, field in (
        (chunks(data), CHUNKED),
        (gzip.compress(data), GZIP),
        (zlib.compress(data), DEFLATE),
        (pytest.importorskip("brotli").compress(data), BROTLI),
    ):
        short = body[:-cut] if field is not CHUNKED else body[: -cut - 5]
        with pytest.raises(ItemError) as caught:
            payload(short, field)
        assert caught.value.reason in ("payload-truncated", "content-encoding-damaged")
        assert data.startswith(payload(short, field, truncated=True))


def test_encodings_that_are_not_known_or_too_many_are_rejected() -> None:
    for names in ("zstd", "gzip, gzip, gzip, gzip, gzip"):
        with pytest.raises(ItemError, match="content-encoding-unknown"):
            payload(TEXT, ("Content-Encoding", names))
    for field, body in ((GZIP, gzip.compress(bytes(1 << 21))), (CHUNKED, chunks(bytes(1 << 21), 1 << 20))):
        with pytest.raises(ItemError, match="payload-too-large"):
            payload(body, field)


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        "<p>" + "".join(f"<b a={i}>" for i in range(2000)) + "</p>" + "<p>x</p>" * 4000,
        "<i>" * 3 + "".join(f"<font a={i}>" for i in range(1500)) + "<div>x</div>" * 2000,
        "<p>" * (MAX_NODES + 1),
        "<p " + " ".join(f"a{i}" for i in range(100_000)) + ">x",
        "<p " + " ".join(f"a{i}=1" for i in range(100_000)) + ">x",
    ],
)
def test_pages_that_would_make_a_parser_explode_are_refused(page: str) -> None:
    with pytest.raises(ItemError, match="html-too-tangled"):
        read_page(page, URL)


def test_pages_that_are_merely_untidy_are_not() -> None:
    untidy = "<font size=2><b><p>text" * 500 + "<a href=x>" * 3000 + "<table><tr><td>" * 200
    check_bounds(untidy)
    assert "text" in "".join(part for part in read_page(untidy, URL).parts if isinstance(part, str))
    picture = "<img src='data:image/png;base64," + "A" * (1 << 20) + "=='>"
    check_bounds(picture)


def test_a_fault_of_the_parser_is_a_reject_and_any_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import resiliparse.parse.html as parser

    class PanicException(BaseException):
        pass

    for fault, seen in ((PanicException("index out of bounds"), ItemError), (KeyboardInterrupt(), KeyboardInterrupt)):

        class Tree:
            @staticmethod
            def parse(text: str, fault: BaseException = fault) -> None:
                raise fault

        monkeypatch.setattr(parser, "HTMLTree", Tree)
        with pytest.raises(seen):
            read_page("<p>x</p>", URL)


def test_random_tag_soup_is_read() -> None:
    rng = random.Random(11)
    tags = ["p", "div", "b", "i", "font", "table", "tr", "td", "ul", "li", "ol", "a", "pre", "img", "figure", "form", "main"]
    tags += ["header", "br", "select", "svg", "math", "title", "base", "noscript"]
    for _ in range(60):
        soup = []
        for _ in range(rng.randint(1, 400)):
            tag = rng.choice(tags)
            soup.append(
                rng.choice(
                    (
                        f"<{tag}>",
                        f"</{tag}>",
                        f"<{tag} class=x{rng.random()} href=q src=i.png hidden",
                        "text ",
                        "&lt;",
                        "<!--",
                        "]]>",
                        "\x00",
                    )
                )
            )
        found = read_page("".join(soup), URL)
        assert all(part == part.strip() and part for part in found.parts if isinstance(part, str) and "\n" not in part)
