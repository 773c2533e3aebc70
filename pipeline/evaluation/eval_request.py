"""`EvalRequest`: what `kdpipe eval` evaluates, on which split of which cache."""

from dataclasses import dataclass

from kdpipe.cache.stores.retries import RETRY_SECONDS
from kdpipe.pipeline.evaluation.humaneval import NAME as HUMANEVAL
from kdpipe.schemas.choices import SplitName, VerifyWhen


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """`student` is a model folder, a Hub id, or the folder of a run, for its final/."""

    cache: str
    student: str
    revision: str | None = None
    trust_remote_code: bool = False
    split: SplitName = "validation"
    limit: int | None = None
    tasks: tuple[str, ...] = ()
    unsafe_no_sandbox: bool = False
    allow_partial: bool = False
    device: str = "auto"
    batch_size: int = 8
    verify: VerifyWhen | None = None
    retry_for: float = RETRY_SECONDS

    @property
    def library_tasks(self) -> list[str]:
        """The tasks of lm-eval."""
        return [task for task in self.tasks if task != HUMANEVAL]
