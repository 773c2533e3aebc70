"""Names that scripts use and that stay: flags, keys of JSON answers, attributes of an open cache, exit codes."""

import pytest

from kdpipe.cache import Cache, open_cache
from kdpipe.cache.format.rows import Rows
from kdpipe.schemas import errors
from kdpipe.schemas.summary import CacheSummary, EntriesSummary, FidelitySummary, PartsSummary
from kdpipe.schemas.train_report import EvalReport
from kdpipe.schemas.verify_report import Problem, VerifyReport
from support.commands import SURFACE

FLAGS = {
    "cache-teacher": "--teacher --tokenizer --data --data-split --val-data --val-fraction --limit --out --seq-len "
    "--no-pack --targets --profile --tau --top-k --top-p --draws --target-temperature --temperatures --hidden-layers "
    "--hidden-dim --for-other-tokenizers --devices --dtype --seed --shard --dry-run --json --config --set",
    "train": "--from-cache --student --out --mode --alpha --temperature --lr --epochs --max-steps --batch-size "
    "--accumulate --seed --precision --guard --lora --report-to --resume-from --dry-run --json --config --set",
    "eval": "--from-cache --student --split --tasks --json",
    "cache verify": "--level --against --json",
    "cache import": "--from --tokenizer --out",
    "cache copy": "--parts --split --without",
    "cache inspect": "--json",
}
KEYS = {
    CacheSummary: "cache_id format complete teacher tokenizer splits documents sequences rows positions parts "
    "entries_per_position bytes bytes_per_position temperatures fidelity",
    PartsSummary: "planned present",
    EntriesSummary: "mean p50 p95",
    FidelitySummary: "kl_nats total_variation kept_mass gradient_angle_degrees",
    EvalReport: "cross_entropy perplexity kl_teacher kl_teacher_estimate top1_agreement ece positions",
    VerifyReport: "ok level problems",
    Problem: "part file what do",
}
EXIT_CODES = {
    errors.KdpipeError: 1,
    errors.UsageError: 2,
    errors.ConfigError: 2,
    errors.VerificationError: 3,
    errors.Incompatible: 4,
    errors.Interrupted: 75,
}


@pytest.mark.parametrize("command", FLAGS)
def test_flags_of_a_command_stay(command: str) -> None:
    assert set(FLAGS[command].split()) <= SURFACE[command][1]


@pytest.mark.parametrize("record", KEYS)
def test_keys_of_an_answer_stay(record: type) -> None:
    assert set(KEYS[record].split()) <= record.model_fields.keys()  # type: ignore[attr-defined]  # all are records


def test_attributes_of_an_open_cache_stay() -> None:
    names = "tokens loss_mask document_starts count n_exact ids logprobs weights log_tail entropy label_logprob log_z"
    assert {*names.split(), "hidden"} <= Rows.__dataclass_fields__.keys()
    assert all(hasattr(Cache, name) for name in ("dense", "__len__", "__getitem__"))
    assert list(open_cache.__annotations__)[:2] == ["url", "split"]


@pytest.mark.parametrize("error", EXIT_CODES)
def test_exit_codes_stay(error: type[errors.KdpipeError]) -> None:
    assert error.exit_code == EXIT_CODES[error]
