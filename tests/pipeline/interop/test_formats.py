"""Axolotl's columns, NeMo-Aligner's lines and plain top-k: the same distributions said in each way become one cache."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.errors import ConfigError
from support.foreign import Row, imported, random_rows, surveyed, word_tokenizer, write_rows

N_IDS, K = 30, 4
ROWS = random_rows(7, N_IDS, K, (9, 5, 12))
EITHER = pytest.mark.parametrize("ending", [".parquet", ".jsonl"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", N_IDS))


def axolotl(row: Row, **changes: Any) -> Row:
    """As its documentation says: list t is about token t + 1, the last is empty; three tokens are a prompt."""
    n = len(row["tokens"])
    found = {
        "input_ids": row["tokens"],
        "labels": [-100] * 3 + row["tokens"][3:],
        "attention_mask": [1] * n,
        "target_token_ids": [*row["ids"][:-1], []],
        "target_logprobs": [*row["logprobs"][:-1], []],
    }
    return {**found, **changes}


def own(row: Row) -> Row:
    """As vLLM answers: list t is about token t, the first is missing."""
    return axolotl(row, target_token_ids=[None, *row["ids"][:-1]], target_logprobs=[None, *row["logprobs"][:-1]])


def padded(row: Row) -> Row:
    """Two tokens of padding at the end, and lists of padding where there is nothing to say."""
    n = len(row["tokens"])
    nothing = [[-1e9] * K], [list(range(K))]
    return {
        "input_ids": [*row["tokens"], 0, 0],
        "labels": [*([-100] * 3), *row["tokens"][3:], -100, -100],
        "attention_mask": [1] * n + [0, 0],
        "target_logprobs": [*row["logprobs"][:-1], *nothing[0] * 3],
        "target_token_ids": [*row["ids"][:-1], *nothing[1] * 3],
    }


def nemo(row: Row) -> Row:
    """Logits less the largest, and the log of the sum over all; labels are one on; a batch's padding behind."""
    ids, values = row["ids"][:-1], row["logprobs"][:-1]
    n = len(ids)
    top = [max(each) for each in values]
    return {
        "tokens": [*row["tokens"][:-1], 1, 1],
        "labels": [*row["tokens"][1:], 1, 1],
        "loss_mask": [0.0, 0.0, *([1.0] * (n - 2)), 0.0, 0.0],
        "topk_token_ids": [*ids, list(range(K)), list(range(K))],
        "topk_logits": [[v - t for v in each] for each, t in zip(values, top, strict=True)]
        + [[0.0, -1.0, -2.0, -3.0]] * 2,
        "log_sum_exp_logits": [*(-t for t in top), 1.0, 1.0],
        "index": 5,
        "metadata": "of no use",
    }


def plain(row: Row) -> Row:
    n = len(row["tokens"])
    tails = [math.log1p(-math.fsum(map(math.exp, each))) for each in row["logprobs"]]
    return {**row, "loss_mask": [False] * 2 + [True] * (n - 2), "log_tail": tails}


def made(form: str, rows: list[Row], tokenizer: str, folder: Path, ending: str, **settings: Any) -> Cache:
    source = write_rows(folder / f"rows{ending}", rows)
    report = imported(
        source_format=form, source=str(source), tokenizer=tokenizer, out=str(folder / "cache"), pack=False, **settings
    )
    assert report.documents == len(rows)
    return open_cache(folder / "cache")


def check(cache: Cache, *, tail: bool) -> None:
    """Rows from the third on, each with the distribution of the token behind it."""
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
@pytest.mark.parametrize("spelling", [axolotl, own, padded], ids=lambda each: each.__name__)
def test_axolotls_columns_lie_in_either_way(spelling: Any, ending: str, tokenizer: str, tmp_path: Path) -> None:
    cache = made("axolotl", [spelling(row) for row in ROWS], tokenizer, tmp_path, ending)
    check(cache, tail=False)
    about = "list t is about token t;" if spelling is own else "list t is about token t + 1;"
    assert about in cache.manifest.history[0].note
    assert cache.manifest.data.train_on == "assistant"


def test_a_tail_is_what_is_left_when_that_is_said(tokenizer: str, tmp_path: Path) -> None:
    check(made("axolotl", [axolotl(row) for row in ROWS], tokenizer, tmp_path, ".parquet", tail="rest"), tail=True)


def test_without_labels_everything_is_learnt_and_that_is_said(tokenizer: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in axolotl(row).items() if name[0] in "it"} for row in ROWS]
    cache = made("axolotl", rows, tokenizer, tmp_path, ".jsonl")
    assert all(found.loss_mask.tolist() == [True] * (len(found) - 1) + [False] for found in cache)
    assert "which tokens are learnt (all are)" in cache.manifest.history[0].note
    assert cache.manifest.data.train_on == "all"


