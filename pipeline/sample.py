"""Sample text: the same prompt continued by several models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

# Small models repeat themselves when they always take the most probable token, and ramble at 1.
TEMPERATURE = 0.7


def samples(folders: Sequence[Path], prompt: str, n_tokens: int, seed: int = 0) -> list[str]:
    """Continue a prompt with each model, all with the same seed."""
    return [_continued(folder, prompt, n_tokens, seed) for folder in folders]


def _continued(folder: Path, prompt: str, n_tokens: int, seed: int) -> str:
    # Only partly typed by the library: cast at this border.
    library: Any = transformers
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    model = library.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            max_new_tokens=n_tokens,
        )
    text: str = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    return text
