"""Axolotl's columns, NeMo-Aligner's lines and plain top-k: the same distributions become the same cache."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.errors import ConfigError
from support.interop_sources import (
    Row,
    axolotl_row,
    imported,
    nemo_row,
    random_rows,
    surveyed,
    topk_row,
    word_tokenizer,
    write_rows,
)

N_IDS, K = 30, 4
ROWS = random_rows(7, N_IDS, K, (9, 5, 12))
EITHER = pytest.mark.parametrize("ending", [".parquet", ".jsonl"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", N_IDS))


def own(row: Row) -> Row:
    """As in vLLM's output: list t predicts token t, the first is missing."""
    return axolotl_row(row, target_token_ids=[None, *row["ids"][:-1]], target_logprobs=[None, *row["logprobs"][:-1]])


def padded(row: Row) -> Row:
    """Two tokens of padding at the end, with lists of padding."""
    n = len(row["tokens"])
    nothing = [[-1e9] * K], [list(range(K))]
    return {
        "input_ids": [*row["tokens"], 0, 0],
        "labels": [*([-100] * 3), *row["tokens"][3:], -100, -100],
        "attention_mask": [1] * n + [0, 0],
        "target_logprobs": [*row["logprobs"][:-1], *nothing[0] * 3],
        "target_token_ids": [*row["ids"][:-1], *nothing[1] * 3],
    }


def made(form: str, rows: list[Row], tokenizer: str, folder: Path, ending: str, **settings: Any) -> Cache:
    source = write_rows(folder / f"rows{ending}", rows)
    report = imported(
        source_format=form, source=str(source), tokenizer=tokenizer, out=str(folder / "cache"), pack=False, **settings
    )
    assert report.documents == len(rows)
    return open_cache(folder / "cache")


def check(cache: Cache, *, tail: bool) -> None:
    """Rows are trained on from the third on, each with the distribution of its next token."""
    assert len(cache) == len(ROWS)
    for row, found in zip(ROWS, cache, strict=True):
        n = len(row["tokens"])
        assert found.tokens.tolist() == row["tokens"]
        assert found.loss_mask.tolist() == [2 <= t < n - 1 for t in range(n)]
        assert found.ids.reshape(-1, K).tolist() == row["ids"][2 : n - 1]
        due = np.array(row["logprobs"][2 : n - 1])
        np.testing.assert_allclose(found.logprobs.reshape(-1, K), due, rtol=0, atol=1.5 / 16)
        if not tail:
            assert found.log_tail is None
            continue
        assert found.log_tail is not None
        tails = np.exp(found.log_tail[2 : n - 1])
        np.testing.assert_allclose(tails, 1 - np.exp(due).sum(axis=1), rtol=0, atol=SCALAR_STEP / 8)
        np.testing.assert_allclose(found.logprobs.reshape(-1, K), due, rtol=0, atol=1 / 16)


@EITHER
@pytest.mark.parametrize("spelling", [axolotl_row, own, padded], ids=lambda each: each.__name__)
def test_axolotls_columns_are_read_in_either_alignment(
    spelling: Any, ending: str, tokenizer: str, tmp_path: Path
) -> None:
    cache = made("axolotl", [spelling(row) for row in ROWS], tokenizer, tmp_path, ending)
    check(cache, tail=False)
    alignment = "list t predicts token t;" if spelling is own else "list t predicts token t + 1;"
    assert alignment in cache.manifest.history[0].note
    assert cache.manifest.data.train_on == "assistant"


def test_tail_rest_makes_the_tail_known(tokenizer: str, tmp_path: Path) -> None:
    check(made("axolotl", [axolotl_row(row) for row in ROWS], tokenizer, tmp_path, ".parquet", tail="rest"), tail=True)


