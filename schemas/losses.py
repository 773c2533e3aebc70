"""`LOSSES`: every loss, what it compares, what it needs from a cache, and the function that computes it.

In: nothing but the standard library. Out: a record per name. The weights in the settings, the names in the logs and the
tables of docs/losses.md follow from them: a new loss is one entry and the function that it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

LOSSES_PACKAGE: Final = "kdpipe.pipeline.losses"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitLoss:
    """A loss on the student's logits; `function` takes log p, log q and `LossOptions`, and gives one number per row
    (cross-entropy on the label needs none).

    `compares`: the label alone, the teacher renormalized over its exact ids, or exact ids and one bin for the rest.
    `draws` makes a loss on bins unbiased at the temperature of the draws: for KL(p, q) their weights are enough, for
    KL(p, m), m = skew p + (1 - skew) q, each draw needs its own p. Other losses on bins are lower bounds.
    """

    formula: str
    when: str
    compares: Literal["label", "exact_ids", "bins"]
    function: str | None
    draws: Literal["unused", "unbiased", "unbiased_with_values"] = "unused"
    temperature_power: Literal[0, 1, 2]

    def factor(self, temperature: float) -> float:
        """Multiplies the loss so that its gradient does not shrink as the temperature grows."""
        return float(temperature**self.temperature_power)


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenLoss:
    """A loss on hidden states; `mapped` compares the student's states behind a trained linear map.

    `function` takes the states of student and teacher: of a whole batch for `rows`, of one group for `groups`; for
    pairs the anchors or the bounds of the groups are a third argument. For `mixtures` it takes the router.
    """

    formula: str
    over: Literal["rows", "groups", "anchor_pairs", "document_pairs", "mixtures"]
    function: str
    mapped: bool = False

    @property
    def compares_rows(self) -> bool:
        """Whether it needs cached states of single rows."""
        return self.over in ("rows", "groups", "anchor_pairs")

    def factor(self, temperature: float) -> float:
        """Always 1."""
        return 1.0


LOGIT_LOSSES: Final[Mapping[str, LogitLoss]] = {
    "ce": LogitLoss(
        formula="-log q(label), at T = 1",
        when="always a small share: `--alpha 0.1`; alone with `--mode output`",
        compares="label",
        function=None,
        temperature_power=0,
    ),
    "forward_kl": LogitLoss(
        formula="sum p log(p / q)",
        when="the default; the student covers the whole distribution of the teacher",
        compares="bins",
        function=f"{LOSSES_PACKAGE}.divergences:forward_kl",
        draws="unbiased",
        temperature_power=2,
    ),
    "skew_kl": LogitLoss(
        formula="sum p log(p / m), skew 0.1",
        when="when the student gives almost no probability to ids of the teacher: bounded by log(1 / skew)",
        compares="bins",
        function=f"{LOSSES_PACKAGE}.divergences:skew_kl",
        draws="unbiased_with_values",
        temperature_power=2,
    ),
    "reverse_kl": LogitLoss(
        formula="sum q log(q / p)",
        when="mode-seeking: a small student that should do a few things well rather than everything a little",
        compares="bins",
        function=f"{LOSSES_PACKAGE}.divergences:reverse_kl",
        temperature_power=2,
    ),
    "jsd": LogitLoss(
        formula="beta KL(p, m) + (1 - beta) KL(q, m)",
        when="between the two above; bounded",
        compares="bins",
        function=f"{LOSSES_PACKAGE}.divergences:jsd",
        temperature_power=2,
    ),
    "total_variation": LogitLoss(
        formula="sum of abs(p - q) / 2",
        when="when single wrong targets must have little influence; its gradient jumps at p = q",
        compares="bins",
        function=f"{LOSSES_PACKAGE}.divergences:total_variation",
        temperature_power=1,
    ),
    "renormalized": LogitLoss(
        formula="sum t log(t / q), t = p_T / its sum over exact ids",
        when="to compare with other tools, or for imports with an unknown tail; makes students overconfident",
        compares="exact_ids",
        function=f"{LOSSES_PACKAGE}.divergences:forward_kl",
        temperature_power=2,
    ),
}

HIDDEN_LOSSES: Final[Mapping[str, HiddenLoss]] = {
    "cosine": HiddenLoss(
        formula="1 - cos(Mx, y)", over="rows", function=f"{LOSSES_PACKAGE}.hidden.vectors:cosine", mapped=True
    ),
    "correlation": HiddenLoss(
        formula="1 - r, with Pearson's r over the rows of a group, averaged over dimensions (as in Flex-KD)",
        over="groups",
        function=f"{LOSSES_PACKAGE}.hidden.vectors:correlation",
        mapped=True,
    ),
    "mse": HiddenLoss(
        formula="mean over dimensions of (Mx - y)^2: the error as a share of the teacher's own square",
        over="rows",
        function=f"{LOSSES_PACKAGE}.hidden.vectors:mse",
        mapped=True,
    ),
    "position_relations": HiddenLoss(
        formula="(cos(x_i, x_j) - cos(y_i, y_j))^2",
        over="anchor_pairs",
        function=f"{LOSSES_PACKAGE}.hidden.relations:position_relations",
    ),
    "document_relations": HiddenLoss(
        formula="the same for a document's mean state, over all its tokens, and its pooled vector",
        over="document_pairs",
        function=f"{LOSSES_PACKAGE}.hidden.relations:document_relations",
    ),
    "cka": HiddenLoss(
        formula="1 - linear CKA of all rows of a group, columns centered",
        over="groups",
        function=f"{LOSSES_PACKAGE}.hidden.vectors:linear_cka",
    ),
    "router_balance": HiddenLoss(
        formula="KL(mean mixture, uniform) of the router",
        over="mixtures",
        function=f"{LOSSES_PACKAGE}.hidden.router:Router.balance",
    ),
}

LOSSES: Final[Mapping[str, LogitLoss | HiddenLoss]] = {**LOGIT_LOSSES, **HIDDEN_LOSSES}
