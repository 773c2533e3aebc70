"""The shape of the source: layers, stages kept apart, one module a heavy import, sizes, and what ruff cannot see."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection
from functools import cache

import pytest

from support.busy import MODULES
from support.source import (
    LAYERS,
    PUBLIC,
    ROOT,
    Module,
    calls,
    direct_imports,
    graph,
    imported,
    imports,
    modules,
    reachable,
    tops,
)

# Imported by exactly one module each, so that it can be replaced, stubbed or left out in one place.
ONE_MODULE = {
    "bitsandbytes", "datasets", "fsspec", "gcsfs", "gguf", "google_crc32c", "httpx", "huggingface_hub", "jinja2",
    "lm_eval", "mlflow", "numcodecs", "pcodec", "peft", "pyarrow", "ray", "rich", "s3fs", "safetensors",
    "tensorboard", "torchao", "trackio", "vllm", "wandb", "xxhash", "yaml", "zarr",
}  # fmt: skip
# What a layer may import besides the standard library and kdpipe; None: anything.
THIRD_PARTY: dict[str, set[str] | None] = {
    "schemas": {"pydantic"},
    "cache": {
        "pydantic",
        "numpy",
        "pyarrow",
        "zarr",
        "numcodecs",
        "pcodec",
        "fsspec",
        "httpx",
        "huggingface_hub",
        "cryptography",
        "google_crc32c",
        "xxhash",
        "rich",
        "pandas",
        "transformers",  # its tokenizers, which load no torch
    },
    "pipeline": None,
    "cli": {"typer", "rich"},
    "kdpipe": {"transformers"},
}
# The floors of `cache/`, lowest first: a module imports from its own floor and those below.
CACHE_FLOORS = (
    ("layout", "order", "quality"),
    ("durable", "format", "stores"),
    ("parts",),
    ("catalog",),
    ("inspect", "reader", "signing", "writing"),
    ("fetch",),
    ("mirror",),
    ("opening",),
    ("reshape", "verify"),
    ("transfer",),
)
# Those of `pipeline/`; the last is of stories, one for each command.
PIPELINE_FLOORS = (
    ("config_file", "models"),
    ("small_teacher", "tokenizers"),
    ("batches", "documents", "generation"),
    ("interop", "losses", "students", "targets"),
    ("evaluation", "teachers"),
    ("audit", "capture", "diagnosis", "requantization", "training"),
    (
        "cache_teacher",
        "chat",
        "compare",
        "demo",
        "doctor",
        "evaluate",
        "export",
        "export_cache",
        "import_cache",
        "plan",
        "requantize",
        "sample",
        "train",
        "verify_against",
    ),
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7


def offenders(wrong: Callable[[Module], Collection[str] | bool]) -> dict[str, Collection[str] | bool]:
    """What is wrong, by the file in which it is."""
    return {module.where: found for module in modules() if (found := wrong(module))}


def third_party(names: Collection[str]) -> set[str]:
    return {top for top in tops(names) if top not in sys.stdlib_module_names and top != "kdpipe"}


def test_an_import_points_down_or_sideways() -> None:
    def upward(module: Module) -> set[str]:
        layers = (*LAYERS, PUBLIC)
        public = tuple(f"{other.name}." for other in modules() if other.layer == PUBLIC and other.name != PUBLIC)
        above = tuple(f"kdpipe.{layer}." for layer in layers[layers.index(module.layer) + 1 :])
        above = above if module.layer == PUBLIC else (*above, *public)
        return {name for name in imports(module) if f"{name}.".startswith(above)}

    assert not offenders(upward)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(direct_imports()).prepare()


@pytest.mark.parametrize(("layer", "floors"), [("cache", CACHE_FLOORS), ("pipeline", PIPELINE_FLOORS)])
def test_the_folders_of_a_layer_are_floors(layer: str, floors: tuple[tuple[str, ...], ...]) -> None:
    floor = {name: number for number, names in enumerate(floors) for name in names}
    edges = {
        (one.split(".")[2], other.split(".")[2])
        for one, others in direct_imports().items()
        for other in others
        if one.startswith(f"kdpipe.{layer}.") and other.startswith(f"kdpipe.{layer}.")
    }
    inside = {module.name.split(".")[2] for module in modules() if module.name.startswith(f"kdpipe.{layer}.")}
    assert inside == set(floor)
    assert not {(one, other) for one, other in edges if floor[one] < floor[other]}
    # Two folders of one floor do not need each other.
    between = {one: {other for start, other in edges if start == one and other != one} for one in floor}
    graphlib.TopologicalSorter(between).prepare()


def test_a_layer_uses_only_the_libraries_it_may() -> None:
    def foreign(module: Module) -> set[str]:
        allowed = THIRD_PARTY[module.layer]
        return set() if allowed is None else third_party(imports(module)) - allowed

    assert not offenders(foreign)


def test_a_module_imports_by_absolute_installed_names() -> None:
    def relative(module: Module) -> set[str]:
        return {name for name in imports(module) if name.startswith(".") or name.split(".")[0] in LAYERS}

    assert not offenders(relative)


@pytest.mark.parametrize("library", sorted(ONE_MODULE))
def test_a_heavy_library_is_imported_by_one_module_at_most(library: str) -> None:
    users = [module.where for module in modules() if library in tops(imports(module))]
    assert len(users) <= 1


def test_commands_import_nothing_heavy_at_module_level() -> None:
    allowed = (
        "kdpipe.cli",
        "kdpipe.schemas.choices",
        "kdpipe.schemas.counts",
        "kdpipe.schemas.errors",
        "kdpipe.schemas.losses",
        "kdpipe.schemas.progress",
    )
    for module in modules():
        if module.layer == "cli":
            names = imported(module.tree.body)
            inner = {name for name in names if name.startswith("kdpipe.")}
            assert third_party(names) <= {"typer"}, module.where
            assert all(name.startswith(allowed) for name in inner), module.where


def test_stage_two_never_reaches_a_teacher() -> None:
    edges = graph()
    for start in ("kdpipe.pipeline.train", "kdpipe.pipeline.evaluate"):
        met = {name for name in reachable(start, edges) if start in edges}
        assert not {name for name in met if name.startswith(("kdpipe.pipeline.teachers", "kdpipe.pipeline.targets"))}


def test_reachability_follows_imports_and_parent_packages() -> None:
    edges = {"a": {"c"}, "a.b": {"d"}, "c": set(), "d": {"a.b"}, "e": {"a"}}
    assert reachable("a.b", edges) == {"a", "a.b", "c", "d"}
    assert reachable("missing", edges) == set()


def test_the_graph_sees_the_imports_that_are_there() -> None:
    assert {"kdpipe.cli.console", "kdpipe.cli", "kdpipe.schemas.errors"} <= graph()["kdpipe.cli.main"]


def test_a_module_opens_with_a_docstring() -> None:
    assert not offenders(lambda module: not ast.get_docstring(module.tree))


def test_a_file_is_of_readable_size() -> None:
    assert not offenders(lambda module: len(module.text.splitlines()) > MAX_FILE_LINES)


def test_a_function_is_of_readable_size() -> None:
    def long(module: Module) -> list[str]:
        return [f.name for f in module.functions if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES]

    assert not offenders(long)


def test_a_function_takes_few_parameters() -> None:
    def many(module: Module) -> list[str]:
        return [f.name for f in module.functions if _parameters(f) > MAX_PARAMETERS and not _is_command(module, f)]

    assert not offenders(many)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    named = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])


def _is_command(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A function of `cli/` whose parameters are the options of a command."""
    annotations = [ast.unparse(a.annotation) for a in function.args.args if a.annotation is not None]
    return module.layer == "cli" and all("typer." in a or a in _shared_options() for a in annotations)