def test_without_labels_every_token_is_trained_on_and_the_note_states_it(tokenizer: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in axolotl_row(row).items() if name[0] in "it"} for row in ROWS]
    cache = made("axolotl", rows, tokenizer, tmp_path, ".jsonl")
    assert all(found.loss_mask.tolist() == [True] * (len(found) - 1) + [False] for found in cache)
    assert "loss mask" in cache.manifest.history[0].note
    assert cache.manifest.data.train_on == "all"


def test_one_list_less_than_tokens_has_only_one_alignment(tokenizer: str, tmp_path: Path) -> None:
    rows = [axolotl_row(row, target_token_ids=row["ids"][:-1], target_logprobs=row["logprobs"][:-1]) for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl"), tail=False)


@EITHER
def test_nemo_aligners_logits_become_log_probabilities_with_their_tail(
    ending: str, tokenizer: str, tmp_path: Path
) -> None:
    rows = [nemo_row(row) for row in ROWS]
    check(made("nemo", rows, tokenizer, tmp_path, ending), tail=True)


def test_nemo_aligners_tail_can_be_set_to_unknown(tokenizer: str, tmp_path: Path) -> None:
    check(made("nemo", [nemo_row(row) for row in ROWS], tokenizer, tmp_path, ".jsonl", tail="unknown"), tail=False)


@EITHER
def test_plain_top_k_has_its_own_tails(ending: str, tokenizer: str, tmp_path: Path) -> None:
    cache = made("topk", [topk_row(row) for row in ROWS], tokenizer, tmp_path, ending)
    check(cache, tail=True)
    assert "tail: stated by the source" in cache.manifest.history[0].note


def test_plain_top_k_has_columns_of_any_name(tokenizer: str, tmp_path: Path) -> None:
    names = {"tokens": "t", "ids": "i", "logprobs": "p", "loss_mask": "m"}
    rows = [{name: topk_row(row)[role] for role, name in names.items()} for row in ROWS]
    check(made("topk", rows, tokenizer, tmp_path, ".parquet", columns=names, tail="rest"), tail=True)


def test_plain_top_k_lists_may_predict_their_own_tokens(tokenizer: str, tmp_path: Path) -> None:
    rows = []
    for row in map(topk_row, ROWS):
        moved = {name: [first, *row[name][:-1]] for name, first in (("ids", []), ("logprobs", []), ("log_tail", 0.0))}
        rows.append({"tokens": row["tokens"], "loss_mask": [False, *row["loss_mask"][:-1]], **moved})
    check(made("topk", rows, tokenizer, tmp_path, ".jsonl", align="own"), tail=True)


def test_documents_in_one_row_stay_separate(tokenizer: str, tmp_path: Path) -> None:
    rows = [topk_row(row) for row in ROWS]
    joined = {name: [each for row in rows for each in row[name]] for name in rows[0]}
    report = imported(
        source_format="topk", source=str(write_rows(tmp_path / "a.jsonl", [{**joined, "document_starts": [0, 9, 14]}])),
        tokenizer=tokenizer, out=str(tmp_path / "cache"), pack=False,
    )  # fmt: skip
    assert report.documents == 1
    check(open_cache(tmp_path / "cache"), tail=True)


def refusal(form: str, row: Row, folder: Path, ending: str = ".jsonl", **settings: Any) -> str:
    source = write_rows(folder / f"rows{ending}", [row])
    with pytest.raises(ConfigError) as refused:
        surveyed(N_IDS, source_format=form, source=str(source), **settings)
    return f"{refused.value.message} | {refused.value.hint}"


ROW = ROWS[0]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"input_ids": [1]}, "row 1: no column target_logprobs"),
        (axolotl_row(ROW, labels=[5] * 9), "label 0 is 5 and token 0 is"),
        (axolotl_row(ROW, labels=[-100]), "1 labels for 9 tokens"),
        (axolotl_row(ROW, attention_mask=[0] + [1] * 8), "attention_mask must be 1"),
        (axolotl_row(ROW, attention_mask=[1] * 8 + [2]), "attention_mask contains 2.0"),
        (axolotl_row(ROW, attention_mask=[1] * 8), "attention_mask must be 1"),
        (axolotl_row(ROW, target_token_ids=ROW["ids"][:5]), "target_token_ids has 5 lists, target_logprobs has 9"),
        (
            axolotl_row(ROW, target_token_ids=[[1], *ROW["ids"][1:-1], []]),
            "list 0 has 1 numbers in target_token_ids and 4 in target_logprobs",
        ),
        (axolotl_row(ROW, target_token_ids=[["a"] * 4, *ROW["ids"][1:-1], []]), "target_token_ids contains"),
        (axolotl_row(ROW, target_token_ids=[[0.5] * 4, *ROW["ids"][1:-1], []]), "target_token_ids contains 0.5"),
        (axolotl_row(ROW, target_token_ids=[[10**30] * 4, *ROW["ids"][1:-1], []]), "target_token_ids contains"),
        (axolotl_row(ROW, target_logprobs=7), "target_logprobs is not"),
        (axolotl_row(ROW, input_ids="abc"), "input_ids is not"),
        (axolotl_row(ROW, input_ids=None), "input_ids is empty"),
        (
            axolotl_row(ROW, target_token_ids=ROW["ids"], target_logprobs=ROW["logprobs"]),
            "neither its first nor its last list is empty",
        ),
        (
            axolotl_row(ROW, target_token_ids=[[]] * 9, target_logprobs=[[]] * 9),
            "both its first and its last list are empty",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_of_axolotls_is_named(row: Row, named: str, tmp_path: Path) -> None:
    found = refusal("axolotl", row, tmp_path)
    assert found.startswith("rows.jsonl, row 1: ")
    assert named in found


def test_targets_for_the_first_token_contradict_align_own(tmp_path: Path) -> None:
    assert "list 0 is not empty" in refusal("axolotl", axolotl_row(ROW), tmp_path, align="own")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": [1] * 10}, "label 0 is 1 and token 1 is"),
        ({"loss_mask": [0] * 10}, "loss_mask is 0"),
        ({"loss_mask": [1] * 4}, "(4, 10)"),
        ({"log_sum_exp_logits": [math.nan] * 10}, "log_sum_exp_logits contains nan"),
        ({"log_sum_exp_logits": [-5.0] * 10}, "a log-probability is"),
        ({"topk_logits": [[0.0]] * 10}, "list 0 has 4 numbers in topk_token_ids and 1 in topk_logits"),
    ],
)
def test_a_bad_line_of_nemos_is_named(changes: Row, named: str, tmp_path: Path) -> None:
    assert named in refusal("nemo", {**nemo_row(ROW), **changes}, tmp_path)


