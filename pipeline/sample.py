"""`kdpipe sample`: prompts continued by a model, or by several, each with the same seed.

In: a `SampleRequest`. Out: a `SampleReport`. Models are loaded one after the other, so that only one is in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.evaluation.stored import base_model_of, is_run, load_settings, student_folder
from kdpipe.pipeline.generation.cache_prompts import CachePrompt, cache_prompts, has_ranges
from kdpipe.pipeline.models.folders import check_model_name
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.model import ModelSettings
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running
from kdpipe.schemas.sample_report import Continuation, SampledModel, SampleReport, SamplingSettings, TextSample

if TYPE_CHECKING:
    from kdpipe.pipeline.generation.text_generator import TextGenerator

# Prompts from the validation split where none is given.
N_PROMPTS = 3
INSIDE = "the cache holds out ranges of long documents for validation: a prompt may start inside a document"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A run folder (for its final/), a model folder, or a Hub id, and the devices to load it on."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    devices: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Without `prompts` the first model must be a run, whose validation documents are continued."""

    models: tuple[ModelRequest, ...]
    settings: SamplingSettings
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text, and the validation document that it starts, whose special tokens it has."""

    text: str
    document: int | None = None

    def ids(self, generator: "TextGenerator") -> list[int]:
        return generator.encode(self.text, add_special_tokens=self.document is None)


def sample(request: SampleRequest, progress: Progress) -> SampleReport:
    for model in request.models:
        check_model(model)
    if not request.prompts:
        _check_is_run(request.models[0].name)
    progress.message(f"loading {', '.join(model.name for model in request.models)}")
    prompts = [Prompt(text=text) for text in request.prompts]
    notes: tuple[str, ...] = ()
    if not prompts:
        prompts, notes = _validation_prompts(request.models[0].name)
    models, columns = [], []
    for model in request.models:
        with loaded_model(model, progress) as (generator, record):
            models.append(record)
            columns.append(_continuations(generator, model.name, prompts, request.settings, progress))
    return SampleReport(
        models=tuple(models),
        settings=request.settings,
        samples=tuple(
            TextSample(prompt=prompt.text, document=prompt.document, continuations=continuations)
            for prompt, continuations in zip(prompts, zip(*columns, strict=True), strict=True)
        ),
        notes=notes,
    )


def check_model(request: ModelRequest) -> tuple[str, ModelSettings]:
    """The folder or Hub id of a model, and the weights to load: its own, or its adapter's base; missing: an error."""
    folder = student_folder(request.name)
    base = base_model_of(folder)
    check_model_name(base.name or "")
    return folder, base


@contextmanager
def loaded_model(request: ModelRequest, progress: Progress) -> Iterator[tuple["TextGenerator", SampledModel]]:
    """A model with its tokenizer, in memory until the end of the block."""
    folder, base = check_model(request)
    with running(progress, Task(name="load torch")):
        from kdpipe.pipeline.generation.text_generator import TextGenerator
        from kdpipe.pipeline.models import devices
        from kdpipe.pipeline.models.model_info import read_model_info
        from kdpipe.pipeline.students import lora
        from kdpipe.pipeline.teachers.load_teacher import load_weights
        from kdpipe.pipeline.tokenizers.tokenizer import has_tokenizer, load_fast
    settings = TeacherSettings(
        name=base.name, revision=request.revision or base.revision, trust_remote_code=request.trust_remote_code
    )
    info = read_model_info(settings)
    if not has_tokenizer(folder, request.revision):
        raise ConfigError(f"{request.name} has no tokenizer", hint="copy the files of its tokenizer into its folder")
    tokenizer = load_fast(folder, request.revision, request.trust_remote_code)
    on = devices.choose(request.devices)
    with running(progress, Task(name=f"load {Path(request.name).name}")):
        model: Any = load_weights(settings, info, on)[0]
        if base.name != folder:
            model = lora.merged(Path(folder), model)
    record = SampledModel(
        name=request.name,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=str(on[0]),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    yield TextGenerator(model, tokenizer, info.max_positions), record


def _continuations(
    generator: "TextGenerator", name: str, prompts: Sequence[Prompt], settings: SamplingSettings, progress: Progress
) -> list[Continuation]:
    with running(progress, Task(name="sample", unit="prompts", total=len(prompts))):
        generated = generator.generate(
            [prompt.ids(generator) for prompt in prompts],
            settings,
            done=lambda n_done: progress.update(TaskUpdate(done=n_done)),
        )
    return [Continuation(model=name, text=part.text, n_tokens=len(part.ids), ended=part.ended) for part in generated]


def _check_is_run(name: str) -> None:
    if not is_run(Path(name).expanduser()):
        raise ConfigError(f"no prompt given, and {name} is not a run", hint="give --prompt TEXT or --prompts FILE")


def _validation_prompts(name: str) -> tuple[list[Prompt], tuple[str, ...]]:
    """The starts of validation documents of a run's cache, and a note if documents may be ranges of longer ones."""
    folder = Path(name).expanduser()
    path = str(load_settings(folder)["cache.path"])
    cache = open_cache(path, allow_partial=True)
    prompts: list[CachePrompt] = []
    if "validation" in cache.split_names:
        prompts = cache_prompts(cache.split("validation"), N_PROMPTS)
    from kdpipe.pipeline.tokenizers.cached_tokenizer import load_cached_tokenizer

    tokenizer = load_cached_tokenizer(cache)[1]
    if not prompts or tokenizer is None:
        missing = "validation documents" if not prompts else "tokenizer"
        raise ConfigError(f"the run's cache {path} has no {missing}", hint="give --prompt TEXT or --prompts FILE")
    notes = (INSIDE,) if has_ranges(cache) else ()
    texts = [str(tokenizer.fast.decode(list(prompt.ids))) for prompt in prompts]
    return [Prompt(text=text, document=prompt.document) for text, prompt in zip(texts, prompts, strict=True)], notes
