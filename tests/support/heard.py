"""A `TrainWatch` and an `EvalWatch` that remember; apart from all else: a child that uses them imports no stage one.

In: what stage two says. Out: the same, in lists.
"""

from kdpipe.pipeline.watch import StepProgress


class HeardTraining:
    """A `TrainWatch` that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.begun: tuple[int, int] | None = None
        self.news: list[StepProgress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def begin(self, n_steps: int, n_done: int) -> None:
        self.begun = (n_steps, n_done)

    def stepped(self, news: StepProgress) -> None:
        self.news.append(news)


class HeardEvaluating:
    """An `EvalWatch` that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.far: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def measured(self, n_done: int, n_sequences: int) -> None:
        self.far.append((n_done, n_sequences))
