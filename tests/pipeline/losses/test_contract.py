"""Every loss of the table keeps the contract, is documented, and a new one needs an entry and its function alone."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from kdpipe.pipeline.losses.exactness import label
from kdpipe.pipeline.losses.terms import LossOptions, factor, function_of
from kdpipe.schemas.losses import HIDDEN_LOSSES, LOGIT_LOSSES, LOSSES
from kdpipe.schemas.target_kinds import TopK
from kdpipe.schemas.targets import TargetSpec
from kdpipe.schemas.train_settings import LossSettings, LossWeights
from support import hidden_twins, loss_twins
from support.loss_contract import CHECKS, HELLINGER, docs_row, hellinger_twin
from support.source import ROOT

PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_every_logit_loss_keeps_the_contract(name: str, check: Callable[[str], None]) -> None:
    check(name)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_function_a_weight_a_factor_and_a_twin(name: str) -> None:
    path = LOSSES[name].function
    assert path is None or callable(function_of(path))
    assert LossWeights.model_fields[name].default is None
    assert factor(name, 1.0) == 1.0
    assert path is None or name in (hidden_twins.TWINS if name in HIDDEN_LOSSES else loss_twins.TWINS)


def test_the_settings_take_every_loss_and_no_other() -> None:
    assert tuple(LossWeights.model_fields) == tuple(LOSSES)
    for name, loss in LOGIT_LOSSES.items():
        if loss.compares != "label":
            assert LossSettings.model_validate({"logit": name}).logit == name
    for name in ("ce", "cosine", "hellinger"):
        with pytest.raises(ValueError, match="logit"):
            LossSettings.model_validate({"logit": name})


def test_the_tables_of_the_page_are_those_of_the_losses() -> None:
    rows = re.findall(r"^\| `(?:" + "|".join(LOSSES) + r")` \| .*$", PAGE.partition("### ")[0], re.MULTILINE)
    assert rows == [docs_row(name, loss) for name, loss in LOSSES.items()]


def test_a_new_loss_is_one_entry_and_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGIT_LOSSES, "hellinger", HELLINGER)  # type: ignore[arg-type]
    monkeypatch.setitem(LOSSES, "hellinger", HELLINGER)  # type: ignore[arg-type]
    monkeypatch.setitem(loss_twins.TWINS, "hellinger", hellinger_twin)
    for check in CHECKS:
        check("hellinger")
    assert factor("hellinger", 3.0) == 9.0
    spec = TargetSpec(keep=TopK(k=8))
    assert label("hellinger", spec, 1.0, LossOptions()) == "hellinger_bound"
    assert label("hellinger", spec, 2.0, LossOptions()) == "hellinger_coarse"


def test_the_settings_follow_from_the_table() -> None:
    code = (
        "from kdpipe.schemas.losses import LOGIT_LOSSES, LOSSES\n"
        "LOGIT_LOSSES['new'] = LOSSES['new'] = LOGIT_LOSSES['jsd']\n"
        "from kdpipe.schemas.train_settings import LossSettings\n"
        "print(LossSettings.model_validate({'logit': 'new', 'weights': {'new': 2.0}}).weights.new)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "2.0\n"
