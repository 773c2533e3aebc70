"""A person who gets everything wrong: two lines, an exit code, nothing left in the way, nothing harmed.

The real commands run in this process on a tiny teacher: with wrong options, data and places, and what else a person can
meet in stage one.
"""

import atexit
import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import interrupts, main
from kdpipe.pipeline.documents import corpus
from kdpipe.schemas.errors import STOP_SIGNALS
from support.corpora import (
    CHATML,
    ENDLESS,
    PICKY,
    TEXTS,
    chat_rows,
    pair_rows,
    small_tokenizer,
    text_rows,
    with_system,
    write_jsonl,
)
from support.models import tiny_llama
from support.stage_one import make_inputs

DOCUMENTS = 12
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no folder")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, documents, and a finished cache of them, which no test changes."""
    folder = tmp_path_factory.mktemp("bad_input")
    make_inputs(folder, DOCUMENTS)
    assert main.run(words(folder, out=str(folder / "cache"))) == 0
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with names for what there is."""
    for name in ("teacher", "corpus.jsonl", "cache"):
        (tmp_path / name).symlink_to(inputs / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(folder: Path = Path(), *more: str, out: str | None = "out", **changed: str) -> list[str]:
    """The words of `cache-teacher`, in which the teacher or the data may be others."""
    named = {"teacher": str(folder / "teacher"), "data": str(folder / "corpus.jsonl"), "seq_len": "96"} | changed
    flags = [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", value)]
    quick = ["--set", "machine.threads=1", *([] if "--devices" in more else ["--devices", "cpu"])]
    return ["cache-teacher", *flags, *(["--out", out] if out else []), *quick, *more]


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused, check the form of its error, and return it."""

    def run(command: list[str], code: int = 2) -> str:
        capsys.readouterr()
        found = main.run(command)
        shown = capsys.readouterr()
        lead = "stopped" if code == 75 else "error"
        reported = shown.err[shown.err.rfind(f"{lead}: ") :]
        assert (found, shown.out) == (code, ""), shown.err
        assert "Traceback" not in shown.err and "unexpected error" not in shown.err
        assert re.fullmatch(rf"{lead}: [^\n]+\n(hint: [^\n]+\n)?", reported), shown.err
        assert not list(place.glob(".kdpipe-*"))
        return reported

    return run


def own_teacher(place: Path) -> Path:
    """A copy of the teacher that may be spoilt."""
    return Path(shutil.copytree(place / "teacher", place / "own"))


def half(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def encoder(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=512, **sizes)).save_pretrained(folder)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (half, r"own/model.safetensors has [\d,]+ bytes; expected [\d,]+", "download it again"),
        (shards, "own is incomplete: model-00001-of-00002.safetensors and 1 more of 2", "download it again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "own has a config and no weights", "expected model"),
        (lambda folder: (folder / "config.json").write_text("{"), "own cannot be loaded: .* JSON", "download it again"),
        (lambda folder: (folder / "config.json").unlink(), "own has no config.json", "save_pretrained"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer own cannot be", "incomplete"),
        (without_tokenizer, "no tokenizer in own: expected tokenizer.json", "--tokenizer"),
        (encoder, "own is not a causal language model: it was saved as BertModel", "a decoder-only language model"),
        (config(model_type="nosuch"), "own cannot be loaded: .*model type `nosuch`", "that transformers supports it"),
        (config(hidden_size=32), r"weights of own do not match its config: .* has shape \[.*64\], expected", "down"),
        (config(num_hidden_layers=3), r"own lacks weights that its config needs: model\.layers\.2\.", "download"),
        (config(vocab_size=400), r"the vocabulary of own does not match its tokenizer: 400 rows for 512 ids", "--"),
    ],
    ids=["half", "shards", "no weights", "half a config", "no config", "half a tokenizer", "no tokenizer", "encoder",
         "unknown", "width", "a layer too few", "vocabulary"],
)  # fmt: skip
def test_an_invalid_model_is_refused(
    spoil: Callable[[Path], object], message: str, hint: str, place: Path, refused: Callable[..., str]
) -> None:
    spoil(own_teacher(place))
    reported = refused(words(teacher="own"))
    assert re.search(rf"error: {message}", reported), reported
    assert hint in reported.splitlines()[1]
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["./nowhere", "models/x/nowhere"])
@pytest.mark.parametrize("command", ["cache-teacher", "plan"])
def test_a_model_that_is_not_there_is_refused(command: str, name: str, refused: Callable[..., str]) -> None:
    reported = refused([command, *words(teacher=name, out="out" if command == "cache-teacher" else None)[1:]])
    assert reported == f"error: no such folder: {name}\nhint: give a model folder, or a Hub id such as org/name\n"


