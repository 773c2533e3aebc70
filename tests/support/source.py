"""The source tree as data: every module of the four roots, parsed once, with what it imports.

In: the files under schemas/, cache/, pipeline/ and cli/. Out: `Module` values for the tests that hold the shape.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("schemas", "cache", "pipeline", "cli")
PUBLIC = "kdpipe"  # the folder of `import kdpipe`, above all layers
MODULE_STRING = re.compile(r"kdpipe(\.\w+)+:\w+")


@dataclass(frozen=True)
class Module:
    """One source file, by its importable name."""

    name: str
    path: Path
    text: str

    @property
    def layer(self) -> str:
        return self.path.relative_to(ROOT).parts[0]

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    @cached_property
    def calls(self) -> set[str]:
        return calls([self.tree])


@lru_cache(maxsize=1)
def modules() -> tuple[Module, ...]:
    """Every module of the four roots and of the public package."""
    found = []
    for layer in (*LAYERS, PUBLIC):
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if layer == PUBLIC else ("kdpipe", *parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name=name, path=path, text=path.read_text(encoding="utf-8")))
    return tuple(found)


def calls(trees: Iterable[ast.AST]) -> set[str]:
    """The names of everything called, as written: `print`, `sys.exit`."""
    return {ast.unparse(node.func) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)}


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names that import statements name; `from a import b` gives both `a` and `a.b`."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


@cache
def imports(module: Module) -> frozenset[str]:
    """Everything a module imports, wherever in it, and what its families name as "module:Class"."""
    strings = {
        node.value.split(":")[0]
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_STRING.fullmatch(node.value)
    }
    return frozenset(imported(ast.walk(module.tree)) | strings)


def tops(names: Iterable[str]) -> set[str]:
    """The top-level packages of dotted names."""
    return {name.split(".")[0] for name in names}


def graph() -> dict[str, set[str]]:
    """Which modules of kdpipe each one imports, parent packages included."""
    known = {module.name for module in modules()} - {PUBLIC}  # it imports its functions on use
    return {module.name: _with_parents(imports(module)) & known for module in modules() if module.name in known}


def direct_imports() -> dict[str, set[str]]:
    """Which modules of kdpipe each one imports, wherever in it; a package only where a name of its own is taken.

    The tables of families are left out: they name their members as text, and the members import the package.
    """
    known = {module.name for module in modules()}
    return {
        module.name: {name for node in ast.walk(module.tree) for name in _taken(node, known)} for module in modules()
    }


def _taken(node: ast.AST, known: set[str]) -> set[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in known else node.module for name in names} & known
    return {alias.name for alias in node.names} & known if isinstance(node, ast.Import) else set()


def _with_parents(names: Iterable[str]) -> set[str]:
    return {".".join(name.split(".")[:length]) for name in names for length in range(1, name.count(".") + 2)}


def reachable(start: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    """Every module that importing one brings in."""
    seen: set[str] = set()
    waiting = [*_with_parents([start])]
    while waiting:
        name = waiting.pop()
        if name in edges and name not in seen:
            seen.add(name)
            waiting.extend(edges[name])
    return seen
