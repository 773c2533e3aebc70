"""The installed package equals the source tree: package list, constraints, wheel, sdist and editable install."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdpipe.pipeline.diagnosis.machine import EXTRAS as EXTRA_MODULES
from support.source import LAYERS, PUBLIC, ROOT, modules

EXTRAS = {
    "dev", "eval", "gcs", "hub", "humaneval", "large", "mlflow", "pandas", "peft", "quant", "s3", "sign", "tensorboard",
    "trackio", "wandb",
}  # fmt: skip


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_package_list_equals_the_folders() -> None:
    folders = {".".join(("kdpipe", *module.path.parent.relative_to(ROOT).parts)) for module in modules()}
    listed = project()["tool"]["setuptools"]["packages"]
    assert listed == sorted(folders - {"kdpipe.kdpipe"} | {PUBLIC})
    folder = {name: ROOT / Path(*name.split(".")[1:]) for name in listed} | {PUBLIC: ROOT / PUBLIC}
    assert all((folder[name] / "__init__.py").is_file() for name in listed)


def test_every_layer_is_mapped_and_linked_for_type_checkers() -> None:
    mapped = project()["tool"]["setuptools"]["package-dir"]
    assert mapped == {f"kdpipe.{layer}": layer for layer in LAYERS} | {PUBLIC: PUBLIC}
    for layer in LAYERS:
        link = ROOT / ".types" / "kdpipe" / layer
        assert link.readlink() == Path("..", "..", layer)
    files = {path.name for path in (ROOT / PUBLIC).iterdir() if path.is_file()}
    links = {path.name: path.readlink() for path in (ROOT / ".types" / "kdpipe").iterdir() if path.name not in LAYERS}
    assert links == {name: Path("..", "..", PUBLIC, name) for name in files}


def test_the_version_is_only_in_pyproject() -> None:
    version = project()["project"]["version"]
    copies = [module.where for module in modules() if version in module.text]
    assert not copies


def test_the_extras_are_the_documented_ones() -> None:
    assert set(project()["project"]["optional-dependencies"]) == EXTRAS


def test_the_constraints_pin_every_dependency_inside_its_range() -> None:
    table = project()["project"]
    needed = [Requirement(line) for line in [*table["dependencies"], *table["optional-dependencies"]["dev"]]]
    pins = pinned()
    outside = [str(r) for r in needed if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert not outside


def test_the_constraints_hold_for_every_machine() -> None:
    for name, version in pinned().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}: {version}"


def test_the_constraints_pin_exactly_the_dependencies() -> None:
    queue, seen = [Requirement("kdpipe[dev]")], set[tuple[str, str]]()
    while queue:
        requirement = queue.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                dependencies = [Requirement(line) for line in importlib.metadata.requires(requirement.name) or []]
                queue += [r for r in dependencies if r.marker is None or r.marker.evaluate({"extra": extra})]
    names = {name for name, _ in seen} - {"kdpipe"}
    assert not set(pinned()) - names
    # Installed by torch builds for accelerators, at pinned versions.
    assert not {name for name in names - set(pinned()) if not name.startswith(("nvidia-", "cuda-", "triton"))}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building does not change the tree."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for layer in (*LAYERS, PUBLIC):
        shutil.copytree(ROOT / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("built")
    _quiet([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(sources)], cwd=out)
    return out


def _quiet(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment(folder: Path) -> Path:
    """A virtual environment with the libraries installed here, but without this kdpipe."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = Path(_quiet([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (site / "here.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_install_works_from_an_empty_folder(kind: str, sources: Path, built: Path, tmp_path: Path) -> None:
    python, empty = _environment(tmp_path / "venv"), tmp_path / "empty"
    empty.mkdir()
    source = {"wheel": [*map(str, built.glob("*.whl"))], "sdist": [*map(str, built.glob("*.tar.gz"))]}
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
    targets = source.get(kind, ["--editable", str(sources)])
    _quiet([str(python), "-m", "pip", "install", *flags, *targets], cwd=empty)

    script = python.parent / "kdpipe"
    assert "Usage: kdpipe" in _quiet([str(script), "--help"], cwd=empty)
    assert _quiet([str(script), "--version"], cwd=empty).strip() == f"kdpipe {project()['project']['version']}"

    packages = project()["tool"]["setuptools"]["packages"]
    report = f"import {', '.join(packages)}; print(kdpipe.cli.__file__)"
    home = sources if kind == "editable" else tmp_path / "venv"
    assert Path(_quiet([str(python), "-c", report], cwd=empty).strip()).is_relative_to(home)
    if kind == "wheel":
        expected = {module.where.removeprefix(f"{PUBLIC}/") for module in modules()}
        assert _installed(tmp_path / "venv") == expected
    top = "import kdpipe, sys; print(kdpipe.__version__, 'torch' in sys.modules)"
    version = project()["project"]["version"]
    assert _quiet([str(python), "-c", top], cwd=empty).split() == [version, "False"]
    assert version in _quiet([str(python), "-m", "kdpipe", "--version"], cwd=empty)


def _installed(folder: Path) -> set[str]:
    package = next(folder.rglob("kdpipe/schemas")).parent
    return {str(path.relative_to(package)) for path in package.rglob("*.py")}


def test_doctor_knows_every_extra() -> None:
    assert set(EXTRA_MODULES) == EXTRAS - {"dev"}