def test_lists_one_short_of_the_tokens_lie_in_one_way_only(tokenizer: str, tmp_path: Path) -> None:
    rows = [axolotl(row, target_token_ids=row["ids"][:-1], target_logprobs=row["logprobs"][:-1]) for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl"), tail=False)


@EITHER
def test_nemo_aligners_logits_become_log_probabilities_with_their_tail(
    ending: str, tokenizer: str, tmp_path: Path
) -> None:
    rows = [nemo(row) for row in ROWS]
    check(made("nemo", rows, tokenizer, tmp_path, ending), tail=True)


def test_nemo_aligners_tail_may_be_forgotten(tokenizer: str, tmp_path: Path) -> None:
    check(made("nemo", [nemo(row) for row in ROWS], tokenizer, tmp_path, ".jsonl", tail="unknown"), tail=False)


@EITHER
def test_plain_top_k_has_its_own_tails(ending: str, tokenizer: str, tmp_path: Path) -> None:
    cache = made("topk", [plain(row) for row in ROWS], tokenizer, tmp_path, ending)
    check(cache, tail=True)
    assert "tail stated by the source" in cache.manifest.history[0].note


def test_plain_top_k_has_columns_of_any_name(tokenizer: str, tmp_path: Path) -> None:
    names = {"tokens": "t", "ids": "i", "logprobs": "p", "loss_mask": "m"}
    rows = [{name: plain(row)[role] for role, name in names.items()} for row in ROWS]
    check(made("topk", rows, tokenizer, tmp_path, ".parquet", columns=names, tail="rest"), tail=True)


def test_plain_top_k_may_be_about_its_own_tokens(tokenizer: str, tmp_path: Path) -> None:
    rows = []
    for row in map(plain, ROWS):
        moved = {name: [first, *row[name][:-1]] for name, first in (("ids", []), ("logprobs", []), ("log_tail", 0.0))}
        rows.append({"tokens": row["tokens"], "loss_mask": [False, *row["loss_mask"][:-1]], **moved})
    check(made("topk", rows, tokenizer, tmp_path, ".jsonl", align="own"), tail=True)


def test_documents_that_share_a_row_stay_apart(tokenizer: str, tmp_path: Path) -> None:
    rows = [plain(row) for row in ROWS]
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
    ("row", "said"),
    [
        ({"input_ids": [1]}, "row 1: the column target_logprobs is missing: there are input_ids"),
        (axolotl(ROW, labels=[5] * 9), "label 0 is 5 and token 0 is"),
        (axolotl(ROW, labels=[-100]), "it has 1 labels for 9 tokens"),
        (axolotl(ROW, attention_mask=[0] + [1] * 8), "attention_mask must be 1 for each token and then 0 for padding"),
        (axolotl(ROW, attention_mask=[1] * 8 + [2]), "attention_mask holds 2.0, 0 and 1 were expected"),
        (axolotl(ROW, attention_mask=[1] * 8), "attention_mask must be 1 for each token"),
        (axolotl(ROW, target_token_ids=ROW["ids"][:5]), "target_token_ids has 5 lists, target_logprobs has 9"),
        (
            axolotl(ROW, target_token_ids=[[1], *ROW["ids"][1:-1], []]),
            "list 0 of target_token_ids has 1 numbers, that of target_logprobs has 4",
        ),
        (axolotl(ROW, target_token_ids=[["a"] * 4, *ROW["ids"][1:-1], []]), "target_token_ids holds what is no number"),
        (axolotl(ROW, target_token_ids=[[0.5] * 4, *ROW["ids"][1:-1], []]), "target_token_ids holds 0.5, whole"),
        (axolotl(ROW, target_token_ids=[[10**30] * 4, *ROW["ids"][1:-1], []]), "target_token_ids holds"),
        (axolotl(ROW, target_logprobs=7), "target_logprobs is no list of lists of numbers"),
        (axolotl(ROW, input_ids="abc"), "input_ids is no list of numbers"),
        (axolotl(ROW, input_ids=None), "input_ids is empty"),
        (
            axolotl(ROW, target_token_ids=ROW["ids"], target_logprobs=ROW["logprobs"]),
            "neither its first nor its last list is empty, so whether list t is about token t or t + 1 cannot be seen"
            " | say --align next (list t is about token t + 1) or --align own",
        ),
        (
            axolotl(ROW, target_token_ids=[[]] * 9, target_logprobs=[[]] * 9),
            "both its first and its last list are empty",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_of_axolotls_is_named(row: Row, said: str, tmp_path: Path) -> None:
    found = refusal("axolotl", row, tmp_path)
    assert found.startswith("rows.jsonl, row 1: ")
    assert said in found


def test_a_first_token_with_targets_contradicts_that_lists_are_about_their_own(tmp_path: Path) -> None:
    assert "its first token has targets, and nothing stands before it" in refusal(
        "axolotl", axolotl(ROW), tmp_path, align="own"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [1] * 10}, "label 0 is 1 and token 1 is"),
        ({"loss_mask": [0] * 10}, "nothing of it is learnt: its loss_mask is 0 throughout"),
        ({"loss_mask": [1] * 4}, "its columns have 4, 10 entries: one for each token is due"),
        ({"log_sum_exp_logits": [math.nan] * 10}, "log_sum_exp_logits holds nan"),
        ({"log_sum_exp_logits": [-5.0] * 10}, "a log-probability is"),
        ({"topk_logits": [[0.0]] * 10}, "list 0 of topk_token_ids has 4 numbers, that of topk_logits has 1"),
    ],
)
def test_a_bad_line_of_nemos_is_named(changes: Row, said: str, tmp_path: Path) -> None:
    assert said in refusal("nemo", {**nemo(ROW), **changes}, tmp_path)


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({"x": [1]}, {}, "no column holds the tokens: looked for tokens, input_ids | say which does with --columns"),
        (ROW, {"columns": {"words": "x"}}, "--columns names words, which is no role | roles are tokens, ids, logprobs"),
        (ROW, {"columns": {"tokens": "x"}}, "the column x is missing: there are ids, logprobs, tokens"),
        (plain(ROW), {"tail": "rest"}, "--tail rest: the source has its own tails, in log_tail"),
        ({**plain(ROW), "log_tail": [0.0]}, {}, "it has 1 tails for 9 tokens"),
        ({**plain(ROW), "loss_mask": [1]}, {}, "it has 1 truth values for 9 tokens"),
        ({**ROW, "document_starts": [0, 99]}, {}, "the starts of its documents must ascend from 0 and lie below 9"),
        (ROW, {"codec": "x.yaml"}, "--codec says nothing of --from topk | leave it out: it is for distillkit"),
    ],
)  # fmt: skip
def test_plain_top_k_that_is_wrong_is_refused(row: Row, settings: Row, said: str, tmp_path: Path) -> None:
    assert said in refusal("topk", row, tmp_path, **settings)


