"""What a cache is made from, said once: its manifest, and the tables that every part leans on.

In: settings, documents and tokenizer, and what the teacher is. Out: the `Manifest` and the numbers of its tables.
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


def make_manifest(settings: CaptureSettings, inputs: Inputs, speaker: CaptureTeacher) -> Manifest:
    """The manifest; equal settings and inputs give equal bytes on every machine."""
    corpus, tokenizer = inputs.corpus, inputs.tokenizer.record
    n_ids = tokenizer.vocabulary_size
    return Manifest(
        kdpipe=version("kdpipe"),
        seed=settings.seed,
        teacher=speaker.facts,
        tokenizer=tokenizer,
        data=manifest.Data(
            fingerprint=corpus.fingerprint,
            source=corpus.source,
            columns=corpus.columns,
            text=settings.targets.for_other_tokenizers,
            train_on=corpus.train_on,
        ),
        plan=corpus.plan(
            speaker.sequence_length, packed=settings.sequences.pack, part_rows=settings.sequences.part_rows
        ),
        targets=speaker.targets,
        hidden=speaker.hidden,
        tables=expected_tables(speaker.targets, speaker.hidden, n_ids),
        arrays=default_arrays(speaker.targets, speaker.hidden, n_ids),
    )


def check_description(settings: CaptureSettings, found: Manifest) -> None:
    """Refuse a name or license of the teacher that a cache begun before states otherwise: its manifest is final."""
    teacher = found.teacher
    if teacher is None:
        return
    for flag, given, stated in (
        ("--teacher-name", settings.teacher.display_name, teacher.name),
        ("--teacher-license", settings.teacher.license, teacher.license),
    ):
        if given is not None and given != stated:
            raise ConfigError(
                f"{settings.out} was begun with {stated or 'none'} for {flag}, {given} is given now",
                hint=f"leave {flag} out, or choose another --out: a manifest is never rewritten",
            )


def ids_by_rank(counts: Longs) -> npt.NDArray[np.uint32]:
    """Ids from the most frequent to the least; equally frequent ones by number, as tokenizers tend to have them."""
    return np.argsort(-counts, kind="stable").astype(np.uint32)


def unigram(counts: Longs) -> npt.NDArray[np.float32]:
    """How frequent each id is; every id counts once more than it was seen."""
    shares: npt.NDArray[np.float32] = ((counts + 1) / (counts.sum() + len(counts))).astype(np.float32)
    return shares
