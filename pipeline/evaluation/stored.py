"""Reading and writing config.yaml, evaluation.json and the results of tasks of a run, for evaluation and comparison.

In: the folder of a run. Out: its settings, its last evaluation, the folder of its student and results of tasks on it.
"""

from pathlib import Path
from typing import Any, Final

from kdpipe.cache.durable.files import replace_file, translate_os_errors
from kdpipe.pipeline.config_file import as_yaml, read_file
from kdpipe.pipeline.models.folders import ADAPTER
from kdpipe.pipeline.models.folders import FINAL as FINAL
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.model import ModelSettings
from kdpipe.schemas.records import read_record
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.strict_json import MAX_BYTES, parse
from kdpipe.schemas.train_report import Evaluation, TaskResults

CONFIG: Final = "config.yaml"
EVALUATION: Final = "evaluation.json"
# In final/, which is replaced with its student.
TASKS: Final = "tasks.json"


def save_evaluation(run: Path, evaluation: Evaluation) -> None:
    with translate_os_errors("an evaluation could not be written", run):
        replace_file(run, run / EVALUATION, evaluation.to_json())


def save_settings(run: Path, values: dict[str, Any]) -> None:
    with translate_os_errors("the settings could not be written", run):
        replace_file(run, run / CONFIG, as_yaml(values).encode())


def load_evaluation(run: Path) -> Evaluation | None:
    """A run's last evaluation, if any."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return read_record(Evaluation, file.read(MAX_BYTES + 1), str(path))


def save_tasks(run: Path, results: TaskResults) -> None:
    """Add the results of tasks to those of a run's final student."""
    known = load_tasks(run)
    merged = TaskResults(metrics=known.metrics | results.metrics, limits=known.limits | results.limits)
    with translate_os_errors("the results of tasks could not be written", run):
        replace_file(run, run / FINAL / TASKS, merged.to_json())


def load_tasks(run: Path) -> TaskResults:
    """The results of tasks on a run's final student, if any."""
    path = run / FINAL / TASKS
    return read_record(TaskResults, path.read_bytes(), str(path)) if path.is_file() else TaskResults()


def load_settings(run: Path) -> dict[str, Any]:
    """The settings of a run by dotted name."""
    if not is_run(run):
        what = "is not a run: it has no config.yaml" if run.is_dir() else "does not exist"
        raise ConfigError(f"{run} {what}", hint="give the --out directory of kdpipe train")
    return by_dotted_name(read_file(run / CONFIG))


def is_run(folder: Path) -> bool:
    """Whether a folder is the output directory of `kdpipe train`."""
    return (folder / CONFIG).is_file()


def is_model(folder: Path) -> bool:
    """Whether a folder has a model or an adapter, as saved by save_pretrained."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER))


def student_folder(name: str) -> str:
    """A student's name; the folder of a run is replaced by its final/."""
    folder = Path(name).expanduser()
    if not is_run(folder):
        return name
    if not (folder / FINAL).is_dir():
        raise ConfigError(
            f"the run {folder} has no student yet: no {FINAL}/",
            hint="run its command again to finish it",
        )
    return str(folder / FINAL)


def base_model_of(name: str) -> ModelSettings:
    """The model to load for a student: itself, or the base of its adapter."""
    file = Path(name).expanduser() / ADAPTER
    if not file.is_file():
        return ModelSettings(name=name)
    adapter = parse(file.read_bytes(), str(file))
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not base:
        raise ConfigError(f"{file} has no base_model_name_or_path", hint="add the base model to it")
    return ModelSettings(name=str(base), revision=None if revision is None else str(revision))