def test_an_option_of_another_format_is_refused(tmp_path: Path) -> None:
    assert "--align says nothing of --from nemo" in refusal("nemo", nemo(ROW), tmp_path, align="own")
    assert "--columns says nothing of --from nemo" in refusal("nemo", nemo(ROW), tmp_path, columns={"a": "b"})


def first_form(row: Row, prompt: int = 3, **changes: Any) -> Row:
    """Axolotl's first form: one column, for the tokens behind the prompt, list j about its own token."""
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
    assert "list t is about token t;" in cache.manifest.history[0].note


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


def test_axolotls_first_form_may_be_about_the_tokens_behind(tokenizer: str, tmp_path: Path) -> None:
    rows = [first_form(row) for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl", align="next"), tail=False)


def test_axolotls_first_form_without_labels_learns_what_it_has_targets_for(tokenizer: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in first_form(row).items() if name != "labels"} for row in ROWS]
    check(made("axolotl", rows, tokenizer, tmp_path, ".jsonl"), tail=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"logprobs": [[{"token": "Hello", "logprob": -1.0}]]}, "logprobs names the token 'Hello', token_id:N was exp"),
        ({"logprobs": [[{"token": "token_id:1"}]]}, "logprobs holds what is no token with its logprob"),
        ({"logprobs": [[{"token": "token_id:1", "logprob": "x"}]]}, "logprobs holds what is no number"),
        ({"logprobs": [-1.0, -2.0]}, "logprobs is no list of lists of tokens with their logprob"),
        ({"logprobs": [[]] * 4}, "it has targets for 4 tokens of 3"),
        ({"logprobs": [[{"token": "token_id:99", "logprob": -1.0}]]}, "99"),
    ],
)
def test_axolotls_first_form_is_refused_where_it_is_none(row: Row, said: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"input_ids": [1, 2, 3], **row}])
    with pytest.raises(ConfigError, match=said) as told:
        surveyed(N_IDS, source_format="axolotl", source=str(source))
    assert "row 1: " in told.value.message


def test_axolotls_first_form_needs_its_tokens_and_knows_one_role(tmp_path: Path) -> None:
    row = {"messages_combined": [{"role": "user", "content": "hi"}], "logprobs": []}
    source = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ConfigError, match=r"rows\.jsonl has texts and no input_ids, and nothing says how") as told:
        surveyed(N_IDS, source_format="axolotl", source=str(source))
    assert told.value.hint == "add the tokens that the teacher was asked about as a column input_ids"
    with pytest.raises(ConfigError, match="--columns names ids, which is no role here") as told:
        surveyed(N_IDS, source_format="axolotl", source=str(source), columns={"ids": "x"})
    assert told.value.hint == "--from axolotl has one: logprobs"


def test_entries_are_no_lists_of_numbers(tmp_path: Path) -> None:
    rows = [{"tokens": [1, 2], "ids": [[1]], "logprobs": [[{"token": "token_id:1", "logprob": -1.0}]]}]
    source = write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(ConfigError, match="logprobs holds tokens with their logprob, lists of numbers were expected"):
        surveyed(N_IDS, source_format="topk", source=str(source))
