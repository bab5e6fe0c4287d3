"""An S3 server for tests (moto's, in a thread of this process) that counts its requests and fails when it is told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokkit.sources import remote

BUCKET = "bucket"
KEY = "AKIATESTTESTTEST"
SECRET = "not-so-secret-test-key"


class Store:
    """The server, and a client of it.

    Attributes:
        requests: (method, path, Range header) of what was asked for, but for this class's own requests.
        failing: says of a request, by method and path, whether to answer it with 503.
        careless: conditions of requests are passed over, as by a store that does not know them.
    """

    def __init__(self) -> None:
        from moto.moto_api._internal import moto_api_backend
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        moto_api_backend.reset()  # what another server of this process held
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, str, str]] = []
        self.failing: Callable[[str, str], bool] = lambda method, path: False
        self.careless = False
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if "own-request" not in environ.get("HTTP_USER_AGENT", ""):
            self.requests.append((method, path, environ.get("HTTP_RANGE", "")))
            if self.failing(method, path):
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>try later</Message></Error>"]
        if self.careless:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        # The server answers with 500 where a listing meets a change by others.
        again = {"mode": "standard", "total_max_attempts": 6}
        return boto3.client("s3", endpoint_url=self.url, config=Config(user_agent_extra="own-request", retries=again))

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        data: bytes = self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str) -> list[str]:
        """Names of the objects below a prefix, without it."""
        found: list[str] = []
        for page in self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            found += [entry["Key"].removeprefix(f"{prefix}/") for entry in page.get("Contents", [])]
        return found

    def snapshot(self, prefix: str) -> dict[str, str]:
        """Every object outside of ``run/`` with its SHA-256, as :func:`shard_corpus.snapshot` has it of a folder."""
        names = [name for name in self.keys(prefix) if not name.startswith("run/")]
        return {name: hashlib.sha256(self.get(f"{prefix}/{name}")).hexdigest() for name in names}

    def uploads(self) -> list[str]:
        """Keys of uploads that were begun and not ended."""
        return [entry["Key"] for entry in self.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    def remove(self, key: str) -> None:
        self.client().delete_object(Bucket=BUCKET, Key=key)

    def upload(self, folder: Path, prefix: str) -> None:
        """Everything below a folder."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def bytes_of(self, key: str) -> int:
        """How many bytes were asked for of an object, ranges only."""
        ranges = [r.removeprefix("bytes=").split("-") for m, p, r in self.requests if m == "GET" and p.endswith(key) and r]
        return sum(int(stop) - int(start) + 1 for start, stop in ranges)

    def close(self) -> None:
        self._server.shutdown()


def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store, and this process and those that it starts looking for S3 there."""
    for module in ("moto", "s3fs", "boto3", "flask_cors"):
        pytest.importorskip(module)
    import s3fs

    from tokkit.sources.remote import _filesystem

    store = Store()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    _filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    store.client().create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        store.close()
        _filesystem.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()


def serve_quickly(monkeypatch: pytest.MonkeyPatch, temporary: Path, tries: int) -> Iterator[Store]:
    """A store to a process that asks so many times without waiting long, and works in a temporary folder, which is made."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TRIES", tries)
    monkeypatch.setenv("TMPDIR", str(temporary))
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    yield from serve(monkeypatch)
