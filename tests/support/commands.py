"""The command line's surface: which commands and options exist, and how a test asks for them.

`SURFACE` is the list that scripts lean on: a command or an option that comes or goes is a change here.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

from kdpipe.cli import main

# Options of plan and cache-teacher.
STAGE_ONE = {
    "--teacher", "--teacher-name", "--teacher-license", "--revision",
    "--tokenizer", "--allow-foreign-tokenizer", "--trust-remote-code", "--dtype",
    "--data", "--data-split", "--text-files", "--limit",
    "--val-data", "--val-fraction", "--train-on", "--max-bad-rows", "--seq-len", "--no-pack",
    "--targets", "--profile", "--tau",
    "--top-k", "--top-p", "--draws", "--target-temperature", "--temperatures", "--hidden-layers", "--hidden-dim",
    "--for-other-tokenizers", "--devices", "--seed", "--config", "--set", "--json", "--quiet",
}  # fmt: skip
# Options of train.
STAGE_TWO = {
    "--from-cache", "--allow-partial", "--pin", "--verify",
    "--cache-dir", "--cache-limit", "--retry-for", "--student", "--out", "--mode", "--alpha", "--temperature",
    "--allow-coarse", "--lr",
    "--optimizer", "--epochs", "--max-steps", "--batch-size", "--accumulate", "--precision", "--guard", "--lora",
    "--report-to", "--seed", "--config", "--set", "--json", "--quiet",
    "--loss", "--schedule", "--warmup", "--weight-decay", "--clip", "--eval-every", "--save-every",
    "--keep-checkpoints", "--devices", "--threads", "--gradient-checkpointing",
}  # fmt: skip
# Options of sample and chat.
SAMPLING = {
    "--temperature", "--top-p", "--max-new-tokens", "--seed", "--greedy", "--revision", "--trust-remote-code",
    "--devices",
}  # fmt: skip
# command -> (its sub-commands, its options); every command also has -h and --help.
SURFACE: dict[str, tuple[set[str], set[str]]] = {
    "": (
        {
            "cache",
            "cache-teacher",
            "chat",
            "compare",
            "config",
            "demo",
            "doctor",
            "eval",
            "export",
            "plan",
            "sample",
            "train",
        },
        {"--version", "--debug", "--install-completion", "--show-completion"},
    ),
    "plan": (set(), STAGE_ONE | {"--tokens", "--probe"}),
    "cache-teacher": (set(), STAGE_ONE | {"--extend", "--out", "--shard", "--dry-run", "--retry-for"}),
    "demo": (set(), {"--out", "--steps", "--devices", "--verbose"}),
    "doctor": (set(), {"--from-cache", "--teacher", "--student", "--out", "--json"}),
    "train": (set(), STAGE_TWO | {"--resume-from", "--overwrite", "--dry-run"}),
    "export": (set(), {"--to", "--out", "--dtype", "--trust-remote-code", "--quiet", "--json"}),
    "eval": (
        set(),
        {
            "--from-cache",
            "--student",
            "--revision",
            "--trust-remote-code",
            "--split",
            "--limit",
            "--tasks",
            "--unsafe-no-sandbox",
            "--allow-partial",
            "--verify",
            "--retry-for",
            "--devices",
            "--batch-size",
            "--quiet",
            "--json",
        },
    ),
    "compare": (
        set(),
        {
            "--teacher",
            "--from-cache",
            "--format",
            "--devices",
            "--trust-remote-code",
            "--retry-for",
            "--quiet",
            "--json",
        },
    ),
    "sample": (set(), SAMPLING | {"--prompt", "--prompts", "--beside", "--quiet", "--json"}),
    "chat": (set(), SAMPLING | {"--system"}),
    "cache": ({"copy", "export", "import", "inspect", "merge", "requantize", "sign", "subset", "verify"}, set()),
    "config": ({"check", "init", "schema", "show"}, set()),
    "config check": (set(), {"--for"}),
    "config init": (set(), {"--for"}),
    "config schema": (set(), {"--for"}),
    "config show": (set(), {"--for", "--set"}),
    "cache export": (set(), {"--to", "--out", "--split", "--retry-for", "--quiet", "--json"}),
    "cache import": (
        set(),
        {
            "--from",
            "--data-split",
            "--tokenizer",
            "--out",
            "--codec",
            "--columns",
            "--tail",
            "--align",
            "--val-fraction",
            "--no-pack",
            "--limit",
            "--max-row-bytes",
            "--teacher-name",
            "--teacher-revision",
            "--teacher-license",
            "--trust-remote-code",
            "--quiet",
            "--json",
        },
    ),
    "cache copy": (set(), {"--parts", "--split", "--without", "--allow-partial", "--retry-for", "--quiet", "--json"}),
    "cache inspect": (set(), {"--retry-for", "--quiet", "--json"}),
    "cache merge": (set(), {"--out", "--overlap", "--retry-for", "--quiet", "--json"}),
    "cache requantize": (
        set(),
        {
            "--out",
            "--targets",
            "--profile",
            "--tau",
            "--draws",
            "--top-k",
            "--top-p",
            "--temperatures",
            "--drop",
            "--seed",
            "--retry-for",
            "--quiet",
            "--json",
        },
    ),
    "cache sign": (set(), {"--key", "--new-key", "--retry-for", "--quiet"}),
    "cache subset": (
        set(),
        {
            "--out",
            "--split",
            "--parts",
            "--documents",
            "--where",
            "--by",
            "--lowest",
            "--highest",
            "--at-least",
            "--at-most",
            "--retry-for",
            "--quiet",
            "--json",
        },
    ),
    "cache verify": (
        set(),
        {
            "--level",
            "--against",
            "--sample",
            "--trust-remote-code",
            "--devices",
            "--repair-from",
            "--signature",
            "--retry-for",
            "--quiet",
            "--json",
        },
    ),
}


def kdpipe() -> str:
    """The installed console script."""
    found = shutil.which("kdpipe", path=sysconfig.get_path("scripts"))
    assert found is not None, "kdpipe is not installed beside this Python"
    return found


def starts_fast(words: list[str]) -> bool:
    """Whether a command takes no more than five times what Python and typer take alone: 0.1 s on an idle machine.

    A ratio, because a busy machine adds to processor time too.
    """
    pairs = [(processor_seconds(words), processor_seconds([sys.executable, "-c", "import typer"])) for _ in range(3)]
    return min(one for one, _ in pairs) < 5 * min(alone for _, alone in pairs)


def processor_seconds(words: list[str]) -> float:
    """What a program takes of the processors."""
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, words
    return used.ru_utime + used.ru_stime


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[set[str], set[str]]:
    """The sub-commands and options that a command's --help shows."""
    assert main.run([*command.split(), "--help"]) == 0
    section, commands, options = "", set[str](), set[str]()
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            section = line
        elif section == "Commands:" and re.match(r"  \S", line):
            commands.add(line.split()[0])
        elif re.match(r"  --?[a-zA-Z]", line):
            options |= set(re.findall(r"--[a-z][a-z-]*", line.strip().split("  ")[0]))
    return commands, options - {"--help"}