@pytest.mark.parametrize(
    ("row", "settings", "named"),
    [
        ({"x": [1]}, {}, "tried tokens, input_ids"),
        (ROW, {"columns": {"words": "x"}}, "--columns: words"),
        (ROW, {"columns": {"tokens": "x"}}, "no column x; columns: ids, logprobs, tokens"),
        (topk_row(ROW), {"tail": "rest"}, "--tail rest contradicts"),
        ({**topk_row(ROW), "log_tail": [0.0]}, {}, "log_tail has 1 values for 9 tokens"),
        ({**topk_row(ROW), "loss_mask": [1]}, {}, "loss_mask has 1 values for 9 tokens"),
        ({**ROW, "document_starts": [0, 99]}, {}, "document starts"),
    ],
)  # fmt: skip
def test_invalid_plain_top_k_is_refused(row: Row, settings: Row, named: str, tmp_path: Path) -> None:
    assert named in refusal("topk", row, tmp_path, **settings)


def first_form(row: Row, prompt: int = 3, **changes: Any) -> Row:
    """Axolotl's first form: one column, for the tokens after the prompt; list t predicts token t."""
    lists = [
        [{"token": f"token_id:{i}", "logprob": v, "decoded": "x"} for i, v in zip(ids, values, strict=True)]
        for ids, values in zip(row["ids"], row["logprobs"], strict=True)
    ]
    found = {"input_ids": row["tokens"], "labels": [-100] * 3 + row["tokens"][3:], "logprobs": lists[prompt - 1 : -1]}
    return {**found, **changes}


