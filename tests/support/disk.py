"""A disk that remembers what is durable: which states a power cut may leave, by POSIX and not by luck.

In: the calls with which a cache is written, recorded by patching `os`. Out: for any moment, whether something is
durable, and the trees that may be found afterwards. A file that was not synced may have lost any of its bytes; a name
made, moved or removed since its folder was last synced may be there or not, each for itself.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from support.faults import CALLS, path_of

Tree = dict[str, bytes | None]  # relative path -> content, None for a folder


class Dead(BaseException):
    """The recorded process is gone; none of its clean-up may change the disk any more."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that changed the disk; paths are relative to its root, `data` is what a file held when it was synced."""

    kind: str
    path: str
    source: str = ""
    data: bytes = b""


@dataclass(slots=True, eq=False)
class Node:
    """A file or a folder: what it holds, and since when it may hold something else after a power cut."""

    is_dir: bool
    entries: dict[str, "Node"] = field(default_factory=dict)
    # For each name that changed since the last sync of this folder, all it has stood for since then.
    pending: dict[str, list["Node | None"]] = field(default_factory=dict)
    content: bytes = b""
    is_synced: bool = False

    def put(self, name: str, node: "Node | None") -> None:
        """Let a name stand for something else from now on."""
        self.pending.setdefault(name, [self.entries.get(name)]).append(node)
        if node is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = node


class Disk:
    """Applies recorded calls, and answers for any moment between them."""

    def __init__(self, contents: dict[int, bytes]) -> None:
        self.root = Node(is_dir=True)
        self._contents, self._n_files = contents, 0

    def apply(self, call: Call) -> None:
        """What a call does."""
        folder, name = self._place(call.path)
        if call.kind == "open":
            folder.put(name, Node(is_dir=False, content=self._contents.get(self._n_files, b"never synced")))
            self._n_files += 1
        elif call.kind == "mkdir":
            folder.put(name, Node(is_dir=True))
        elif call.kind in ("link", "rename"):
            other, old = self._place(call.source)
            folder.put(name, other.entries[old])
            if call.kind == "rename":
                other.put(old, None)
        elif call.kind in ("unlink", "rmdir"):
            folder.put(name, None)
        else:
            node = self.at(call.path)
            node.pending.clear()
            node.is_synced = True

    def _place(self, path: str) -> tuple[Node, str]:
        parent, _, name = path.rpartition("/")
        return self.at(parent), name

    def at(self, path: str) -> Node:
        """The file or folder of a path, as running processes see it."""
        node = self.root
        for name in filter(None, path.split("/")):
            node = node.entries[name]
        return node

    def unsynced(self, path: str) -> list[str]:
        """What below a path, and on the way to it, a power cut could still take away."""
        found, node, place = [], self.root, ""
        for name in filter(None, path.split("/")):
            if name in node.pending:
                found.append(f"the name {place}{name}")
            node, place = node.entries[name], f"{place}{name}/"
        return found + list(_unsynced(node, path))

    def tree(self) -> Tree:
        """What running processes see."""
        return _tree(self.root, lambda _node, _name, values: values[-1], lambda data: data)

    def states(self, rng: random.Random, ignore: str = "", n_random: int = 2) -> Iterator[Tree]:
        """Trees that a power cut now may leave: extremes, each change alone, each change missing, random mixtures."""
        open_choices = [choice for choice in _choices(self.root) if not (ignore and choice[0] is self._top(ignore))]
        everything, nothing = set(open_choices), set[tuple[Node, str]]()
        for damage in (whole, empty, zeros, half):
            yield self._state(everything, damage)
        yield self._state(nothing, whole)
        for choice in open_choices:
            yield self._state({choice}, half)
            yield self._state(everything - {choice}, empty)
        for _ in range(n_random if open_choices else 0):
            some = {choice for choice in open_choices if rng.random() < 0.5}
            yield self._state(some, rng.choice((whole, empty, zeros, half)))

    def _top(self, path: str) -> Node | None:
        try:
            return self.at(path)
        except KeyError:
            return None

    def _state(self, arrived: set[tuple[Node, str]], damage: Callable[[bytes], bytes]) -> Tree:
        return _tree(self.root, lambda node, name, values: values[-1 if (node, name) in arrived else 0], damage)


def whole(data: bytes) -> bytes:
    """A file that was never synced may be whole all the same."""
    return data


def empty(_data: bytes) -> bytes:
    """It may have its name and no bytes."""
    return b""


def zeros(data: bytes) -> bytes:
    """It may have its length and none of its bytes."""
    return bytes(len(data))


def half(data: bytes) -> bytes:
    """It may have its first bytes."""
    return data[: len(data) // 2]


def _unsynced(node: Node, path: str) -> Iterator[str]:
    if not node.is_dir and not node.is_synced:
        yield f"the bytes of {path}"
    for name in node.pending:
        yield f"the name {path}/{name}"
    for name, child in node.entries.items():
        yield from _unsynced(child, f"{path}/{name}")


def _choices(node: Node) -> Iterator[tuple[Node, str]]:
    """Every name that may or may not have changed, wherever a power cut may let it be seen."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for name, values in current.pending.items():
            yield current, name
            waiting += [value for value in values if value is not None]
        waiting += current.entries.values()


def _tree(root: Node, choose: Callable[..., Node | None], damage: Callable[[bytes], bytes]) -> Tree:
    found: Tree = {}

    def add(node: Node, path: str) -> None:
        if not node.is_dir:
            found[path] = node.content if node.is_synced else damage(node.content)
            return
        if path:
            found[path] = None
        for name in sorted(node.entries.keys() | node.pending.keys()):
            values: Iterable[Node | None] = node.pending.get(name) or [node.entries[name]]
            child = choose(node, name, values)
            if child is not None:
                add(child, f"{path}/{name}" if path else name)

    add(root, "")
    return found


def materialize(tree: Tree, folder: Path) -> None:
    """Put a tree on the real disk."""
    folder.mkdir()
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(data)


class Recorder:
    """Records what is done below a folder; after `limit` calls the process is dead to the disk, until it is lifted."""

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root, self.limit = os.path.realpath(root), limit
        self.calls: list[Call] = []
        self.contents: dict[int, bytes] = {}
        self._file_numbers: dict[int, int] = {}
        self._n_files = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Patch `os`; nothing waits for the real disk meanwhile."""
        with ExitStack() as stack:
            for name in CALLS:
                stack.enter_context(mock.patch.object(os, name, self._recorded(name, getattr(os, name))))
            yield

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            flags = arguments[1] if name == "open" and len(arguments) > 1 else 0
            path = os.path.realpath(path_of(name, arguments, options))
            changes = name != "open" or flags & os.O_CREAT
            if not changes or not (path + "/").startswith(self._root + "/"):
                return None if name == "fsync" else real(*arguments, **options)
            if self.limit is not None and len(self.calls) >= self.limit:
                raise Dead
            result = None if name == "fsync" else real(*arguments, **options)
            self._note(name, path, os.path.realpath(arguments[0]) if name in ("rename", "link") else "")
            return result

        return call

    def _note(self, name: str, path: str, source: str) -> None:
        data = b""
        if name == "open":
            self._file_numbers[os.stat(path).st_ino] = self._n_files
            self._n_files += 1
        elif name == "fsync" and not os.path.isdir(path):
            data = Path(path).read_bytes()
            self.contents[self._file_numbers[os.stat(path).st_ino]] = data
        self.calls.append(Call(name, self._relative(path), self._relative(source) if source else "", data))

    def _relative(self, path: str) -> str:
        return "" if path == self._root else os.path.relpath(path, self._root)