@pytest.mark.parametrize("role", ["teacher", "tokenizer", "data"])
def test_a_hub_name_is_shown_before_the_hub_answers(
    role: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No network: a hub that does not answer is tried for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert main.run(words(Path(), **{role: "nosuch/thing"})) == 2
    *messages, reported, hint = capsys.readouterr().err.splitlines()
    assert any("nosuch/thing" in message and "Hub" in message for message in messages[:2])
    assert reported.startswith("error: ") and "nosuch/thing" in reported and hint.startswith("hint: ")
    assert not (place / "out").exists()


def test_the_teacher_is_looked_at_before_the_documents(place: Path, refused: Callable[..., str]) -> None:
    assert "no such folder: ./nowhere" in refused(words(teacher="./nowhere", data="nowhere.jsonl"))


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        (["--temperatures", "2,0"], "error: --temperatures: item 2 must be at least 0.001, not 0.0"),
        (["--temperatures", "0"], "error: --temperatures: item 1 must be at least 0.001, not 0.0"),
        (["--temperatures", "2,2"], "error: --temperatures: temperatures must differ from each other and from 1"),
        (["--temperatures", ",".join(map(str, range(2, 19)))], "error: --temperatures: tuple should have at most 16"),
        (["--target-temperature", "0"], "error: --target-temperature must be at least 0.001, not 0"),
        (["--tau", "2"], "error: --tau must be at most 1, not 2\nhint: correct it, or leave it out\n"),
        (["--val-fraction", "1"], "error: --val-fraction must be less than 1, not 1"),
        (["--limit", "0"], "error: --limit must be at least 1, not 0"),
        (["--targets", "topp", "--top-p", "0"], "error: --top-p must be greater than 0, not 0"),
        (["--targets", "topk", "--top-k", "513"], "error: --top-k is 513, the vocabulary has 512 ids\nhint: "),
        (["--targets", "topk", "--tau", "0.1"], "error: --tau applies to the targets threshold, not to topk"),
        (["--seq-len", "4096"], "error: teacher reads at most 256 tokens at once, sequences of 4,096 were requested"),
        (["--seq-len", "1"], "error: --seq-len must be at least 2, not 1"),
        (["--hidden-layers", "9"], "error: --hidden-layers 9: layer 9 is above the last layer, 2"),
        (["--hidden-layers", "1", "--hidden-dim", "65"], "error: hidden.dim is 65, the states of this teacher have 64"),
        (["--tokenizer", "./nowhere"], "error: ./nowhere is neither a folder nor a Hub id"),
        (["--shard", "4/4"], "error: --shard 4/4 is out of range: shards are counted from 0\nhint: the last of 4 is"),
        (["--devices", "tpu"], "error: --devices: expected auto, cpu, cuda, mps, all, or GPUs"),
        pytest.param(["--devices", "cuda:0"], "error: cuda:0 does not exist: torch sees 0 GPUs", marks=NO_GPU),
        pytest.param(["--devices", "all"], "error: --devices all needs a GPU, and torch sees none", marks=NO_GPU),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(
    more: list[str], reported: str, place: Path, refused: Callable[..., str]
) -> None:
    assert refused(words(Path(), *more)).startswith(reported)
    assert not (place / "out").exists()


DATA: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "not there": (lambda path: None, [], "no such data: documents.jsonl"),
    "empty": (lambda path: path.write_text(""), [], "documents.jsonl has no rows"),
    "not text": (
        lambda path: path.write_bytes(b"\xff\n\xfe\n"),
        [],
        "no valid row. First errors: documents.jsonl",
    ),
    "other columns": (
        lambda path: write_jsonl(path, [{"body": "a", "id": 1}]),
        [],
        "has no column text, prompt with response, or messages; columns: body, id",
    ),
    "a column not there": (
        lambda path: write_jsonl(path, text_rows(3)),
        ["--set", "data.columns.text=body"],
        "has no column 'body' for the role text; columns: text, category, language, number",
    ),
    "bad rows": (
        lambda path: write_jsonl(path, [*text_rows(3), {"text": ""}, {"text": 5}]),
        ["--max-bad-rows", "1"],
        "more than 1 invalid rows. The first: documents.jsonl:4: text is empty; documents.jsonl:5: text",
    ),
    "empty responses": (
        lambda path: write_jsonl(path, [{"prompt": "Why?", "response": ""}]),
        [],
        "has no usable document; 1 invalid row. The first: documents.jsonl:1: response is empty",
    ),
    "no template": (
        lambda path: write_jsonl(path, chat_rows(4)),
        [],
        "conversations need a chat template, but the tokenizer teacher has none",
    ),
    "all in validation": (
        lambda path: write_jsonl(path, text_rows(3)),
        ["--val-fraction", "0.9999999999"],
        "all 3 documents are in validation at --val-fraction 0.9999999999",
    ),
    "held out twice": (
        lambda path: write_jsonl(path, text_rows(3)),
        ["--val-data", "./documents.jsonl"],
        "--val-data ./documents.jsonl is the same file or folder as --data",
    ),
    "too long": (
        lambda path: write_jsonl(path, [{"text": "a"}, *text_rows(3)]),
        ["--set", "data.long_documents=refuse"],
        "documents.jsonl:2 has 102 tokens, --seq-len allows 96",
    ),
}


