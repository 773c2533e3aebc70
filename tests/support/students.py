"""Students for tests: batches of made-up documents, students of small folders, and the outputs for one document alone.

In: documents as lists of ids, a folder of `models.py`. Out: a `MicroBatch`, a `Student`, states read one by one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.students.load_student import load_student
from kdpipe.pipeline.students.model_card import ModelCard
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.resolve import ResolvedStudent, resolve_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.train_settings import StudentSettings

CPU = torch.device("cpu")
IDS = TokenIds(count=300, longest=64, end=2, padding=0)
CARD = ModelCard(
    name="small",
    teacher="org/Big",
    teacher_revision="abc123",
    teacher_license="apache-2.0",
    base="org/small",
    base_license="mit",
    cache_id="f" * 64,
    losses={"ce": 0.1, "forward_kl": 0.9},
    temperature=2.0,
    optimizer="fresh, 2.6 M parameters: muon 0.01",
    steps=1000,
    positions=1_234_567,
    seed=3,
    metrics={"cross_entropy": 2.34567, "kl_teacher": 0.5},
    versions={"kdpipe": "0.1", "torch": "2.13"},
)


def batch_of(
    sequences: Sequence[Sequence[int]], vocabulary: int = IDS.count, seed: int = 0, pad: int = 0
) -> MicroBatch:
    """Sequences given by the lengths of their documents; every row but a document's last is trained."""
    generator = torch.Generator().manual_seed(seed)
    n_tokens = max(sum(lengths) for lengths in sequences) + pad
    tokens_BT = torch.randint(3, vocabulary, (len(sequences), n_tokens), generator=generator)
    document_BT = torch.full_like(tokens_BT, -1)
    for row, lengths in enumerate(sequences):
        first = 0
        for number, length in enumerate(lengths):
            document_BT[row, first : first + length] = number
            first += length
    ahead_BT = torch.cat([document_BT[:, 1:], torch.full_like(document_BT[:, :1], -1)], dim=1)
    places_N = ((document_BT >= 0) & (ahead_BT == document_BT)).flatten().nonzero().flatten()
    return MicroBatch(
        numbers=tuple(range(len(sequences))),
        documents=tuple(tuple(range(int(row.max()) + 1)) for row in document_BT),
        tokens_BT=tokens_BT,
        document_BT=document_BT,
        places_N=places_N,
        sequence_N=places_N // n_tokens,
        labels_N=tokens_BT.flatten()[places_N + 1],
    )


def found(name: object, ids: TokenIds = IDS, **settings: Any) -> ResolvedStudent:
    """What a name leads to."""
    return resolve_student(StudentSettings(name=str(name), **settings), ids)


def student(name: object, ids: TokenIds = IDS, precision: Any = "fp32", seed: int = 0, **settings: Any) -> Student:
    """A student on the CPU."""
    given = StudentSettings(name=str(name), **settings)
    return load_student(resolve_student(given, ids), given, precision, CPU, seed)


def alone(model: Any, batch: MicroBatch, layer: int) -> Tensor:
    """States of a layer of each document read alone, by the model as transformers gives it; zeros at padding."""
    states: list[Tensor] = []
    for tokens_T, document_T in zip(batch.tokens_BT, batch.document_BT, strict=True):
        read = [
            model(tokens_T[document_T == number][None], use_cache=False, output_hidden_states=True).hidden_states[
                layer
            ][0]
            for number in range(int(document_T.max()) + 1)
        ]
        width = read[0].shape[-1]
        states.append(torch.cat([*read, torch.zeros(int((document_T < 0).sum()), width)]))
    return torch.stack(states)
