"""What pictures are looked up by: 128-bit keys of URLs and of names.

A URL is brought to the spelling in which captures of web archives are compared (:func:`tokkit.sources.warc.pictures.same_url`),
so that `HTTP://Host:80/a#b` and `http://host/a` are one. A name is a path below a store's top, with forward slashes; one that
leads anywhere else (absolute, or with `..`) has no key, and so is never found.
"""

from __future__ import annotations

import posixpath
import re
from hashlib import blake2b
from urllib.parse import unquote, urlsplit

from tokkit.sources.warc.pictures import same_url

KEY_BYTES = 16
# URLs that are spelled as they are compared already, as nearly all are: no port, escape, fragment or empty query.
_PLAIN = re.compile(r"https?://[a-z0-9][a-z0-9.-]*/[!\"$&-~]*(?<!\?)")


def key_of(what: str) -> bytes:
    """The key of ``url:...``, ``name:...`` or ``digest:...``."""
    return blake2b(what.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def spelled(url: str) -> str:
    """A URL as it is compared."""
    return url if _PLAIN.fullmatch(url) else same_url(url)


def url_key(url: str) -> bytes:
    """The key of a URL."""
    return key_of(f"url:{spelled(url)}")


def name_key(name: str) -> bytes | None:
    """The key of a name, or None for one that leads out of a store."""
    tidy = tidy_path(name)
    return None if tidy is None else key_of(f"name:{tidy}")


def tidy_path(name: str) -> str | None:
    """``./a//b.png`` -> ``a/b.png``; None for a name that is absolute, climbs, or that no file can have."""
    if not name or name.startswith("/") or "\0" in name or len(name) > 4096 or ".." in name.split("/"):
        return None
    tidy = posixpath.normpath(name)
    return None if tidy == "." else tidy


def names_of_url(url: str) -> tuple[str, ...]:
    """The names under which ``wget --force-directories`` keeps a URL: ``host/path``, escapes as they are, or undone."""
    try:
        parts = urlsplit(spelled(url))
    except ValueError:
        return ()
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ()
    name = parts.netloc + parts.path + (f"?{parts.query}" if parts.query else "")
    return tuple(tidy for each in dict.fromkeys((name, unquote(name))) if (tidy := tidy_path(each)) is not None)