@pytest.mark.parametrize(("make", "more", "message"), DATA.values(), ids=DATA.keys())
def test_data_that_cannot_be_used_are_refused(
    make: Callable[[Path], object], more: list[str], message: str, place: Path, refused: Callable[..., str]
) -> None:
    make(place / "documents.jsonl")
    reported = refused(words(Path(), *more, data="documents.jsonl"))
    assert message in reported.splitlines()[0], reported
    assert reported.splitlines()[1].startswith("hint: ")
    assert not (place / "out").exists()


CLOSED = {
    "teacher": "error: own/config.json cannot be read: Permission denied\nhint: ",
    "tokenizer": "error: the tokenizer own cannot be read: Permission denied\nhint: ",
    "data": "error: the data own/a.jsonl cannot be read: Permission denied\nhint: ",
}


@pytest.mark.parametrize(("role", "message"), CLOSED.items(), ids=CLOSED.keys())
def test_an_unreadable_file_is_reported(
    role: str, message: str, place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(own_teacher(place) / "a.jsonl", text_rows(2))
    honest = Path.is_file

    def is_file(path: Path) -> bool:  # root may read everything, so that permissions alone would not do
        if path.parent.name == "own":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    changed = {role: "own/a.jsonl" if role == "data" else "own"}
    assert refused(words(Path(), **changed)).startswith(message)


def test_a_folder_that_may_not_be_looked_into_is_not_passed_over(
    place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(place / "data" / "a.jsonl", text_rows(3))
    (place / "data" / "more").mkdir()
    honest = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", scandir)
    reported = refused(words(data="data"))
    assert reported.startswith("error: ") and "data/more" in reported and "Permission denied\nhint: " in reported


def test_a_table_that_was_cut_short_is_refused(place: Path, refused: Callable[..., str]) -> None:
    (place / "rows.parquet").write_bytes(b"PAR1" + bytes(100))
    reported = refused(words(data="rows.parquet"))
    assert re.match("error: .*rows.parquet.* Parquet.*\nhint: ", reported), reported


def test_a_data_format_that_is_not_supported_is_refused_in_a_folder(place: Path, refused: Callable[..., str]) -> None:
    write_jsonl(place / "data" / "a.jsonl", text_rows(3))
    (place / "data" / "b.arrow").write_text("x")
    reported = refused(words(data="data"))
    assert re.match(r"error: data/b\.arrow", reported), reported


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("corpus.jsonl", "--out corpus.jsonl: corpus.jsonl is not a directory"),
        ("corpus.jsonl/cache", "--out corpus.jsonl/cache: .*/corpus.jsonl is not a directory"),
        ("https://host/cache", "--out https://host/cache: cache-teacher cannot write to"),
        ("s3://me:secret@bucket/cache", "the URL at s3://bucket contains a user name or password"),
        ("data/cache", "--out data/cache is inside the folder of the documents, data"),
        ("teacher", "teacher has other files and no manifest.json: config.json"),
        pytest.param("/proc/cache", "--out /proc/cache: not writable: No such file", marks=LINUX),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["", "dry run"])
def test_a_place_where_no_cache_can_be_is_refused_before_anything_is_loaded(
    out: str, message: str, dry_run: list[str], place: Path, refused: Callable[..., str]
) -> None:
    write_jsonl(place / "data" / "a.jsonl", text_rows(2))
    reported = refused(words(Path(), *dry_run, out=out, teacher="./nowhere", data="data"))
    assert re.match(f"error: {message}", reported), reported
    assert reported.splitlines()[1].startswith("hint: ")


def test_a_folder_that_may_not_be_written_is_refused(
    place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    reported = refused(words(teacher="./nowhere"))
    assert re.match("error: --out out: .*Permission denied\nhint: ", reported), reported


@pytest.mark.parametrize(
    ("more", "differs"),
    [
        (["--tau", "0.2"], "--tau: existing 0.04, requested 0.2"),
        (["--targets", "topk", "--top-k", "8"], "--targets: existing 'threshold', requested 'topk'"),
        (["--temperatures", "2"], "--temperatures: existing none, requested 2.0"),
        (["--hidden-layers", "0.5"], "--hidden-layers: existing none, requested 1"),
        (["--hidden-layers", "none"], "layers pooled over documents: existing 1, 2, requested none"),
        (["--for-other-tokenizers"], "--for-other-tokenizers: existing no, requested yes"),
        (["--seq-len", "64"], "--seq-len: existing 96, requested 64"),
        (["--no-pack"], "whether documents are packed: existing yes, requested no"),
        (["--seed", "3"], "--seed: existing 0, requested 3"),
        (["--dtype", "bfloat16"], "--dtype: existing 'float32', requested 'bfloat16'"),
        (["--limit", "5"], r"the documents, or how they are read: existing \w{8}\.\.\., requested \w{8}\.\.\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_another_cache_in_the_folder_is_reported_by_its_differences(
    more: list[str], differs: str, refused: Callable[..., str]
) -> None:
    reported = refused(words(Path(), *more, out="cache"))
    assert refused(words(Path(), "--dry-run", *more, out="cache")) == reported
    assert re.fullmatch(f"error: cache .*{differs}[^;]*\nhint: .*\n", reported), reported


def test_another_teacher_tokenizer_and_corpus_are_reported(place: Path, refused: Callable[..., str]) -> None:
    small_tokenizer(tiny_llama(place / "own", seed=1), vocabulary=400)
    write_jsonl(place / "other.jsonl", text_rows(5))
    reported = refused(words(out="cache", teacher="own", data="other.jsonl"))
    for what in (
        "the teacher's name",
        "the teacher's weights",
        "the tokenizer",
        "the documents",
        "the name of the data",
    ):
        assert what in reported
    assert "tables" not in reported and "arrays" not in reported and "plan" not in reported


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["--targets", "topk", "--top-k", "5000"], ["--targets", "topk", "--top-k", "50"]),
        (["--set", "data.long_documents=refuse"], ["--set", "data.long_documents=truncate"]),
        (["--seq-len", "300"], ["--seq-len", "64"]),
        (["--set", "data.columns.text=body"], ["--set", "data.columns.text=text"]),
    ],
    ids=["top-k", "long documents", "seq-len", "column"],
)
def test_the_corrected_command_resumes_in_the_same_folder(
    wrong: list[str], right: list[str], place: Path, refused: Callable[..., str]
) -> None:
    refused(words(Path(), *wrong))
    assert main.run(words(Path(), *right)) == 0
    assert verify_cache(place / "out", "full").ok


def test_an_untrainable_conversation_leaves_no_folder_behind(place: Path, refused: Callable[..., str]) -> None:
    small_tokenizer(own_teacher(place), chat_template=CHATML)
    write_jsonl(place / "chat.jsonl", chat_rows(30))
    (place / "endless.jinja").write_text(ENDLESS)
    reported = refused(words(Path(), "--set", "data.chat_template=endless.jinja", teacher="own", data="chat.jsonl"))
    assert re.search("chat.jsonl:1: .*assistant turn 1.*stop token", reported), reported
    assert not (place / "out").exists()
    assert main.run(words(teacher="own", data="chat.jsonl")) == 0


@pytest.mark.slow
def test_a_bad_conversation_after_the_first_parts_stops_the_run_which_resumes_without_it(
    place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_tokenizer(own_teacher(place), chat_template=PICKY)
    rows = chat_rows(40)
    rows[28] = with_system(rows[28])
    write_jsonl(place / "chat.jsonl", rows)
    # In few tokens the samples that are read before anything is begun are the whole of it.
    monkeypatch.setattr(corpus, "SAMPLE", 4)
    monkeypatch.setattr(corpus.Corpus.token_counts, "__defaults__", (300,))
    few = words(
        Path(), "--set", "sequences.part_rows=512", "--val-fraction", "0", teacher="own", data="chat.jsonl", out="out"
    )
    reported = refused(few)
    assert re.match("error: chat.jsonl:29: .*chat template.*no system message", reported), reported
    assert "--set data.untrainable=skip" in reported.splitlines()[1]
    parts = sorted((place / "out" / "parts").iterdir())
    before = [part.stat().st_ino for part in parts]
    assert 2 <= len(parts) < open_cache(place / "out", allow_partial=True).manifest.plan.n_parts
    assert refused(few) == reported
    assert main.run([*few, "--set", "data.untrainable=skip"]) == 0
    shown = capsys.readouterr()
    why = "skipped 1 untrainable document, e.g. chat.jsonl:29: the chat template rejects"
    assert why in shown.err and "1 without trained tokens skipped" in shown.out
    assert [part.stat().st_ino for part in sorted((place / "out" / "parts").iterdir())][: len(before)] == before
    assert verify_cache(place / "out", "deep").ok
    known = {int(n) for rows in open_cache(place / "out") for n in rows.documents}
    assert known == set(range(40)) - {28}
    assert main.run([*few, "--out", "whole", "--set", "data.untrainable=skip"]) == 0
    assert open_cache(place / "whole").cache_id == open_cache(place / "out").cache_id


def spoilt(folder: Path, name: str, row: int, value: float = float("nan")) -> None:
    """Put not a number into a row of a weight."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name][row] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("weight", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_teacher_of_spoilt_weights_is_refused_with_their_name(
    weight: str, place: Path, refused: Callable[..., str]
) -> None:
    spoilt(own_teacher(place), weight, 0)
    reported = refused(words(teacher="own"), code=2)
    assert re.match("error: .*logits of own.*not finite", reported) and f" {weight} " in reported
    assert not (place / "out").exists()
    assert main.run(words(out="out")) == 0


@pytest.mark.slow
def test_parts_before_a_document_that_overflows_stay_good(place: Path, refused: Callable[..., str]) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place / "teacher")
    common = {token for text in TEXTS[:30] for token in tokenizer(text)["input_ids"]}
    rare = next(token for token in tokenizer("\u01e2")["input_ids"] if token not in common)
    spoilt(own_teacher(place), "model.embed_tokens.weight", rare)
    texts = [*TEXTS[:24], f"{TEXTS[24]} \u01e2", *TEXTS[25:30]]
    write_jsonl(place / "texts.jsonl", [{"text": text} for text in texts])
    few = ["--set", "sequences.part_rows=512", "--val-fraction", "0"]
    reported = refused(words(Path(), *few, teacher="own", data="texts.jsonl"), code=1)
    assert "document 24 (train)" in reported and "not finite" in reported
    assert re.search("embeddings.*layer 1 of 2", reported), reported
    cache = open_cache(place / "out", allow_partial=True)
    parts = sorted((place / "out" / "parts").iterdir())
    assert 2 < len(parts) < cache.manifest.plan.n_parts and len(list(cache)) > 10
    before = [part.stat().st_ino for part in parts]
    assert "document 24 (train)" in refused(words(Path(), *few, teacher="own", data="texts.jsonl"), code=1)
    assert [part.stat().st_ino for part in sorted((place / "out" / "parts").iterdir())][: len(before)] == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits are set the POSIX way")
def test_a_full_disk_is_reported_and_the_same_command_resumes(
    inputs: Path, place: Path, refused: Callable[..., str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n_bytes, doing in ((100, "checking the tokenizer's files"), (25_000, "writing part 0: File too large (out)")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            reported = refused(words(), code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert reported.startswith(f"error: {doing}"), reported
        assert "File too large" in reported and "hint: " in reported
        assert not list((place / "out").glob("tmp/*"))
    assert main.run(words()) == 0
    assert open_cache(place / "out").cache_id == open_cache(inputs / "cache").cache_id


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals as the command line takes them."""
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGURG)}
    monkeypatch.setattr(interrupts, "_seen", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interrupts.listen()
    yield
    atexit.unregister(interrupts._ignore)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")
@pytest.mark.parametrize(
    ("where", "turn"),
    [
        ("kdpipe.pipeline.teachers.transformers_backend.load", 1),
        ("kdpipe.pipeline.documents.corpus.tokenize", 1),
        ("kdpipe.pipeline.documents.open_corpus.Indexer", 1),
        ("kdpipe.pipeline.capture.part_capture.arrange", 3),
    ],
    ids=["loading", "tokenizing", "indexing", "in the third part"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("listening")
def test_an_interrupted_run_keeps_its_parts_and_resumes(
    number: signal.Signals,
    where: str,
    turn: int,
    place: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _, name = where.rpartition(".")
    honest, turns = getattr(sys.modules[module], name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        turns.append(1)
        if len(turns) == turn:
            signal.raise_signal(number)
        return honest(*args, **kwargs)

    small = words(Path(), "--set", "sequences.part_rows=512")
    monkeypatch.setattr(where, interrupted)
    assert refused(small, code=75) == "stopped: interrupted\nhint: re-run the same command to resume\n"
    monkeypatch.undo()
    monkeypatch.chdir(place)
    kept = sorted((place / "out" / "parts").glob("[0-9]*"))
    assert len(kept) == turn - 1
    inodes = [part.stat().st_ino for part in kept]
    assert main.run(small) == 0
    assert [part.stat().st_ino for part in kept] == inodes
    assert verify_cache(place / "out", "full").ok


ODD: dict[str, tuple[list[dict[str, Any]], list[str], int]] = {
    "one document": ([{"text": TEXTS[0]}], [], 100),
    "equal documents": ([{"text": TEXTS[0]}] * 3, [], 300),
    "a single token": ([{"text": "a"}], ["--set", "data.append_stop=false"], 0),
    "a single token among others": ([{"text": "a"}, {"text": "b c"}], ["--set", "data.append_stop=false"], 1),
    "an empty response": ([{"prompt": "Why?", "response": ""}, *pair_rows(1)], [], -1),
    "as many ids as there are": ([{"text": TEXTS[0]}], ["--targets", "topk", "--top-k", "512"], 100),
    "all of the mass": ([{"text": TEXTS[0]}], ["--targets", "topp", "--top-p", "1"], 100),
    "bfloat16 on the CPU": ([{"text": TEXTS[0]}], ["--dtype", "bfloat16"], 100),
}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "more", "positions"), ODD.values(), ids=ODD.keys())
def test_odd_documents_are_cached(
    rows: list[dict[str, Any]], more: list[str], positions: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(place / "odd.jsonl", rows)
    assert main.run(words(Path(), "--json", *more, data="odd.jsonl")) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["complete"] and report["positions"] == (positions if positions >= 0 else report["positions"])
    assert ("no document" in shown.err) == (positions == 0)
    assert ("odd.jsonl:1: response is empty" in shown.err) == (positions < 0)
    assert verify_cache(place / "out", "deep").ok


def test_a_cache_is_compared_with_its_own_teacher_only(place: Path, refused: Callable[..., str]) -> None:
    def against(teacher: str, cache: str = "cache") -> list[str]:
        return ["cache", "verify", cache, "--against", teacher, "--sample", "2"]

    small_tokenizer(tiny_llama(place / "small", vocabulary=400), vocabulary=400)
    tiny_llama(place / "other", seed=1)
    half(own_teacher(place))
    assert main.run(against("teacher")) == 0
    assert main.run(against("other")) == 3
    assert "no such folder: ./nowhere" in refused(against("./nowhere"))
    assert "its header" in refused(against("own"))
    assert main.run(against("small")) == 3
    assert "no such folder: nowhere" in refused(against("teacher", "nowhere"))
    write_jsonl(place / "odd.jsonl", [{"text": "a"}])
    assert main.run(words(Path(), "--set", "data.append_stop=false", data="odd.jsonl", out="odd")) == 0
    assert "odd has no position" in refused(against("teacher", "odd"))


def test_a_plan_is_refused_as_the_run_would_be(refused: Callable[..., str]) -> None:
    plan = ["plan", *words(out=None)[1:]]
    assert re.search("--top-k.* 513.* 512 ", refused([*plan, "--targets", "topk", "--top-k", "513"]))
    assert "no such data: nowhere.jsonl" in refused([*plan, "--data", "nowhere.jsonl"])
    reported = refused(["plan", "--teacher", "teacher"])
    assert all(flag in line for line in reported.splitlines() for flag in ("--data", "--tokens"))
    assert "--probe needs documents" in refused(["plan", "--teacher", "teacher", "--tokens", "9", "--probe"])
