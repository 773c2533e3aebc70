"""Train a student from Python, with progress of your own.

In: a cache and an output directory. Out: the run in that directory, and its first and last loss on stdout.
"""

import sys

from kdpipe.pipeline.train import train
from kdpipe.schemas.progress import SilentProgress, TaskUpdate
from kdpipe.schemas.train_settings import CacheSettings, RunSettings, StudentSettings, TrainOptions, TrainSettings


class Losses(SilentProgress):
    """Collects the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, update: TaskUpdate) -> None:
        if "loss" in update.facts:
            self.values.append(update.facts["loss"])


def main(cache: str, out: str) -> None:
    """Train, or resume an interrupted run."""
    settings = TrainSettings(
        cache=CacheSettings(path=cache),
        student=StudentSettings(name="tiny"),
        run=RunSettings(max_steps=20, batch_size=2),
        out=out,
    )
    losses = Losses()
    report = train(settings, TrainOptions(), losses)
    print(f"{report.steps} steps on {report.positions} positions, with {report.n_parameters:,} parameters")
    if losses.values:
        print(f"the loss fell from {losses.values[0]:.3f} to {losses.values[-1]:.3f}")
    print("the student is in", report.final)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["runs/example-cache", "runs/example-run"]))
