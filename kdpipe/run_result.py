"""`RunResult`: the output directory of a training run, with its metrics, model and tokenizer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from kdpipe.cache.format.data_frame import data_frame
from kdpipe.schemas.display import html_table
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import by_dotted_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdpipe.schemas.run_report import TrainReport


@final
class MetricsLog(list[dict[str, Any]]):
    """Lines of metrics.jsonl, in order."""

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a line each; nested values have columns such as `terms.ce.raw`."""
        return data_frame([by_dotted_name(line) for line in self])

    def __repr__(self) -> str:
        return f"<kdpipe metrics: {len(self):,} lines>"

    def _repr_html_(self) -> str:
        return str(self.to_pandas()._repr_html_())


@final
class RunResult:
    """A run folder; `report` is set only if this process trained the run."""

    def __init__(self, path: str | Path, report: "TrainReport | None" = None) -> None:
        self.path, self.report = Path(path), report

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<kdpipe run {self.path}>"

    def _repr_html_(self) -> str:
        return html_table("Run", {"path": str(self.path)} if self.report is None else dict(self.report))

    def metrics(self) -> MetricsLog:
        """The lines of metrics.jsonl, a dict each: training steps and evaluations."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(
                f"no metrics in {self.path}: {error.strerror}", hint="give the output directory of a run"
            ) from None
        return MetricsLog(json.loads(line) for line in lines)

    def model(self, **options: Any) -> "PreTrainedModel":
        """The final student, loaded by transformers' `from_pretrained` with `options`."""
        from transformers import AutoModelForCausalLM

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self._final(), **options)
        return model

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer saved beside the final student."""
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._final())
        return tokenizer

    def _final(self) -> str:
        folder = self.path / "final"
        if not folder.is_dir():
            raise ConfigError(f"{self.path} has no final student", hint="train again with the same settings to resume")
        return str(folder)
