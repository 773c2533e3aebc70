"""A `TrainWatch` and an `EvalWatch` that record their calls; imports no stage one, for children that must not."""

from kdpipe.pipeline.watch import StepProgress


class RecordingEvalWatch:
    """Records every line, warning and progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def measured(self, n_done: int, n_sequences: int) -> None:
        self.progress.append((n_done, n_sequences))


class RecordingTrainWatch:
    """Records every line, warning and step."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.begun: tuple[int, int] | None = None
        self.steps: list[StepProgress] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def begin(self, n_steps: int, n_done: int) -> None:
        self.begun = (n_steps, n_done)

    def stepped(self, news: StepProgress) -> None:
        self.steps.append(news)
