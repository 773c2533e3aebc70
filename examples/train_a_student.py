"""Train a student from Python: what `kdpipe train` does, with someone of your own to follow it.

In: a cache, a folder for the run. Out: the run in it, and how its loss fell, on stdout.
"""

import sys

from kdpipe.pipeline.train import train
from kdpipe.pipeline.watch import SilentTrainWatch, StepProgress
from kdpipe.schemas.train_settings import CacheSettings, RunSettings, StudentSettings, TrainOptions, TrainSettings


class Losses(SilentTrainWatch):
    """Follows a run and remembers its losses."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def stepped(self, news: StepProgress) -> None:
        """One more step is done."""
        if news.loss is not None:
            self.seen.append(news.loss)


def main(cache: str, out: str) -> None:
    """Train, or go on where this was stopped."""
    settings = TrainSettings(
        cache=CacheSettings(path=cache),
        student=StudentSettings(name="tiny"),
        run=RunSettings(max_steps=20, batch_size=2),
        out=out,
    )
    losses = Losses()
    report = train(settings, TrainOptions(), losses)
    print(f"{report.steps} steps on {report.positions} positions, with {report.n_parameters:,} parameters")
    if losses.seen:
        print(f"the loss fell from {losses.seen[0]:.3f} to {losses.seen[-1]:.3f}")
    print("the student is in", report.final)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["runs/example-cache", "runs/example-run"]))
