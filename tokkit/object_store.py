"""A prefix in an object store that files are written below, through fsspec.

What an output needs of a store, and nothing else: an object appears whole or not at all; one can be created only if it is
absent (S3's ``If-None-Match``), which is what commit records rest on; what was written is seen by the next read and listing.
A request that fails is made again, with waits that double (:func:`tokkit.sources.remote.tried`), and is then given up as an
``OSError`` of the surroundings. Large files go to S3 in parts; an upload that fails is taken back, and what a killed process
left half uploaded is found and removed by :meth:`ObjectStore.abandon_uploads`.

Names are relative to the prefix, with slashes. Endpoint and credentials are those that inputs are read with.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokkit.errors import UsageError
from tokkit.failpoints import failpoint
from tokkit.sources import remote
from tokkit.sources.remote import is_url
from tokkit.storage import attempt_name

T = TypeVar("T")
U = TypeVar("U")

PART = 16 << 20  # bytes that go to S3 in one request; what is larger goes in parts of this
MOST_PARTS = 10_000  # of one upload, by S3's rules
PARTS_AT_ONCE = 4
AT_ONCE = 16  # requests for small objects
SLOWEST = 256 << 10  # bytes a second below which a transfer is taken to hang
BULK = 1000  # objects that S3 deletes in one request

CANNOT_CREATE = (
    "{}: this store, or the package that it is reached with, does not create an object only if it is absent (S3's "
    "If-None-Match), and without that two processes could both commit a unit. Use a store that does, with a recent fsspec "
    "and s3fs or gcsfs, or write to a folder and copy it there"
)


def object_store(url: str) -> ObjectStore:
    """The prefix that a URL names.

    Raises:
        UsageError: it is no URL of a place that objects can be written to.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        raise UsageError(f"{url}: a web server can be read from, not written to")
    if scheme in ("file", "local"):
        raise UsageError(f"{url}: name a folder of this machine by its path, without {scheme}://")
    if not url.partition("://")[2].strip("/"):
        raise UsageError(f"{url} names no bucket")
    return ObjectStore(url.rstrip("/"))


def place_of(typed: str) -> Path | str:
    """What was typed for an output: a URL stays one, anything else is a path."""
    return typed if is_url(typed) else Path(typed)


