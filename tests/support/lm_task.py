"""A task of lm-eval on a local file: questions with two choices, no network.

In: a folder. Out: the YAML file that describes the task, and its questions.
"""

from pathlib import Path
from typing import Any

from support.corpora import TEXTS, write_jsonl

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def local_task(folder: Path, name: str, n: int = 8) -> tuple[Path, list[dict[str, Any]]]:
    """Write a task; each question continues in its own text or in another."""
    questions = [
        {
            "question": " ".join(TEXTS[i].split()[:8]),
            "choices": [" ".join(TEXTS[i].split()[8:11]), " ".join(TEXTS[i + 9].split()[8:11])],
            "gold": i % 2,
        }
        for i in range(n)
    ]
    data = write_jsonl(folder / "data.jsonl", questions)
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, data=data), encoding="utf-8")
    return path, questions
