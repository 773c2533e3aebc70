"""A `TrainWatch` that remembers; apart from all else, so that a child that uses it imports nothing of stage one.

In: what stage two says. Out: the same, in lists. Before it: nothing. After it: the tests of stage two.
"""

from kdpipe.pipeline.watch import StepNews


class HeardTraining:
    """A `TrainWatch` that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.begun: tuple[int, int] | None = None
        self.news: list[StepNews] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def begin(self, n_steps: int, n_done: int) -> None:
        self.begun = (n_steps, n_done)

    def stepped(self, news: StepNews) -> None:
        self.news.append(news)
