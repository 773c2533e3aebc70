"""Workflows, templates, pre-commit hook and citation parse, and match the Makefile."""

import re
from typing import Any

import pytest
import yaml

from support.source import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
NEVER = re.compile(r"never (run|used) so far", re.IGNORECASE)


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_pre_commit_is_make_lint() -> None:
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == hook["language"].replace("system", "local") == "local"
    assert hook["entry"] == "make lint" and hook["pass_filenames"] is False


def test_the_workflow_runs_what_is_run_before_a_merge() -> None:
    (path,) = WORKFLOWS
    workflow = parsed(str(path.relative_to(ROOT)))
    assert workflow[True].keys() == {"push", "pull_request"}, "YAML 1.1 reads the key `on` as true"
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert {step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step} == {".ci/run"}
    assert (ROOT / ".ci" / "run").is_file()
    assert all(("uses" in step) != ("run" in step) for step in steps)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} \?=", makefile, re.MULTILINE) for name in workflow["env"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_a_host_requires(path: Any) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert form.keys() == {"blank_issues_enabled", "contact_links"}
        return
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, ROOT / ".github" / "pull_request_template.md"], ids=str)
def test_what_was_never_run_states_it_in_its_first_line(path: Any) -> None:
    assert NEVER.search(path.read_text(encoding="utf-8").splitlines()[0])


def test_the_citation_has_the_required_keys() -> None:
    citation = parsed("CITATION.cff")
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
