"""The manifest of a new cache, and the tables that all parts share.

In: settings, documents, tokenizer and teacher. Out: the `Manifest` and the numbers of its tables.
"""

from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher
from kdpipe.pipeline.capture.inputs import Inputs
from kdpipe.schemas import manifest
from kdpipe.schemas.arrays import default_arrays
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest, expected_tables

Longs = npt.NDArray[np.int64]


def make_manifest(settings: CaptureSettings, inputs: Inputs, teacher: CaptureTeacher) -> Manifest:
    """The manifest; equal settings and inputs give equal bytes on every machine."""
    corpus, tokenizer = inputs.corpus, inputs.tokenizer.record
    n_ids = tokenizer.vocabulary_size
    return Manifest(
        kdpipe=version("kdpipe"),
        seed=settings.seed,
        teacher=teacher.record,
        tokenizer=tokenizer,
        data=manifest.Data(
            fingerprint=corpus.fingerprint,
            source=corpus.source,
            columns=corpus.columns,
            text=settings.targets.for_other_tokenizers,
            train_on=corpus.train_on,
        ),
        plan=corpus.plan(
            teacher.sequence_length, packed=settings.sequences.pack, part_rows=settings.sequences.part_rows
        ),
        targets=teacher.targets,
        hidden=teacher.hidden,
        tables=expected_tables(teacher.targets, teacher.hidden, n_ids),
        arrays=default_arrays(teacher.targets, teacher.hidden, n_ids),
    )


def check_description(settings: CaptureSettings, existing: Manifest) -> None:
    """Refuse another name or license of the teacher than an existing cache has: manifests are never rewritten."""
    teacher = existing.teacher
    if teacher is None:
        return
    for flag, given, stated in (
        ("--teacher-name", settings.teacher.display_name, teacher.name),
        ("--teacher-license", settings.teacher.license, teacher.license),
    ):
        if given is not None and given != stated:
            raise ConfigError(
                f"{settings.out} was started with {flag} {stated or 'none'}, now it is {given}",
                hint=f"omit {flag}, or choose another --out: a manifest is never rewritten",
            )


def ids_by_rank(counts: Longs) -> npt.NDArray[np.uint32]:
    """Ids from the most frequent to the least; equally frequent ones by number, which tokenizers order by frequency."""
    return np.argsort(-counts, kind="stable").astype(np.uint32)


def unigram(counts: Longs) -> npt.NDArray[np.float32]:
    """The frequency of each id, with one added to every count."""
    shares: npt.NDArray[np.float32] = ((counts + 1) / (counts.sum() + len(counts))).astype(np.float32)
    return shares
