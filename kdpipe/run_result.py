"""`RunResult`: the output directory of a training run, with its metrics, model and tokenizer."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from kdpipe.cache.format.data_frame import data_frame
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.run_report import TrainReport


@final
class RunResult:
    """A run folder; `report` is there if the run was trained by this process."""

    def __init__(self, path: str | Path, report: "TrainReport | None" = None) -> None:
        self.path, self.report = Path(path), report

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<kdpipe run {self.path}>"

    def _repr_html_(self) -> str:
        if self.report is None:
            return f"<pre>{html.escape(repr(self))}</pre>"
        from kdpipe.cli.train import page

        return f"<pre>{html.escape(page(self.report))}</pre>"

    def metrics(self) -> Any:
        """metrics.jsonl as a pandas DataFrame."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(
                f"no metrics in {self.path}: {error.strerror}", hint="give the --out folder of a run"
            ) from None
        return data_frame([json.loads(line) for line in lines])

    def model(self, **options: Any) -> Any:
        """The final student, loaded by transformers' `from_pretrained` with `options`."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self._final(), **options)

    def tokenizer(self) -> Any:
        """The tokenizer saved beside the final student."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._final())

    def _final(self) -> str:
        folder = self.path / "final"
        if not folder.is_dir():
            raise ConfigError(f"{self.path} has no final student", hint="train again with the same settings to resume")
        return str(folder)
