"""A cache on a web server. The only module that imports httpx.

In: an http:// or https:// URL. Out: a `Store`. A server need not list its folders: the files of a cache follow from its
manifest, its index and the records of its parts.

fsspec's own driver reports every failure as a missing file, and accepts a whole file as a range of it; copies that
resume after errors must distinguish these.
"""

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar, final
from urllib.parse import quote

import httpx

from kdpipe.cache import layout
from kdpipe.cache.stores.attempts import AttemptStore
from kdpipe.cache.stores.failures import driver_error, is_retryable
from kdpipe.cache.stores.protocol import MAX_LISTED, URL_HOLDS_MANIFEST, check_tag, checked_size
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, FileReplaced, KdpipeError, Unreachable
from kdpipe.schemas.manifest import Manifest, read_manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import MAX_BYTES

TRY_AGAIN: Final = "check the URL and the network, then run the same command again"
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
Found = TypeVar("Found")
_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFloor:
    """The minimum speed: fewer than `least` bytes per second over a whole window are a stall, which no timeout notices.

    Eight concurrent requests on a line of 10 kB/s are above it.
    """

    least: float = 1000.0
    window_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def held(self, chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
        """Pass chunks on; `Unreachable` if they stall."""
        began, n_bytes = self.clock(), 0
        for chunk in chunks:
            n_bytes += len(chunk)
            seconds = self.clock() - began
            if seconds >= self.window_seconds:
                if n_bytes < self.least * seconds:
                    raise Unreachable(
                        f"{name} stalled: {n_bytes:,} bytes in {seconds:.0f} s, less than {self.least:,.0f} bytes/s",
                        hint=TRY_AGAIN,
                    )
                began, n_bytes = self.clock(), 0
            yield chunk


@final
class Deadline:
    """The deadline for headers, and for each next chunk of data: one window of the floor.

    httpx has no timeout for a whole response. Its trace hook gives each new connection, whose reads are timed.
    """

    def __init__(self, floor: RateFloor) -> None:
        self._floor = floor
        self._local = threading.local()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Restart with each phase of a request of this thread (httpx's request extension `trace`)."""
        self.restart()
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._watch(info["return_value"])

    def restart(self) -> None:
        """Start a new window for this thread."""
        self._local.began = self._floor.clock()

    def renewed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Restart the deadline with each chunk; the time of the caller does not count."""
        for chunk in chunks:
            yield chunk
            self.restart()

    def _watch(self, stream: Any) -> None:
        """Check the deadline after each read of a connection."""
        read = stream.read

        def timed(max_bytes: int, timeout: float | None = None) -> bytes:
            data: bytes = read(max_bytes, timeout)
            seconds = self._floor.clock() - self._local.began
            if seconds >= self._floor.window_seconds:
                raise httpx.ReadTimeout(f"stalled: headers or data are incomplete after {seconds:.0f} s")
            return data

        stream.read = timed


def open_http(url: str, retry_policy: RetryPolicy) -> "HttpStore":
    """The store of a URL, with retries."""
    return HttpStore(url, retry_policy=retry_policy)


@final
class HttpStore:
    """A folder of a web server; `timeout` limits silence, `floor` is the minimum speed.

    With `retry_policy` each request is retried on its own: a listing takes many.
    """

    def __init__(
        self,
        url: str,
        timeout: httpx.Timeout | None = None,
        floor: RateFloor | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._retry_policy = retry_policy
        self._timeout, self._floor = timeout or TIMEOUT, floor or RateFloor()
        self._deadline = Deadline(self._floor)
        self._clients: dict[int, httpx.Client] = {}
        weakref.finalize(self, _close, self._clients)
        self._manifest: Manifest | None = None
        self._manifest_data: bytes | None = None
        self._final_sizes: dict[str, int] = {}
        self._seen = threading.local()
        self._attempts = AttemptStore(self._size, self._read)
        if self.size(layout.MANIFEST) is None:
            raise ConfigError(f"no {layout.MANIFEST} at {url}", hint=URL_HOLDS_MANIFEST)

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """The files that the manifest and records name, with their sizes."""
        sizes = {}
        for name in self._expected(folder):
            size = self.size(name)
            if size is not None:
                sizes[name] = size
        if len(sizes) > limit:
            raise CacheDamaged(f"{folder} has more than {limit} files and folders")
        if not sizes:
            raise CacheDamaged(f"{folder} cannot be listed: it does not exist")
        return sizes

    def names(self, folder: str) -> list[str]:
        """The names that the manifest and records name."""
        if not folder:
            tops = {
                name.partition("/")[0] for name in (*self._expected(layout.TOKENIZER), *self._expected(layout.TABLES))
            }
            whole = {layout.INDEX} if self.size(layout.INDEX) is not None else set()
            return sorted({layout.MANIFEST, layout.PARTS} | tops | whole)
        if folder == layout.PARTS:
            if self.size(layout.INDEX) is None:
                raise CacheError(
                    f"{self.url} has no {layout.INDEX}, and a web server has no list of parts",
                    hint="wait until the cache is finished, or read it from a store with listings",
                )
            return [layout.part_dir(number).rpartition("/")[2] for number in range(self._read_manifest().plan.n_parts)]
        return sorted({name.removeprefix(f"{folder}/").partition("/")[0] for name in self._expected(folder)})

    def size(self, name: str) -> int | None:
        """See `Store`; manifest and index never change once they exist."""
        if name in self._final_sizes:
            return self._final_sizes[name]
        size = self._size(self._attempts.stored_name(name))
        if size is not None and name in (layout.MANIFEST, layout.INDEX):
            self._final_sizes[name] = size
        return size

    def _size(self, name: str) -> int | None:
        return self._retried(lambda: self._size_once(name))

    def _size_once(self, name: str) -> int | None:
        with self._errors(name):
            answer = self._client().head(self._place(name), extensions=self._trace_extension())
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        self._check(answer, name)
        length = answer.headers.get("content-length", "")
        if not length.isdigit():
            raise CacheError(f"{self.url} sends no Content-Length for {name}", hint="use another web server")
        return int(length)

    def read(self, name: str, limit: int) -> bytes:
        data = self._read(self._attempts.stored_name(name), limit)
        if name == layout.MANIFEST:
            self._manifest_data = data
        return data

    def _read(self, name: str, limit: int) -> bytes:
        return self._retried(lambda: self._read_once(name, limit))

    def _read_once(self, name: str, limit: int) -> bytes:
        with self._errors(name), self._stream(name) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise CacheDamaged(f"{name} does not exist")
            self._check(answer, name)
            data = bytearray()
            for chunk in self._body(answer, name):
                data += chunk
                if len(data) > limit:
                    raise CacheDamaged(f"{name} has more than the {limit:,} bytes allowed")
            return bytes(data)

    def view(self, name: str, size: int) -> memoryview:
        return checked_size(self.read(name, size), name, size)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`; a response with another range is refused."""
        name = self._attempts.stored_name(name)
        return self._retried(lambda: self._range_once(name, begin, end, tag))

    def _range_once(self, name: str, begin: int, end: int, tag: str | None) -> bytes:
        headers = {"Range": f"bytes={begin}-{end - 1}", **_unchanged_condition(tag)}
        with self._errors(name), self._stream(name, headers) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise CacheDamaged(f"{name} does not exist")
            if answer.status_code == httpx.codes.PRECONDITION_FAILED:
                raise FileReplaced(f"{name} was replaced while it was read")
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise CacheDamaged(f"{name} has no bytes {begin:,} to {end:,} at {self.url}")
            self._check(answer, name)
            check_tag(name, tag, _tag_of(answer))
            skipped = self._skipped(answer, name, begin, end)
            received = bytearray()
            for chunk in self._body(answer, name):
                received += chunk[skipped:]
                skipped = max(0, skipped - len(chunk))
                if len(received) >= end - begin:
                    break
            data = bytes(received[: end - begin])
        if len(data) != end - begin:
            raise Unreachable(f"{self.url}/{name} ended after {len(data):,} of {end - begin:,} bytes", hint=TRY_AGAIN)
        return data

    def _skipped(self, answer: httpx.Response, name: str, begin: int, end: int) -> int:
        """Bytes of a response before the range: none, or all before it if the server sends the whole file."""
        if answer.status_code == httpx.codes.OK:
            self._note_length(answer.headers.get("content-length", ""))
            return begin
        stated = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code != httpx.codes.PARTIAL_CONTENT or stated is None or int(stated[1]) != begin:
            raise Unreachable(
                f"{self.url}/{name}: requested bytes {begin:,} to {end:,}, "
                f"received {answer.headers.get('content-range', answer.status_code)}",
                hint=TRY_AGAIN,
            )
        self._note_length(stated[3])
        if stated[3].isdigit() and int(stated[3]) < end:
            raise CacheDamaged(f"{name} has {int(stated[3]):,} bytes, expected at least {end:,}")
        return 0

    def _note_length(self, length: str) -> None:
        self._seen.length = int(length) if length.isdigit() else None

    def length_seen(self) -> int | None:
        """The length of the file that this thread has read a range of last, if the server stated it."""
        length: int | None = getattr(self._seen, "length", None)
        return length

    def tag(self, name: str) -> str | None:
        name = self._attempts.stored_name(name)
        return self._retried(lambda: self._tag_once(name))

    def _tag_once(self, name: str) -> str | None:
        with self._errors(name):
            answer = self._client().head(self._place(name), extensions=self._trace_extension())
        self._check(answer, name)
        return _tag_of(answer)

    def _retried(self, work: Callable[[], Found]) -> Found:
        return work() if self._retry_policy is None else self._retry_policy.call(work)

    def _expected(self, folder: str) -> list[str]:
        """The files that a folder must have."""
        manifest = self._read_manifest()
        by_folder: Mapping[str, list[str]] = {
            layout.TOKENIZER: [f"{layout.TOKENIZER}/{name}" for name in manifest.tokenizer.files],
            layout.TABLES: [layout.table_file(table.name) for table in manifest.tables],
            layout.JOURNAL: [],
        }
        if folder in by_folder:
            return by_folder[folder]
        record = f"{folder}/{layout.PART_RECORD}"
        data = self.read(record, layout.MAX_RECORD_BYTES)
        files = read_record(PartRecord, data, record, ignore_unknown=True, damaged=CacheDamaged).files
        return [record, *(f"{folder}/{name}" for name in files)]

    def _read_manifest(self) -> Manifest:
        if self._manifest is None:
            data = self._manifest_data or self.read(layout.MANIFEST, MAX_BYTES)
            self._manifest = read_manifest(data, layout.MANIFEST)
        return self._manifest

    def _client(self) -> httpx.Client:
        """The client of this process: connections are not shared with forked processes."""
        process = os.getpid()
        if process not in self._clients:
            # A compressed response has another length, and another ETag, than the file.
            plain = {"Accept-Encoding": "identity"}
            client = httpx.Client(timeout=self._timeout, follow_redirects=True, auth=_known_users(), headers=plain)
            self._clients[process] = client
        return self._clients[process]

    def _trace_extension(self) -> dict[str, Any]:
        return {"trace": self._deadline.trace}

    def _stream(self, name: str, headers: Mapping[str, str] | None = None) -> AbstractContextManager[httpx.Response]:
        return self._client().stream("GET", self._place(name), headers=headers, extensions=self._trace_extension())

    def _body(self, answer: httpx.Response, name: str) -> Iterator[bytes]:
        """The bytes as they were sent."""
        return self._floor.held(self._deadline.renewed(answer.iter_raw()), f"{self.url}/{name}")

    def _place(self, name: str) -> str:
        return f"{self.url}/{quote(name)}"

    def _check(self, answer: httpx.Response, name: str) -> None:
        code = answer.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise CacheError(f"{self.url}/{name}: access denied ({code})", hint="put credentials into ~/.netrc")
        encoding = answer.headers.get("content-encoding", "").strip().lower()
        if answer.is_success and encoding not in ("", "identity"):
            raise CacheError(
                f"{self.url}/{name} has Content-Encoding {encoding[:40]}, expected identity",
                hint="turn off compression for the files of the cache on the web server",
            )
        if answer.is_success:
            return
        what = f"{self.url}/{name} answers {code} {answer.reason_phrase}"
        if is_retryable(code):
            raise Unreachable(what, hint=TRY_AGAIN, wait_seconds=_requested_pause(answer))
        raise CacheError(what, hint="check the URL, and the message of the server")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except KdpipeError:
            raise
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise driver_error(f"{self.url}/{name}", error) from None


def _requested_pause(answer: httpx.Response) -> float:
    """The seconds of Retry-After, which may be a date; 0 without one."""
    requested = answer.headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", requested):
        return float(requested)
    try:
        until = parsedate_to_datetime(requested)
    except ValueError:
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _tag_of(answer: httpx.Response) -> str | None:
    """The ETag of a response, or its date."""
    tag: str | None = answer.headers.get("etag") or answer.headers.get("last-modified")
    return tag


def _unchanged_condition(tag: str | None) -> dict[str, str]:
    """The condition that a file is unchanged; for a weak ETag none, the tag of the response is compared instead."""
    if tag is None or tag.startswith("W/"):
        return {}
    return {"If-Match": tag} if tag.startswith('"') else {"If-Unmodified-Since": tag}


def _close(clients: dict[int, httpx.Client]) -> None:
    """Close the connections of this process, not those of forked ones."""
    if (client := clients.pop(os.getpid(), None)) is not None:
        client.close()


def _known_users() -> httpx.NetRCAuth | None:
    """Users and passwords of ~/.netrc, if it exists."""
    path = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))
    return httpx.NetRCAuth(path) if os.path.isfile(path) else None
