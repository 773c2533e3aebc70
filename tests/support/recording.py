"""A `Progress` that records its calls; imports no stage one, for children that must not."""

import re

from kdpipe.schemas.choices import TextStyle
from kdpipe.schemas.progress import Task, TaskUpdate


class RecordingProgress:
    """Records messages, warnings, tasks, and the updates of each task by its name."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.tasks: dict[str, Task] = {}
        self.updates: dict[str, list[TaskUpdate]] = {}
        self.open_tasks: list[Task] = []

    def message(self, text: str, style: TextStyle = "plain") -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def begin(self, task: Task) -> None:
        self.tasks[task.name] = task
        self.updates[task.name] = []
        self.open_tasks.append(task)

    def update(self, update: TaskUpdate) -> None:
        self.updates[self.open_tasks[-1].name].append(update)

    def finish(self, task: Task) -> None:
        self.open_tasks.remove(task)

    def rows(self, column: str) -> list[dict[str, str]]:
        """Rows of the tables of training that have a column, by the names in their header."""
        names, rows = list[str](), list[dict[str, str]]()
        for cells in (re.split(r"\s{2,}", message.strip()) for message in self.messages):
            if cells[0] == "step":
                names = cells
            elif cells[0].isdecimal() and column in names:
                rows.append(dict(zip(names, cells, strict=True)))
        return rows
