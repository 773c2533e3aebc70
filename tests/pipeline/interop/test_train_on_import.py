"""Training on an imported cache, from JSON lines to a falling loss."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import Incompatible
from support import stage_two
from support.interop_sources import imported, word_tokenizer, write_rows

N_IDS = 24


def lesson(start: int, n: int = 24) -> dict[str, Any]:
    """The teacher predicts the token plus five, or plus six; rows have axolotl's columns."""
    tokens = [(start + 5 * t) % (N_IDS - 1) + 1 for t in range(n)]
    ids = [[(start + 5 * (t + 1)) % (N_IDS - 1) + 1, (start + 5 * (t + 1) + 1) % (N_IDS - 1) + 1] for t in range(n - 1)]
    return {
        "input_ids": tokens,
        "target_token_ids": [*ids, []],
        "target_logprobs": [*([math.log(0.7), math.log(0.25)] for _ in ids), []],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lessons")
    words = word_tokenizer(folder / "words", N_IDS)
    source = write_rows(folder / "rows.jsonl", [lesson(start) for start in range(23)])
    for tail in ("rest", "unknown"):
        imported(
            source_format="axolotl", source=str(source), tokenizer=str(words), out=str(folder / tail), tail=tail,
            val_fraction=0.2, pack=False,
        )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("tail", "logit"), [("rest", "forward_kl"), ("unknown", "renormalized")])
def test_a_student_is_trained_on_an_imported_cache(tail: str, logit: str, place: Path) -> None:
    settings = stage_two.settings_for(
        place, out=f"run-{tail}", kept=tail, losses={"logit": logit}, run={"max_steps": 60}, optimizer={"lr": 1e-2}
    )
    assert verify_cache(str(place / tail), "deep").ok
    stage_two.run(settings)
    lines = (place / f"run-{tail}" / "metrics.jsonl").read_text().splitlines()
    measured = [each for line in lines if "cross_entropy" in (each := json.loads(line).get("evaluation") or {})]
    assert measured, lines[:3]
    first, last = measured[0]["cross_entropy"], measured[-1]["cross_entropy"]
    # Everything that can be known of the next token is 0.36 nats: log(1 / 0.7); a student that knows nothing has 3.2.
    assert first > 1.5
    assert last < 0.8


def test_a_loss_that_needs_the_tail_is_refused_if_the_tail_is_unknown(place: Path) -> None:
    settings = stage_two.settings_for(place, out="run-refused", kept="unknown", losses={"logit": "forward_kl"})
    with pytest.raises(Incompatible, match="how much probability mass") as refused:
        stage_two.run(settings)
    assert "losses.logit=renormalized" in str(refused.value.hint)
