"""Words that code and docs do without: where they are, and how many of each a file may still have.

In: tests/words.txt and the files of the repository. Out: counts by file and phrase. Run as a program it lowers
tests/words_allowed.txt to what is there, and refuses to raise anything in it.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "tests" / "words.txt"
ALLOWED = ROOT / "tests" / "words_allowed.txt"
# Files that list the words, and texts that are not ours.
APART = (
    "tests/words.txt",
    "tests/words_allowed.txt",
    "tests/golden/",
    "tests/data/",
    "LICENSE",
    "docs/glossary.md",
    "tests/test_words.py",
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@cache
def phrases() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The phrases with what finds each."""
    found = []
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line[1:-1] if line.startswith("/") else re.escape(line)
            found.append((line, re.compile(rf"(?<!\w){pattern}(?!\w)")))
    return tuple(found)


def counts(text: str, *, is_python: bool) -> Counter[str]:
    """How often each phrase is in a file."""
    prose = "\n".join(_python_prose(text)) if is_python else text
    prose = re.sub(r"\s+", " ", prose.lower())
    there = [(phrase, pattern) for phrase, pattern in phrases() if phrase in prose or phrase.startswith("/")]
    return Counter({phrase: n for phrase, pattern in there if (n := len(pattern.findall(prose)))})


def _python_prose(text: str) -> Iterator[str]:
    """Names as their words, strings and comments, each apart from the next."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield " ".join(_CAMEL.sub(" ", part) for part in token.string.split("_")) + " ;"
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.string.replace("_", " ") + " ;"


def found(prefix: str = "") -> dict[tuple[str, str], int]:
    """The count of every phrase in every file below a path that has it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    counted = {}
    for name in listed.splitlines():
        path = ROOT / name
        if (
            not name.startswith(prefix)
            or name.startswith(APART)
            or path.suffix not in (".py", ".md", ".yaml", ".toml")
            or not path.is_file()
        ):
            continue
        for phrase, n in counts(path.read_text(encoding="utf-8"), is_python=path.suffix == ".py").items():
            counted[name, phrase] = n
    return counted


def allowed() -> dict[tuple[str, str], int]:
    """The counts that are still allowed."""
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {(name, phrase): int(n) for n, name, phrase in rows}


def main() -> None:
    """Lower what is allowed to what is there; `--list PREFIX` shows counts below a path instead."""
    if "--list" in sys.argv:
        for (name, phrase), n in sorted(found(sys.argv[sys.argv.index("--list") + 1]).items()):
            sys.stdout.write(f"{n}\t{name}\t{phrase}\n")
        return
    now = found()
    if "--first" not in sys.argv:
        known = allowed()
        if more := [key for key, n in now.items() if n > known.get(key, 0)]:
            sys.exit("\n".join(f"{name}: {phrase!r} is there {now[name, phrase]} times" for name, phrase in more))
    rows = [f"{n}\t{name}\t{phrase}" for (name, phrase), n in sorted(now.items())]
    head = "# Phrases of words.txt that are still there: count, file, phrase. Lowered by `make words`, never raised."
    ALLOWED.write_text("\n".join([head, *rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
