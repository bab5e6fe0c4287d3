"""Files that are there whole or not at all.

Everything tokkit writes for keeps goes through here: content is written under a name that no other attempt uses, fsynced, and
given its final name in one atomic step. ``replace`` semantics (:func:`write_atomic`) serve files that any attempt would write
with the same bytes; :func:`create_if_absent` serves commit records, where exactly one attempt may win.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokkit.errors import DataError
from tokkit.failpoints import failpoint

CHUNK = 1 << 20


def attempt_name(path: Path) -> Path:
    """A sibling of ``path`` that no other process or attempt uses: ``NAME.tmp-PID-RANDOM``."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def is_attempt(path: Path) -> bool:
    """Whether ``path`` was named by :func:`attempt_name`: left over if no process is at work."""
    return ".tmp-" in path.name


def remove_attempts(folder: Path) -> int:
    """Remove files that attempts which never came to their end left in a folder; only while no process is at work there.

    Returns:
        how many there were.
    """
    left = [path for path in folder.iterdir() if is_attempt(path) and path.is_file()]
    for path in left:
        path.unlink()
    return len(left)


def fsync(path: Path) -> None:
    """Make a file's content, or a directory's entries (new names, renames), survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write to; on success it is fsynced and renamed to ``path``, on an error removed.

    >>> with replacing(Path("x.bin")) as temporary:
    ...     temporary.write_bytes(b"...")
    """
    temporary = attempt_name(path)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file; readers see the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def create_if_absent(path: Path, data: bytes | str) -> bool:
    """Create ``path`` with this content, unless it exists; one atomic step.

    Returns:
        True where this call created it, False where it was there already (and is left as it was).
    """
    temporary = attempt_name(path)
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        fsync(temporary)
        failpoint("before-link")
        try:
            os.link(temporary, path)  # fails if the name is taken, and shows the whole content or nothing
        except FileExistsError:
            return False
        fsync(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def same_file(source: Path, target: Path) -> None:
    """Give a file that is never changed in place a second name, in one atomic step; on another disk, copy it.

    Raises:
        DataError: there is no such file.
    """
    temporary = attempt_name(target)
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise DataError(f"{source} is missing") from None
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, temporary)
            fsync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is made where it is not there and stays; a process that dies lets go of it.

    Raises:
        BlockingIOError: another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII; what fingerprints are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def pretty_json(value: object) -> str:
    """JSON for files that people read too: keys in the order given, indented."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def fingerprint_of(value: object) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def digest_of(entry: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a record's content, its own ``digest`` left out: what tells that a record was changed."""
    return fingerprint_of({key: value for key, value in entry.items() if key != "digest"})


def record_json(entry: Mapping[str, object]) -> str:
    """A record's JSON text, with the digest of its content in the field ``digest``."""
    return pretty_json({**entry, "digest": digest_of(entry)})


def read_json(path: Path) -> Any:
    """Read a JSON file that tokkit wrote.

    Raises:
        DataError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