@EITHER
def test_axolotls_first_form_has_one_column_of_tokens_with_their_logprob(
    ending: str, tokenizer: str, tmp_path: Path
) -> None:
    cache = made("axolotl", [first_form(row) for row in ROWS], tokenizer, tmp_path, ending, tail="rest")
    check(cache, tail=True)
    assert "list t predicts token t;" in cache.manifest.history[0].note


@EITHER
def test_axolotls_first_form_may_be_in_a_column_of_any_name_and_begin_anywhere(
    ending: str, tokenizer: str, tmp_path: Path
) -> None:
    rows = [first_form(row, prompt=1) for row in ROWS]
    # The first token has no list: it is null, as vLLM answers.
    named = [{**row, "far": [None, *row["logprobs"]], "logprobs": None} for row in rows]
    named = [{name: value for name, value in row.items() if name != "logprobs"} for row in named]
    check(made("axolotl", named, tokenizer, tmp_path, ending, columns={"logprobs": "far"}), tail=False)


@EITHER
def test_axolotls_first_form_ends_with_the_last_token_before_the_padding(
    ending: str, tokenizer: str, tmp_path: Path
) -> None:
    rows = [
        first_form(
            row,
            input_ids=[*row["tokens"], 0, 0],
            labels=[-100] * 3 + row["tokens"][3:] + [-100] * 2,
            attention_mask=[1] * len(row["tokens"]) + [0] * 2,
        )
        for row in ROWS
    ]
    check(made("axolotl", rows, tokenizer, tmp_path, ending), tail=False)


def test_axolotls_first_form_may_predict_the_next_tokens(tokenizer: str, tmp_path: Path) -> None:
    rows = [first_form(row) for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl", align="next"), tail=False)


def test_axolotls_first_form_without_labels_trains_on_tokens_with_targets(tokenizer: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in first_form(row).items() if name != "labels"} for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl"), tail=False)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"logprobs": [[{"token": "Hello", "logprob": -1.0}]]}, "the token 'Hello', expected token_id:N"),
        ({"logprobs": [[{"token": "token_id:1"}]]}, "logprobs contains"),
        ({"logprobs": [[{"token": "token_id:1", "logprob": "x"}]]}, "logprobs contains"),
        ({"logprobs": [-1.0, -2.0]}, "logprobs is not"),
        ({"logprobs": [[]] * 4}, "targets for 4 tokens, but the row has 3"),
        ({"logprobs": [[{"token": "token_id:99", "logprob": -1.0}]]}, "99"),
    ],
)
def test_an_invalid_row_of_axolotls_first_form_is_refused(row: Row, named: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"input_ids": [1, 2, 3], **row}])
    with pytest.raises(ConfigError, match=f"row 1: .*{named}"):
        surveyed(N_IDS, source_format="axolotl", source=str(source))


def test_axolotls_first_form_needs_tokens_and_has_one_role(tmp_path: Path) -> None:
    row = {"messages_combined": [{"role": "user", "content": "hi"}], "logprobs": []}
    source = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ConfigError, match=r"rows\.jsonl has text but no input_ids"):
        surveyed(N_IDS, source_format="axolotl", source=str(source))
    with pytest.raises(ConfigError, match="--columns: ids"):
        surveyed(N_IDS, source_format="axolotl", source=str(source), columns={"ids": "x"})


def test_objects_instead_of_lists_of_numbers_are_refused(tmp_path: Path) -> None:
    rows = [{"tokens": [1, 2], "ids": [[1]], "logprobs": [[{"token": "token_id:1", "logprob": -1.0}]]}]
    source = write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(ConfigError, match=r"rows\.parquet, row 1: logprobs contains"):
        surveyed(N_IDS, source_format="topk", source=str(source))
