"""The peers of stage two: the transformers Trainer and TRL's GKDTrainer, on the same students and batches.

In: a `Case`, its rows, a callback. Out: a trainer.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stage_two_inputs import BETAS, CLIP, DECAY, RATE, Case, fresh_model, student_config, teacher_config
from transformers import LlamaModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kdpipe.pipeline.small_teacher import TeacherSizes, train_tokenizer

NAMED = ("torch", "transformers", "accelerate", "trl")
# The rest is head, loss and collation: peers replace the model's forward, except that of its body.
THEIRS = {
    "bodies, forward": (LlamaModel, "forward"),
    "all, backward": (torch.Tensor, "backward"),
    "gradient norm": (torch.nn.utils, "clip_grad_norm_"),
    "optimizer": (torch.optim.AdamW, "step"),
}


def versions() -> dict[str, str]:
    """The peers."""
    return {name: version(name) for name in NAMED}


class EachStep(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Calls back at the start of training and after each step, before the next batch is collated."""

    def __init__(self, begun: Callable[[], None], stepped: Callable[[], None]) -> None:
        self._begun, self._stepped = begun, stepped

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        """Begin."""
        self._begun()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """Count the step."""
        self._stepped()


def _arguments(case: Case, out: Path, n_steps: int) -> dict[str, Any]:
    """kdpipe's defaults, without evaluations, checkpoints and logs."""
    return {
        "output_dir": str(out),
        "max_steps": n_steps,
        "per_device_train_batch_size": case.batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, n_steps // 10),
        "weight_decay": DECAY,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def plain_trainer(case: Case, rows: list[dict[str, list[int]]], out: Path, n_steps: int, callback: EachStep) -> Any:
    """Cross-entropy fine-tuning with the Trainer."""
    make: Any = Trainer
    made = make(
        model=fresh_model(student_config(case)),
        args=TrainingArguments(**_arguments(case, out, n_steps)),
        train_dataset=rows,
        callbacks=[callback],
    )
    made.remove_callback(PrinterCallback)
    return made


def gkd_trainer(case: Case, rows: list[dict[str, list[int]]], out: Path, n_steps: int, callback: EachStep) -> Any:
    """Forward KL to a teacher in memory, four times the student's size, on the cached text only."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config: Any = GKDConfig
    given = _arguments(case, out, n_steps) | {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "max_length": case.length}
    # These defaults cost time and do not affect the measurement.
    given |= {"gradient_checkpointing": False}
    tokenizer = train_tokenizer(["a text of few words"], TeacherSizes(vocabulary=300))
    make: Any = GKDTrainer
    made = make(
        model=fresh_model(student_config(case)),
        teacher_model=fresh_model(teacher_config(case, 4.0)),
        args=config(**given),
        data_collator=_collated,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    made.remove_callback(PrinterCallback)
    return made


def _collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Collate rows of equal length."""
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


PEERS: dict[str, Callable[..., Any]] = {"trainer": plain_trainer, "gkd": gkd_trainer}
