"""`TextGenerator`: continues prompts with a model, in batches.

In: a transformers model, its tokenizer, prompts. Out: the continuations. Draws come from a generator per prompt: a text
depends on the seed and the number of its prompt, not on its batch, and the global random state is neither read nor
changed.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria

from kdpipe.pipeline.models.head import TOLERANCE
from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.pipeline.models.probe import probe_ids
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.sample_report import SamplingSettings

MAX_BATCH = 16
# Lengths of the two prompts that probe whether padding changes the logits.
PROBED = (9, 5)
INCOMPLETE = "\ufffd"  # the text of ids that are a part of a character
# The newest tokens, which a stop rule is applied to after each one.
RULE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """New ids without the stop token, and their text; `ended`: by a stop token, not by the limit.

    Text after the end that a stop rule found is not removed.
    """

    ids: tuple[int, ...]
    text: str
    ended: bool


StopRule = Callable[[str], bool]


@final
class TextGenerator:
    """A model with its tokenizer; `stops` are the ids that end a text, `max_positions` the model's limit, if any."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        max_positions: int | None,
        more_stops: Sequence[int] = (),
    ) -> None:
        if not callable(getattr(model, "generate", None)):
            raise ConfigError("the model cannot generate text: transformers has no generate() for it")
        self.model, self.tokenizer, self.max_positions = model, tokenizer, max_positions
        self._vocabulary_size = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.stops = sorted({*_stop_ids(model, tokenizer), *more_stops})
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
        self._pads: bool | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a prompt, with a start token where the tokenizer adds one, and without a stop token at its end."""
        ids: list[int] = list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
        return ids[:-1] if add_special_tokens and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def decode(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text of ids after a prompt, with the space between the two."""
        before, whole = (self._decoded(part) for part in (prompt, [*prompt, *ids]))
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        batch_size: int = MAX_BATCH,
        stop_rule: StopRule | None = None,
        show: Callable[[str], None] | None = None,
        done: Callable[[int], None] = lambda n_done: None,
    ) -> list[Generated]:
        """Continue prompts; `show` receives the text of a single prompt in pieces, `done` the prompts done."""
        self._check(prompts, settings)
        size = batch_size if len(prompts) > 1 and self._accepts_padding() else 1
        # Prompts of similar length share a batch.
        by_length = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        results: dict[int, Generated] = {}
        for begin in range(0, len(prompts), size):
            numbers = by_length[begin : begin + size]
            generated = self._batch({n: prompts[n] for n in numbers}, settings, stop_rule, show)
            results |= dict(zip(numbers, generated, strict=True))
            done(len(results))
        return [results[number] for number in range(len(prompts))]

    def _check(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> None:
        for ids in prompts:
            if not ids:
                raise ConfigError("a prompt has no tokens", hint="give a prompt with some text")
            n_tokens = len(ids) + settings.max_new_tokens
            if self.max_positions is not None and n_tokens > self.max_positions:
                raise ConfigError(
                    f"the model has {self.max_positions:,} positions; the prompt has {len(ids):,} tokens and "
                    f"{settings.max_new_tokens:,} new ones were requested",
                    hint="shorten the prompt, or give a smaller --max-new-tokens",
                )

    def _batch(
        self,
        prompts: dict[int, Sequence[int]],
        settings: SamplingSettings,
        stop_rule: StopRule | None,
        show: Callable[[str], None] | None,
    ) -> list[Generated]:
        longest = max(map(len, prompts.values()))
        rules = [] if stop_rule is None else [_TextRule(self, longest, stop_rule)]
        ids_BT = self._run(
            list(prompts.values()),
            max_new_tokens=settings.max_new_tokens,
            logits_processor=[_NextToken(settings, list(prompts), self._vocabulary_size)],
            stopping_criteria=rules,
            streamer=None if show is None else _Stream(self, show),
        )
        rows = [row[longest:] for row in ids_BT.tolist()]
        return [self._generated(prompt, row) for prompt, row in zip(prompts.values(), rows, strict=True)]

    def _generated(self, prompt: Sequence[int], row: list[int]) -> Generated:
        # Rows that ended before others of the batch are filled with stop tokens.
        end = next((place for place, token in enumerate(row) if token in self.stops), None)
        return Generated(ids=tuple(row[:end]), text=self.decode(prompt, row[:end]), ended=end is not None)

    def _run(self, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
        """transformers' generate for a batch, padded on the left."""
        device, longest = next(self.model.parameters()).device, max(map(len, prompts))
        ids_BT = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(prompts):
            ids_BT[row, longest - len(ids) :] = torch.tensor(ids)
            mask_BT[row, longest - len(ids) :] = 1
        configuration: Any = transformers.GenerationConfig
        chosen = configuration(
            do_sample=False, eos_token_id=self.stops or None, pad_token_id=self.stops[0] if self.stops else 0
        )
        options |= {"attention_mask": mask_BT.to(device)} if self._takes_mask else {}
        with _no_defaults(self.model), torch.no_grad():
            return self.model.generate(input_ids=ids_BT.to(device), generation_config=chosen, **options)

    def _accepts_padding(self) -> bool:
        """Whether the logits of a prompt are the same in a padded batch and alone; probed once."""
        if not self._takes_mask:
            return False
        if self._pads is None:
            longest, length = PROBED
            ids = probe_ids(longest, self._vocabulary_size, torch.device("cpu")).tolist()
            options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
            try:
                padded, alone = (
                    self._run(rows, **options).logits[0][-1] for rows in ((ids, ids[:length]), (ids[:length],))
                )
                self._pads = bool((padded - alone).abs().max() <= TOLERANCE[alone.dtype] * alone.abs().max())
            except (TypeError, ValueError, RuntimeError) as error:  # of a model's own code
                if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                    raise
                self._pads = False
        return self._pads

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _stop_ids(model: Any, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for ids in (tokenizer.eos_token_id, stated):
        if ids is not None:
            yield from [ids] if isinstance(ids, int) else ids


@contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """Replace the model's own generation settings: transformers fills in what a call leaves open."""
    configuration: Any = transformers.GenerationConfig
    own, model.generation_config = model.generation_config, configuration()
    try:
        yield
    finally:
        model.generation_config = own


@final
class _NextToken(LogitsProcessor):
    """Makes the most probable token that of a draw: softmax(z / T), cut to top-p, by the Gumbel-max trick."""

    def __init__(self, settings: SamplingSettings, numbers: Sequence[int], vocabulary_size: int) -> None:
        self._settings, self._vocabulary_size = settings, vocabulary_size
        self._generators = [_generator(settings.seed, number) for number in numbers]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_BV = scores.float().clone()
        # Rows beyond the tokenizer's ids are padding.
        scores_BV[:, self._vocabulary_size :] = -torch.inf
        if self._settings.temperature == 0:
            return scores_BV
        scores_BV = scores_BV / self._settings.temperature
        if self._settings.top_p < 1:
            scores_BV = _nucleus(scores_BV, self._settings.top_p)
        # On the CPU, whose generators give the same numbers on every machine.
        draws_BV = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self._generators]
        )
        return scores_BV - draws_BV.log().to(scores_BV.device)


def _nucleus(scores_BV: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most probable tokens whose probabilities add up to at least `top_p`."""
    sorted_BV, order_BV = scores_BV.softmax(dim=1).sort(dim=1, descending=True)
    drop_BV = (sorted_BV.cumsum(dim=1) - sorted_BV) >= top_p
    return scores_BV.masked_fill(torch.zeros_like(drop_BV).scatter(1, order_BV, drop_BV), -torch.inf)


def _generator(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@final
class _TextRule(StoppingCriteria):
    """Ends the rows whose new text meets a rule."""

    def __init__(self, generator: TextGenerator, n_prompt: int, rule: StopRule) -> None:
        self._generator, self._n_prompt, self._rule = generator, n_prompt, rule

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        texts = [self._generator.decode((), row[-RULE_TOKENS:]) for row in input_ids[:, self._n_prompt :].tolist()]
        return torch.tensor([self._rule(text) for text in texts], device=input_ids.device)


@final
class _Stream:
    """Receives the ids of one prompt from transformers, and shows their text in whole characters."""

    def __init__(self, generator: TextGenerator, show: Callable[[str], None]) -> None:
        self._generator, self._show = generator, show
        self._prompt: list[int] | None = None
        self._ids: list[int] = []
        self._shown = 0

    def put(self, ids: Tensor) -> None:
        """The prompt first, then each new token."""
        if self._prompt is None:
            self._prompt = ids.flatten().tolist()
            return
        self._ids += [token for token in ids.flatten().tolist() if token not in self._generator.stops]
        text = self._generator.decode(self._prompt, self._ids)
        if not text.endswith(INCOMPLETE):
            self._flush(text)

    def end(self) -> None:
        self._flush(self._generator.decode(self._prompt or (), self._ids))

    def _flush(self, text: str) -> None:
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)
