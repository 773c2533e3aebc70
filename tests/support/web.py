"""A web server on loopback that knows ranges and ETags, and fails on request.

In: a folder, and faults by the number of the request. Out: its address, and the requests that came. A fault hits
requests that read bytes, never those that ask a size.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

# "trickle" is not in FAULTS: a test that meets it needs its own clock.
Fault = Literal["drop", "503", "wrong range", "other bytes", "whole", "stall", "changed", "trickle"]
FAULTS: tuple[Fault, ...] = ("drop", "503", "wrong range", "other bytes", "whole", "stall", "changed")


@dataclass(slots=True)
class Site:
    """What a server does: `due` names the fault of the n-th request that reads bytes, None for none.

    `status` names a code for the n-th request of any kind, with a Retry-After of `retry_after`; `seconds` is how long
    each request takes. `slow_headers` chooses, by method and number, requests whose headers come byte after byte;
    `encoding` is a Content-Encoding that all answers state. Without `conditions` it does not know If-Match; its ETags
    may be `weak`.
    """

    root: Path
    due: Callable[[int], Fault | None] = lambda _: None
    conditions: bool = True
    weak: bool = False
    status: Callable[[int], int | None] = lambda _: None
    retry_after: str | None = None
    slow_headers: Callable[[str, int], bool] = lambda _method, _number: False
    encoding: str | None = None
    seconds: float = 0.0
    n_requests: int = 0
    n_under_way: int = 0
    most_under_way: int = 0
    n_reads: int = 0
    requested: list[str] = field(default_factory=list)
    demanded: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, what: str) -> Fault | None:
        """The fault of the request that comes now."""
        with self.lock:
            self.n_reads += 1
            self.requested.append(what)
            return self.due(self.n_reads)

    @contextmanager
    def counted(self) -> Iterator[int | None]:
        """A request of any kind: the status code that it gets instead of an answer."""
        with self.lock:
            self.n_requests += 1
            self.n_under_way += 1
            self.most_under_way = max(self.most_under_way, self.n_under_way)
            code = self.status(self.n_requests)
        try:
            time.sleep(self.seconds)
            yield code
        finally:
            with self.lock:
                self.n_under_way -= 1


@contextmanager
def serving(site: Site) -> Iterator[str]:
    """Serve a folder; the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:  # named by the standard library
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, *, head: bool) -> None:
            with site.counted() as code:
                if site.slow_headers(self.command, site.n_requests):
                    self._trickle_headers()
                elif code is not None:
                    self.send_response(code)
                    if site.retry_after is not None:
                        self.send_header("Retry-After", site.retry_after)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self._answer_with_a_file(head=head)

        def _answer_with_a_file(self, *, head: bool) -> None:
            path = site.root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            fault = None if head else site.next_fault(f"{self.path} {self.headers.get('Range', '')}".strip())
            if fault == "503":
                self.send_error(503)
                return
            if fault == "stall":
                site.released.wait(20)
                self.close_connection = True
                return
            self._send(data, fault, head=head)

        def _is_another(self, tag: str, *, head: bool) -> bool:
            """Whether the request asks for another version of the file than there is."""
            requested = self.headers.get("If-Match")
            if head:
                return False
            site.demanded.append(requested)
            return requested is not None and site.conditions and requested != tag

        def _send(self, data: bytes, fault: Fault | None, *, head: bool) -> None:
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}{"-changed" if fault == "changed" else ""}"'
            tag = f"W/{tag}" if site.weak else tag
            if self._is_another(tag, head=head):
                self.send_error(412)
                return
            requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if requested and int(requested[1]) >= len(data):
                self.send_error(416)
                return
            begin, end = (int(requested[1]), min(int(requested[2]) + 1, len(data))) if requested else (0, len(data))
            ranged = requested is not None and fault != "whole"
            if fault == "whole":
                begin, end = 0, len(data)
            if fault == "wrong range" and ranged:
                begin, end = max(0, begin - 1), max(0, end - 1)
            body = data[begin:end]
            if fault == "other bytes":
                body = bytes(255 - byte for byte in body)
            self.send_response(206 if ranged else 200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body)))
            if site.encoding is not None:
                self.send_header("Content-Encoding", site.encoding)
            if ranged:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            self.end_headers()
            if head:
                return
            if fault == "trickle":
                self._trickle(body)
                return
            if fault == "drop":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body)

        def _trickle_headers(self) -> None:
            """Byte after byte of one header, until the reader hangs up; a reader that never does gets no answer."""
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(20_000):
                self.wfile.write(b"x")
                self.wfile.flush()
                if site.released.wait(0.001):
                    return

        def _trickle(self, body: bytes) -> None:
            """Byte after byte, until the reader hangs up."""
            for number in range(len(body)):
                self.wfile.write(body[number : number + 1])
                self.wfile.flush()
                time.sleep(0.001)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Connections break on purpose."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        site.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
