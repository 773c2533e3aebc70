"""A hub on loopback: one repository with commits, accessed by huggingface_hub itself through HF_ENDPOINT.

In: nothing. Out: its address, and its commits. It answers what the library asks for to read, list, upload (small files
in the commit, others by LFS) and commit, on the condition of a parent too; by the library's code, not the
hub's.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "me/caches"
TOKEN = "hf_planted0token0of0these0tests"
SMALL = 2000  # larger files go by LFS


@dataclass(slots=True)
class Hub:
    """What the repository holds: every commit's files, the newest last, and objects that no commit names yet."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])
    objects: dict[str, bytes] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1][1]

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a commit, or of the branch."""
        return self.files if revision == "main" else dict(self.commits).get(revision)

    def commit(self, lines: list[dict[str, Any]]) -> str | None:
        """Take a commit; None when its parent is not the newest."""
        with self.lock:
            parent = lines[0]["value"].get("parentCommit")
            if parent is not None and parent != self.commits[-1][0]:
                self.refused += 1
                return None
            files = dict(self.files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                else:
                    del files[value["path"]]
            sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
            self.commits.append((sha, files))
            self.messages.append(lines[0]["value"]["summary"])
            return sha


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` and `address` are set by `serving_hub`."""

    hub: Hub
    address: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: object, code: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode()
        self._send(code, data, {"Content-Type": "application/json", **headers})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, what: str) -> None:
        self._json({"error": what}, 404, **{"X-Error-Code": what})

    def do_GET(self) -> None:  # named by the standard library
        self.hub.requested.append(self.path)
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/(\w+))?", path):
            if self.hub.at(found[1] or "main") is None:
                return self._missing("RevisionNotFound")
            sha = self.hub.commits[-1][0] if found[1] in (None, "main") else found[1]
            return self._json({"id": NAME, "sha": sha, "siblings": [], "private": False, "tags": []})
        if found := re.fullmatch(rf"/api/datasets/{NAME}/tree/(\w+)(?:/(.*))?", path):
            query = parse_qs(urlsplit(self.path).query)
            return self._tree(found[1], found[2] or "", query.get("recursive", ["false"])[0].lower() == "true")
        if found := re.fullmatch(rf"/datasets/{NAME}/resolve/(\w+)/(.*)", path):
            return self._file(found[1], found[2])
        return self._missing("RepoNotFound")

    do_HEAD = do_GET

    def _tree(self, revision: str, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = {name: data for name, data in (self.hub.at(revision) or {}).items() if name.startswith(prefix)}
        if not inside and folder:
            return self._missing("EntryNotFound")
        listed: dict[str, dict[str, Any]] = {}
        for name, data in sorted(inside.items()):
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                inner = prefix + "/".join(parts[:depth])
                listed[inner] = {"type": "directory", "path": inner, "oid": "1" * 40, "size": 0}
            if recursive or len(parts) == 1:
                oid = hashlib.sha1(data).hexdigest()
                listed[name] = {"type": "file", "path": name, "oid": oid, "size": len(data)}
        return self._json(list(listed.values()))

    def _file(self, revision: str, name: str) -> None:
        data = (self.hub.at(revision) or {}).get(name)
        if data is None:
            return self._missing("EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.hub.commits[-1][0]}
        if requested := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            begin, end = int(requested[1]), min(int(requested[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            return self._send(206, data[begin:end], headers)
        return self._send(200, data, headers)

    def do_POST(self) -> None:
        self.hub.requested.append(self.path)
        body, path = self._body(), unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/datasets/{NAME}/paths-info/"):
            names = parse_qs(body.decode())["paths"]
            files = self.hub.at(path.rpartition("/")[2]) or {}
            found = [{"type": "file", "path": n, "oid": "1" * 40, "size": len(files[n])} for n in names if n in files]
            return self._json(found)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path.startswith(f"/api/datasets/{NAME}/preupload/"):
            files_requested = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > SMALL else "regular", "shouldIgnore": False}
                for f in files_requested
            ]
            return self._json({"files": modes})
        if path == f"/datasets/{NAME}.git/info/lfs/objects/batch":
            return self._json(
                {"transfer": "basic", "objects": [self._action(one) for one in json.loads(body)["objects"]]}
            )
        if path.startswith(f"/api/datasets/{NAME}/commit/"):
            sha = self.hub.commit([json.loads(line) for line in body.splitlines()])
            if sha is None:
                return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return self._json({"commitUrl": f"{self.address}/datasets/{NAME}/commit/{sha}", "commitOid": sha})
        return self._missing("RepoNotFound")

    def _action(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.objects:
            return {"oid": one["oid"], "size": one["size"]}
        href = f"{self.address}/objects/{one['oid']}"
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": href}}}

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"", {})


class Quiet(ThreadingHTTPServer):
    """A server that ends with its tests."""

    daemon_threads = True


@contextmanager
def serving_hub(hub: Hub) -> Iterator[str]:
    """Serve; the address."""

    class Bound(Handler):
        pass

    server = Quiet(("127.0.0.1", 0), Bound)
    Bound.hub, Bound.address = hub, f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Bound.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
