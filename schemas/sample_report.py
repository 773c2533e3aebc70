"""Settings and report of `kdpipe sample`, and a line of samples.jsonl.

In: options, prompts and continuations. Out: the JSON document of `--json`, key by key.
"""

from typing import Annotated

from pydantic import Field

from kdpipe.schemas.records import Record

MaxNewTokens = Annotated[int, Field(ge=1, le=1 << 20)]


class SamplingSettings(Record):
    """How text is generated; a temperature of 0 always takes the most probable token."""

    max_new_tokens: MaxNewTokens = 64
    temperature: float = Field(default=0.7, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class SampledModel(Record):
    """A model as it was loaded."""

    name: str
    n_parameters: int
    device: str
    dtype: str


class Continuation(Record):
    """The text that a model generates after a prompt; `ended`: by a stop token, not by the limit."""

    model: str
    text: str
    n_tokens: int
    ended: bool


class TextSample(Record):
    """A prompt with a continuation by each model; `document` is its number in the validation split, if it is of one."""

    prompt: str
    document: int | None = None
    continuations: tuple[Continuation, ...]


class SampleReport(Record):
    """Prompts and their continuations, and remarks."""

    models: tuple[SampledModel, ...]
    settings: SamplingSettings
    samples: tuple[TextSample, ...]
    notes: tuple[str, ...] = ()


class RunSample(Record):
    """The start of a validation document and the text that a student in training generates after it."""

    document: int
    prompt: str
    text: str
    n_tokens: int
    ended: bool


class RunSamples(Record):
    """A line of samples.jsonl: the texts of the evaluation after a step."""

    step: int
    samples: tuple[RunSample, ...]