@cache
def _shared_options() -> set[str]:
    """Names of options that are defined once for several commands."""
    statements = [statement for module in modules() if module.layer == "cli" for statement in module.tree.body]
    options = [s for s in statements if isinstance(s, ast.Assign) and "typer." in ast.unparse(s.value)]
    return {target.id for option in options for target in option.targets if isinstance(target, ast.Name)}


def test_only_the_console_prints() -> None:
    assert set(offenders(lambda module: "print" in module.calls)) == {"cli/console.py"}


def test_only_the_command_line_exits() -> None:
    def ends(module: Module) -> set[str]:
        library = [node for node in module.tree.body if not _is_entry(node)]
        return set() if module.layer == "cli" else {"sys.exit", "os._exit", "exit", "quit"} & calls(library)

    assert not offenders(ends)


def _is_entry(node: ast.stmt) -> bool:
    """The block that runs when a file is the program of a child process."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def test_nothing_can_run_code_from_a_file() -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not offenders(lambda module: tops(imports(module)) & unsafe | module.calls & {"eval", "exec"})


@pytest.mark.parametrize("name", [*LAYERS, "pickle"])
def test_lint_refuses_a_banned_import(name: str) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", "cli/made_up.py", "-"]
    source = f"import {name}\n\n{name}.x()\n"
    answer = subprocess.run(ruff, input=source, cwd=ROOT, text=True, capture_output=True, check=False)
    assert answer.returncode == 1
    assert "TID251" in answer.stdout


def test_everything_that_runs_on_a_busy_machine_is_there() -> None:
    for name in MODULES:
        path, _, test = name.partition("::")
        assert (ROOT / "tests" / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), name


def test_no_two_modules_share_a_name_unless_a_command_and_its_story() -> None:
    by_name: dict[str, list[Module]] = {}
    for module in modules():
        if module.path.name != "__init__.py":
            by_name.setdefault(module.path.stem, []).append(module)
    shared = {name: found for name, found in by_name.items() if len(found) > 1}
    assert shared, "commands and stories share names"
    wrong = {
        name: [module.where for module in found]
        for name, found in shared.items()
        if sorted(module.layer == "cli" for module in found) != [False, True]
    }
    assert not wrong


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name for module in modules() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)
    )
    assert [name for name, n in names.items() if n > 1] == []
