"""What evaluation and comparison read of a run's folder: config.yaml and evaluation.json, which are written here too.

In: the folder of a run. Out: its settings, its last evaluation, where its student is.
"""

from pathlib import Path
from typing import Any, Final

from kdpipe.cache.durable.files import replace_file, translate_os_errors
from kdpipe.pipeline.config_file import as_yaml, read_file
from kdpipe.pipeline.models.folders import FINAL as FINAL
from kdpipe.pipeline.students.saving import ADAPTER
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.model import ModelSettings
from kdpipe.schemas.records import read_record
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.strict_json import MAX_BYTES, parse
from kdpipe.schemas.train_report import Evaluation

CONFIG: Final = "config.yaml"
EVALUATION: Final = "evaluation.json"


def save_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Keep a run's last evaluation, in place of the one before."""
    with translate_os_errors("an evaluation could not be written", run):
        replace_file(run, run / EVALUATION, evaluation.to_json())


def save_settings(run: Path, values: dict[str, Any]) -> None:
    """Keep a run's settings, in place of those of the call before."""
    with translate_os_errors("the settings could not be written", run):
        replace_file(run, run / CONFIG, as_yaml(values).encode())


def load_evaluation(run: Path) -> Evaluation | None:
    """A run's last evaluation, None where it has had none."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return read_record(Evaluation, file.read(MAX_BYTES + 1), str(path))


def load_settings(run: Path) -> dict[str, Any]:
    """The settings of a run by their dotted names; a folder without them is no run."""
    if not is_run(run):
        what = "is no folder of a run: it has no config.yaml" if run.is_dir() else "is not there"
        raise ConfigError(f"{run} {what}", hint="give the folder that `kdpipe train --out` made")
    return by_dotted_name(read_file(run / CONFIG))


def is_run(folder: Path) -> bool:
    """Whether `kdpipe train` has worked in a folder."""
    return (folder / CONFIG).is_file()


def student_of(name: str) -> str:
    """The student that a name stands for: a run's folder stands for the student in its final/."""
    folder = Path(name).expanduser()
    if not is_run(folder):
        return name
    if not (folder / FINAL).is_dir():
        raise ConfigError(
            f"the run {folder} has no student yet: there is no {FINAL}/ in it",
            hint="run its command again to finish it",
        )
    return str(folder / FINAL)


def base_of(name: str) -> ModelSettings:
    """The model that a student's folder needs: itself, or the one that its adapter was trained beside."""
    file = Path(name).expanduser() / ADAPTER
    if not file.is_file():
        return ModelSettings(name=name)
    adapter = parse(file.read_bytes(), str(file))
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not base:
        raise ConfigError(f"{file} does not name the model it adapts", hint="write it there")
    return ModelSettings(name=str(base), revision=None if revision is None else str(revision))
