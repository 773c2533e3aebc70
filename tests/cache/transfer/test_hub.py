"""Copies to and from a repository of the hub, by huggingface_hub's own code against a small hub on loopback.

What is not tried here: the real hub, its limits, and its Xet storage.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.stores import hub_store as hub_module
from kdpipe.schemas.errors import CacheError, Unreachable
from support import tiny
from support.commands import kdpipe
from support.hub import NAME, TOKEN, Hub, serving_hub

pytestmark = pytest.mark.slow
URL = f"hf://datasets/{NAME}/one"
Place = tuple[Hub, dict[str, str]]


@pytest.fixture
def place() -> Iterator[Place]:
    """A hub, and the environment of those who use it."""
    hub = Hub()
    others = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with serving_hub(hub) as address:
        ours = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        yield hub, others | ours


def run(environment: dict[str, str], *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; its output."""
    done = subprocess.run([kdpipe(), *words], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def due(path: Path) -> dict[str, bytes]:
    names = [name for name in tiny.files_of(path) if not name.startswith(layout.JOURNAL)]
    return {f"one/{name}": (path / name).read_bytes() for name in names}


def test_a_cache_goes_to_the_hub_and_back_a_commit_a_part(path: Path, place: Place, tmp_path: Path) -> None:
    hub, environment = place
    run(environment, "cache", "copy", str(path), URL)
    assert hub.files == due(path)
    n_parts = len(open_cache(path).parts)
    sent = ["manifest.json", "tables/ids_by_rank.bin", *(f"parts/{n:05d}/part.json" for n in range(n_parts))]
    assert sorted(hub.messages) == sorted(f"kdpipe: {name}" for name in [*sent, layout.INDEX])
    for _, files in hub.commits:  # a part is there whole or not at all
        for n in range(n_parts):
            inside = {name for name in files if name.startswith(f"one/parts/{n:05d}/")}
            assert not inside or inside == {name for name in due(path) if name.startswith(f"one/parts/{n:05d}/")}
    again = json.loads(run(environment, "cache", "copy", str(path), URL, "--json").stdout)
    assert (again["copied"], again["bytes"]) == (0, 0)
    run(environment, "cache", "copy", URL, str(tmp_path / "back"))
    assert {f"one/{name}" for name in tiny.files_of(tmp_path / "back")} == set(due(path))
    run(environment, "cache", "verify", URL, "--level", "full")


def test_a_smaller_cache_goes_there_and_a_subset_is_made_there(path: Path, place: Place, tmp_path: Path) -> None:
    hub, environment = place
    words = ["--parts", "1:3", "--without", "hidden"]
    run(environment, "cache", "copy", str(path), URL, *words)
    run(environment, "cache", "copy", str(path), str(tmp_path / "some"), *words)
    assert hub.files == due(tmp_path / "some")
    messages = run(environment, "cache", "copy", str(path), URL, "--parts", "0:1", code=2).stderr
    assert "selection: existing 'parts 1:3; without hidden', requested 'parts 0:1'" in messages
    run(environment, "cache", "subset", URL, "--out", f"hf://datasets/{NAME}/two", "--documents", "0:5")
    run(environment, "cache", "verify", f"hf://datasets/{NAME}/two", "--level", "full")


def test_several_may_send_at_once_and_commits_that_came_second_are_made_again(path: Path, place: Place) -> None:
    hub, environment = place
    words = [kdpipe(), "cache", "copy", str(path), URL]
    children = [subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait(900) for child in children] == [0, 0, 0]
    assert hub.files == due(path)
    assert hub.refused, "no second commit: this has shown nothing"
    assert len([message for message in hub.messages if message.endswith("index.parquet")]) == 1


def test_a_reader_keeps_to_the_commit_that_it_began_with(path: Path, place: Place) -> None:
    hub, environment = place
    run(environment, "cache", "copy", str(path), URL)
    code = f"""
import sys
from kdpipe.cache import open_cache
cache = open_cache({URL!r})
before = [cache[i].tokens.tobytes() for i in range(2)]
print(cache.cache_id, flush=True)
sys.stdin.readline()
for i in range(len(cache)):
    cache[i]
print("read")
"""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline().strip() == open_cache(path).cache_id
        hub.commits.append(("f" * 40, {"one/README.md": b"all is gone"}))
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "read\n"
    assert child.returncode == 0
    assert "has no manifest.json" in run(environment, "cache", "verify", URL, code=2).stderr


@pytest.mark.parametrize(
    ("url", "change", "code", "reported", "hint"),
    [
        (URL, {"HF_TOKEN": "hf_of0somebody0else0"}, 1, "denies access", "hf auth login, or HF_TOKEN"),
        ("hf://datasets/me/none/one", {}, 2, "no repository or branch at", "create it first"),
        (f"hf://datasets/{NAME}@other/one", {}, 2, "no repository or branch at", "create it first"),
        ("hf://datasets", {}, 2, "does not name a folder in a Hub repository", "write hf://datasets/OWNER/NAME/FOLDER"),
        ("hf://buckets/me/caches/one", {}, 2, "have no conditional writes", "give a repository"),
    ],
)
def test_what_cannot_be_written_there_is_reported_in_two_lines(
    path: Path, place: Place, url: str, change: dict[str, str], code: int, reported: str, hint: str
) -> None:
    hub, environment = place
    messages = run(environment | change, "cache", "copy", str(path), url, code=code).stderr
    lines = [line for line in messages.splitlines() if not line.startswith("4 parts to move")]
    assert reported in messages and hint in messages and len(lines) == 2, messages
    assert not hub.files


@pytest.mark.parametrize(
    ("code", "kind"), [(400, CacheError), (413, CacheError), (429, Unreachable), (503, Unreachable)]
)
def test_an_answer_that_will_be_the_same_is_not_waited_for(code: int, kind: type[CacheError]) -> None:
    answer = httpx.Response(code, request=httpx.Request("POST", "http://localhost"))
    with pytest.raises(CacheError) as caught, hub_module._hub_errors(URL):
        raise HfHubHTTPError("no", response=answer)
    assert type(caught.value) is kind
