"""A cache behind a web server. The only module that imports httpx.

In: an http:// or https:// URL. Out: a `Store`. A server need not list its folders: what a cache holds is worked out
from its manifest, its index and its parts' records.

fsspec's own driver answers "not there" to every failure and takes a whole file for a range of it; a copy that goes on
after faults must tell these apart.
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
    """Fewer bytes a second than `least` over a whole window are a stall: a timeout sees silence, not a trickle.

    Eight requests at once on a line of 10 kB/s stay above it.
    """

    least: float = 1000.0
    window_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def held(self, chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
        """Pass an answer on as it comes; `Unreachable` when it stalls."""
        began, n_bytes = self.clock(), 0
        for chunk in chunks:
            n_bytes += len(chunk)
            seconds = self.clock() - began
            if seconds >= self.window_seconds:
                if n_bytes < self.least * seconds:
                    raise Unreachable(
                        f"{name} stalls: {n_bytes:,} bytes in {seconds:.0f} s, under {self.least:,.0f} a second",
                        hint=TRY_AGAIN,
                    )
                began, n_bytes = self.clock(), 0
            yield chunk


@final
class Deadline:
    """The time for headers, and for each next byte of data: a window of the floor, in whatever pieces they come.

    httpx offers no timeout for a whole answer. Its trace hook hands over each new connection, whose reads are timed.
    """

    def __init__(self, floor: RateFloor) -> None:
        self._floor = floor
        self._local = threading.local()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Start again with each phase of a request of this thread (see httpx's request extension `trace`)."""
        self.restart()
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._watch(info["return_value"])

    def restart(self) -> None:
        """Give this thread's request the whole window again."""
        self._local.began = self._floor.clock()

    def renewed(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Data of an answer, each chunk of which restarts the deadline; the caller's own time does not count."""
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
                raise httpx.ReadTimeout(f"it stalls: headers or data are incomplete after {seconds:.0f} s")
            return data

        stream.read = timed


def open_http(url: str, retry_policy: RetryPolicy) -> "HttpStore":
    """The store of a URL, with retries."""
    return HttpStore(url, retry_policy=retry_policy)


@final
class HttpStore:
    """A web server's folder; `timeout` is how long it may say nothing, `floor` how slowly it may send.

    With `retry_policy` each request is retried by itself: a listing is many of them.
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
        self._homes = AttemptStore(self._size, self._read)
        if self.size(layout.MANIFEST) is None:
            raise ConfigError(f"there is no {layout.MANIFEST} at {url}", hint=URL_HOLDS_MANIFEST)

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`: the files that there must be, with the sizes that they have."""
        found = {}
        for name in self._due(folder):
            size = self.size(name)
            if size is not None:
                found[name] = size
        if len(found) > limit:
            raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
        if not found:
            raise CacheDamaged(f"{folder} cannot be listed: nothing is there")
        return found

    def names(self, folder: str) -> list[str]:
        """See `Store`: the names that there must be."""
        if not folder:
            tops = {name.partition("/")[0] for name in (*self._due(layout.TOKENIZER), *self._due(layout.TABLES))}
            whole = {layout.INDEX} if self.size(layout.INDEX) is not None else set()
            return sorted({layout.MANIFEST, layout.PARTS} | tops | whole)
        if folder == layout.PARTS:
            if self.size(layout.INDEX) is None:
                raise CacheError(
                    f"{self.url} has no {layout.INDEX}, and a web server does not say which parts are there",
                    hint="wait until the cache is finished, or read it where its folders can be listed",
                )
            return [layout.part_dir(number).rpartition("/")[2] for number in range(self._made_from().plan.n_parts)]
        return sorted({name.removeprefix(f"{folder}/").partition("/")[0] for name in self._due(folder)})

    def size(self, name: str) -> int | None:
        """See `Store`; manifest and index never change once they are there."""
        if name in self._final_sizes:
            return self._final_sizes[name]
        size = self._size(self._homes.place(name))
        if size is not None and name in (layout.MANIFEST, layout.INDEX):
            self._final_sizes[name] = size
        return size

    def _size(self, name: str) -> int | None:
        return self._retried(lambda: self._size_once(name))

    def _size_once(self, name: str) -> int | None:
        with self._reaching(name):
            answer = self._client().head(self._place(name), extensions=self._traced())
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        self._check(answer, name)
        length = answer.headers.get("content-length", "")
        if not length.isdigit():
            raise CacheError(f"{self.url} does not say how long {name} is", hint="use another web server")
        return int(length)

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        data = self._read(self._homes.place(name), limit)
        if name == layout.MANIFEST:
            self._manifest_data = data
        return data

    def _read(self, name: str, limit: int) -> bytes:
        return self._retried(lambda: self._read_once(name, limit))

    def _read_once(self, name: str, limit: int) -> bytes:
        with self._reaching(name), self._getting(name) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise CacheDamaged(f"{name} is not there")
            self._check(answer, name)
            found = bytearray()
            for chunk in self._body(answer, name):
                found += chunk
                if len(found) > limit:
                    raise CacheDamaged(f"{name} holds more than the {limit:,} bytes that are allowed")
            return bytes(found)

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        return checked_size(self.read(name, size), name, size)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`: a server that answers with another range than the one asked for is not believed."""
        name = self._homes.place(name)
        return self._retried(lambda: self._piece_once(name, begin, end, tag))

    def _piece_once(self, name: str, begin: int, end: int, tag: str | None) -> bytes:
        asked = {"Range": f"bytes={begin}-{end - 1}", **_if_still(tag)}
        with self._reaching(name), self._getting(name, asked) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise CacheDamaged(f"{name} is not there")
            if answer.status_code == httpx.codes.PRECONDITION_FAILED:
                raise FileReplaced(f"{name} was replaced while it was read")
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise CacheDamaged(f"{name} has no bytes {begin:,} to {end:,} at {self.url}")
            self._check(answer, name)
            check_tag(name, tag, _tag_of(answer))
            skipped = self._skipped(answer, name, begin, end)
            found = bytearray()
            for chunk in self._body(answer, name):
                found += chunk[skipped:]
                skipped = max(0, skipped - len(chunk))
                if len(found) >= end - begin:
                    break
            piece = bytes(found[: end - begin])
        if len(piece) != end - begin:
            raise Unreachable(f"{self.url}/{name} ended after {len(piece):,} of {end - begin:,} bytes", hint=TRY_AGAIN)
        return piece

    def _skipped(self, answer: httpx.Response, name: str, begin: int, end: int) -> int:
        """How many bytes of an answer come before the range: none, or all before it where the file comes whole."""
        if answer.status_code == httpx.codes.OK:
            self._note_length(answer.headers.get("content-length", ""))
            return begin
        stated = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code != httpx.codes.PARTIAL_CONTENT or stated is None or int(stated[1]) != begin:
            raise Unreachable(
                f"{self.url}/{name}: bytes {begin:,} to {end:,} were asked for, "
                f"{answer.headers.get('content-range', answer.status_code)} came",
                hint=TRY_AGAIN,
            )
        self._note_length(stated[3])
        if stated[3].isdigit() and int(stated[3]) < end:
            raise CacheDamaged(f"{name} holds {int(stated[3]):,} bytes, {end:,} are needed")
        return 0

    def _note_length(self, told: str) -> None:
        self._seen.length = int(told) if told.isdigit() else None

    def length_seen(self) -> int | None:
        """How long the file is of which this thread has read a piece last, as far as the server said."""
        length: int | None = getattr(self._seen, "length", None)
        return length

    def tag(self, name: str) -> str | None:
        """See `Store`."""
        name = self._homes.place(name)
        return self._retried(lambda: self._tag_once(name))

    def _tag_once(self, name: str) -> str | None:
        with self._reaching(name):
            answer = self._client().head(self._place(name), extensions=self._traced())
        self._check(answer, name)
        return _tag_of(answer)

    def _retried(self, work: Callable[[], Found]) -> Found:
        return work() if self._retry_policy is None else self._retry_policy.call(work)

    def _due(self, folder: str) -> list[str]:
        """The files that belong into a folder."""
        manifest = self._made_from()
        due: Mapping[str, list[str]] = {
            layout.TOKENIZER: [f"{layout.TOKENIZER}/{name}" for name in manifest.tokenizer.files],
            layout.TABLES: [layout.table_file(table.name) for table in manifest.tables],
            layout.JOURNAL: [],
        }
        if folder in due:
            return due[folder]
        record = f"{folder}/{layout.PART_RECORD}"
        data = self.read(record, layout.MAX_RECORD_BYTES)
        files = read_record(PartRecord, data, record, ignore_unknown=True, damaged=CacheDamaged).files
        return [record, *(f"{folder}/{name}" for name in files)]

    def _made_from(self) -> Manifest:
        if self._manifest is None:
            data = self._manifest_data or self.read(layout.MANIFEST, MAX_BYTES)
            self._manifest = read_manifest(data, layout.MANIFEST)
        return self._manifest

    def _client(self) -> httpx.Client:
        """Connections of this process: those of the process that it was forked from are not its own."""
        process = os.getpid()
        if process not in self._clients:
            # What is packed on the way has another length, and another ETag, than what lies there.
            plain = {"Accept-Encoding": "identity"}
            client = httpx.Client(timeout=self._timeout, follow_redirects=True, auth=_known_users(), headers=plain)
            self._clients[process] = client
        return self._clients[process]

    def _traced(self) -> dict[str, Any]:
        return {"trace": self._deadline.trace}

    def _getting(self, name: str, headers: Mapping[str, str] | None = None) -> AbstractContextManager[httpx.Response]:
        return self._client().stream("GET", self._place(name), headers=headers, extensions=self._traced())

    def _body(self, answer: httpx.Response, name: str) -> Iterator[bytes]:
        """The bytes as they were sent."""
        return self._floor.held(self._deadline.renewed(answer.iter_raw()), f"{self.url}/{name}")

    def _place(self, name: str) -> str:
        return f"{self.url}/{quote(name)}"

    def _check(self, answer: httpx.Response, name: str) -> None:
        code = answer.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise CacheError(f"{self.url}/{name} may not be read: {code}", hint="log in there by ~/.netrc")
        encoding = answer.headers.get("content-encoding", "").strip().lower()
        if answer.is_success and encoding not in ("", "identity"):
            raise CacheError(
                f"{self.url}/{name} comes with Content-Encoding {encoding[:40]}, though identity was requested",
                hint="turn off compression for the files of the cache on the web server",
            )
        if answer.is_success:
            return
        what = f"{self.url}/{name} answers {code} {answer.reason_phrase}"
        if is_retryable(code):
            raise Unreachable(what, hint=TRY_AGAIN, wait_seconds=_pause_asked_for(answer))
        raise CacheError(what, hint="check the URL, and what the server says of the request")

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except KdpipeError:
            raise
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise driver_error(f"{self.url}/{name}", error) from None


def _pause_asked_for(answer: httpx.Response) -> float:
    """The seconds of Retry-After, which may be a date; 0 where the server asks for none."""
    asked = answer.headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", asked):
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _tag_of(answer: httpx.Response) -> str | None:
    """What a server tells its versions of a file by."""
    told: str | None = answer.headers.get("etag") or answer.headers.get("last-modified")
    return told


def _if_still(tag: str | None) -> dict[str, str]:
    """The condition that a file is still the one of a tag; a weak ETag makes none, its answer is looked at instead."""
    if tag is None or tag.startswith("W/"):
        return {}
    return {"If-Match": tag} if tag.startswith('"') else {"If-Unmodified-Since": tag}


def _close(clients: dict[int, httpx.Client]) -> None:
    """Close the connections of this process; another's are its own to close."""
    if (client := clients.pop(os.getpid(), None)) is not None:
        client.close()


def _known_users() -> httpx.NetRCAuth | None:
    """Users and passwords of ~/.netrc, where there is one."""
    path = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))
    return httpx.NetRCAuth(path) if os.path.isfile(path) else None