def in_threads(work: Callable[[T], U], items: Iterable[T], threads: int = AT_ONCE) -> list[U]:
    """Do requests side by side; the results in order."""
    several = list(items)
    if len(several) < 2:
        return [work(item) for item in several]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, several))


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells of it; ``mark`` is another number once its content is another."""

    bytes: int
    mark: int


@dataclass(frozen=True)
class ObjectStore:
    """Objects below a URL; picklable, safe between threads.

    Every method raises ``PermissionError`` where the store refuses, and another ``OSError``, after its tries, where it does not
    answer.
    """

    url: str

    def create(self, name: str, data: bytes) -> bool:
        """Create an object unless there is one; one atomic step of the store.

        Returns:
            whether it now holds ``data``: True also where another had created it with the same content. (A try whose answer
            was lost may be the one that created it.)
        """
        failpoint("before-link")

        def ask() -> bool:
            try:
                self._call("pipe_file", name, data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):
                raise UsageError(CANNOT_CREATE.format(self.url)) from None
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    raise UsageError(CANNOT_CREATE.format(self.url)) from None
                raise
            return True

        return self._tried(name, ask) or self.get(name) == data

    def write(self, name: str, data: bytes) -> None:
        """Create an object, or replace it."""
        self._tried(name, lambda: self._call("pipe_file", name, data))

    def read(self, name: str) -> bytes:
        """An object's content.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self._is_s3:
            return bytes(self._tried(name, lambda: self._call("cat_file", name)))
        bucket, key, _ = self._fs.split_path(self._path(name))
        return self._tried(name, lambda: _get_object(self._fs, bucket, key))  # cat_file asks for the size first

    def get(self, name: str) -> bytes | None:
        """An object's content, or None where there is none."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """An object's bytes, or None where there is none."""
        try:
            if not self._is_s3:
                return int(self._tried(name, lambda: self._call("info", name))["size"])
            bucket, key, _ = self._fs.split_path(self._path(name))
            return int(self._s3("head_object", Bucket=bucket, Key=key)["ContentLength"])
        except FileNotFoundError:
            return None

    def upload(self, name: str, path: Path) -> None:
        """Create an object, or replace it, with a file's content."""
        size = path.stat().st_size
        failpoint("before-upload")
        if size <= PART:
            data = path.read_bytes()
            self._tried(name, lambda: self._call("pipe_file", name, data, seconds=_patience(size)))
        elif self._is_s3:
            self._upload_in_parts(name, path, size)
        else:
            self._tried(name, lambda: self._call("put_file", str(path), to=name, seconds=_patience(size)))

    def download(self, name: str, path: Path) -> None:
        """Write an object's content to a file, which appears whole or not at all; its folder is made.

        Raises:
            FileNotFoundError: there is no such object.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = attempt_name(path)
        try:
            self._tried(name, lambda: self._call("get_file", name, str(temporary), seconds=None))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def listed(self, folder: str = "") -> dict[str, Listed]:
        """Every object below a folder, by name, sorted: one listing, in pages, and no request for a single object."""
        base = self._path("")

        def ask() -> dict[str, Listed]:
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = remote.call(self._fs, "find", self._path(folder), detail=True)
            names = {path.removeprefix(base).strip("/"): info for path, info in found.items() if not path.endswith("/")}
            entries = ((name, Listed(int(info["size"]), remote.mark_of(info))) for name, info in names.items())
            return dict(sorted(entry for entry in entries if entry[0].startswith(f"{folder}/") or not folder))

        try:
            return self._tried(folder, ask)
        except FileNotFoundError:
            return {}

    def names(self) -> set[str]:
        """Names of what lies right below the prefix; folders without what is in them."""
        base = self._path("")

        def ask() -> set[str]:
            self._fs.invalidate_cache()
            found = remote.call(self._fs, "ls", base, detail=False)
            return {path.rstrip("/").rpartition("/")[2] for path in found if path.strip("/") != base.strip("/")}

        try:
            return self._tried("", ask)
        except FileNotFoundError:
            return set()

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        left = list(names)
        if hasattr(self._fs, "_bulk_delete") and len(left) > 1:
            for first in range(0, len(left), BULK):
                paths = [self._path(name) for name in left[first : first + BULK]]
                self._tried("", lambda paths=paths: remote.call(self._fs, "bulk_delete", paths))  # type: ignore[misc]
            return

        def gone(name: str) -> None:
            with suppress(FileNotFoundError):
                self._tried(name, lambda: self._call("rm_file", name))

        in_threads(gone, left)

    def check(self) -> None:
        """Find out whether the store creates an object only if it is absent, by trying it; leaves nothing there.

        Raises:
            UsageError: it does not, or there is no such bucket, or nothing may be written to it.
        """
        name = f"run/.probe-{secrets.token_hex(8)}"
        try:
            first = self.create(name, b"1")
            try:
                again = self.create(name, b"2")
                kept = self.get(name)
            finally:
                self.remove([name])
        except FileNotFoundError:
            raise UsageError(f"{self.url}: there is no such bucket") from None
        except PermissionError as error:
            raise UsageError(f"{self.url} cannot be written to: {error.strerror}") from None
        if not first or again or kept != b"1":
            raise UsageError(CANNOT_CREATE.format(self.url))

    def abandon_uploads(self) -> int:
        """Remove what killed processes left half uploaded; only while no other process is at work here.

        Returns:
            how many uploads there were.
        """
        if not self._is_s3:
            return 0  # others keep none, or forget them by themselves
        try:
            found = list(self._uploads())
        except (PermissionError, NotImplementedError):
            return 0  # not for us to see: the bucket's own rules remove them
        for bucket, key, upload in found:
            with suppress(FileNotFoundError):
                self._s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
        return len(found)

    # ---- requests

    @property
    def _fs(self) -> Any:
        return remote.opened(self.url)[0]

    @property
    def _is_s3(self) -> bool:
        return hasattr(self._fs, "_call_s3")

    def _path(self, name: str) -> str:
        """As the file system calls an object."""
        path: str = remote.opened(f"{self.url}/{name}" if name else self.url)[1]
        return path

    def _tried(self, name: str, ask: Callable[[], T]) -> T:
        return remote.tried(f"{self.url}/{name}" if name else self.url, ask)

    def _call(self, method: str, *args: object, to: str | None = None, **options: Any) -> Any:
        """Call a method of the file system about the object that the first argument, or ``to`` as the second, names."""
        paths = [self._path(str(args[0])), *args[1:]] if to is None else [*args, self._path(to)]
        return remote.call(self._fs, method, *paths, **options)

    # ---- S3's uploads in parts

    def _s3(self, method: str, *, seconds: float = remote.CALL_SECONDS, **options: object) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            found: dict[str, Any] = remote.call(self._fs, "call_s3", method, seconds=seconds, **options)
            return found

        return self._tried(str(options.get("Key", "")), ask)

    def _upload_in_parts(self, name: str, path: Path, size: int) -> None:
        bucket, key, _ = self._fs.split_path(self._path(name))
        part = max(PART, -(-size // MOST_PARTS))
        upload = self._s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
        of = {"Bucket": bucket, "Key": key, "UploadId": upload}

        def send(number: int) -> dict[str, object]:
            with path.open("rb") as file:
                file.seek(number * part)
                data = file.read(part)
            told = self._s3("upload_part", **of, PartNumber=number + 1, Body=data, seconds=_patience(len(data)))
            failpoint("in-upload")
            return {"PartNumber": number + 1, "ETag": told["ETag"]}

        try:
            parts = in_threads(send, range(-(-size // part)), PARTS_AT_ONCE)
            try:
                self._s3("complete_multipart_upload", **of, MultipartUpload={"Parts": parts}, seconds=_patience(size))
            except FileNotFoundError:
                # A try whose answer was lost may have completed it; else another process took it for a dead one's.
                if self.size(name) != size:
                    raise
        except BaseException:
            with suppress(OSError):
                self._s3("abort_multipart_upload", **of)
            raise

    def _uploads(self) -> Iterator[tuple[str, str, str]]:
        """Uploads below the prefix that were begun and not completed: bucket, key, id."""
        bucket, prefix, _ = self._fs.split_path(self._path(""))
        after: dict[str, Any] = {}
        while True:
            page = self._s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **after)
            for upload in page.get("Uploads", []):
                yield bucket, upload["Key"], upload["UploadId"]
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _get_object(fs: Any, bucket: str, key: str) -> bytes:
    from fsspec.asyn import sync

    async def ask() -> bytes:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            data: bytes = await body.read()
        return data

    found: bytes = sync(fs.loop, ask, timeout=remote.CALL_SECONDS)
    return found


def _patience(size: int) -> float:
    """Seconds that a request with so many bytes may take."""
    return remote.CALL_SECONDS + size / SLOWEST


__all__ = ["Listed", "ObjectStore", "in_threads", "is_url", "object_store", "place_of"]
