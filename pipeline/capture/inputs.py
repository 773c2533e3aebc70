"""The tokenizer and the documents of stage one, and a short description of them for the terminal.

In: settings. Out: `Inputs`, and lines about columns, roles and one sample document.
"""

import math
from collections import Counter
from dataclasses import dataclass

from kdpipe.pipeline.documents.corpus import SPLITS, Corpus
from kdpipe.pipeline.documents.data_sources import is_of_hub
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.text_ranges import LONG_BYTES, MIN_RANGE_BYTES
from kdpipe.pipeline.documents.tokenize import DocumentCounts
from kdpipe.pipeline.models.folders import HUB_LOOKUP
from kdpipe.pipeline.teachers import TeacherBackend, backend_of
from kdpipe.pipeline.tokenizers.cached_tokenizer import with_reloadable_files
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.counts import counted
from kdpipe.schemas.progress import Progress, Task, running

# With fewer, intervals over documents are unreliable (docs/experiments.md#intervals-of-compare).
FEW_DOCUMENTS, FEW_TOKENS = 20, 2_000
# A larger share for validation costs too much training data.
LARGEST_FRACTION = 0.3
DEFAULT_LENGTH = 2048
SHOWN_BAD_ROWS = 3
SHOWN_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Documents, and the tokenizer that turns them into ids."""

    tokenizer: LoadedTokenizer
    corpus: Corpus


def read_inputs(settings: CaptureSettings, progress: Progress, tokenizer: LoadedTokenizer | None = None) -> Inputs:
    """Load the tokenizer unless it is given, index the documents, and describe them."""
    tokenizer = tokenizer or read_tokenizer(settings)
    for name in (settings.data.path, settings.data.val_path):
        if name is not None and is_of_hub(name):
            progress.message(HUB_LOOKUP.format(name))
    with running(progress, Task(name="read documents")):
        corpus = open_corpus(settings.data, tokenizer)
    _describe(corpus, progress)
    explain_validation(corpus, settings, progress)
    return Inputs(tokenizer=tokenizer, corpus=corpus)


def read_tokenizer(settings: CaptureSettings, backend: TeacherBackend | None = None) -> LoadedTokenizer:
    """The tokenizer of --tokenizer, else the teacher's own."""
    if settings.teacher.tokenizer is None:
        loaded = (backend or backend_of(settings)).tokenizer(settings.data.chat_template)
    else:
        loaded = load_tokenizer(
            settings.teacher.tokenizer,
            trust_remote_code=settings.teacher.trust_remote_code,
            chat_template=settings.data.chat_template,
        )
    return with_reloadable_files(loaded)


def _describe(corpus: Corpus, progress: Progress) -> None:
    """Show how the data are read, and one document as the teacher reads it."""
    documents = " and ".join(f"{n:,} of {split}" for split, n in corpus.splits.items() if n)
    progress.message(f"data       {corpus.source}: {documents}")
    if corpus.n_cut_rows:
        cut = counted(corpus.n_cut_rows, "long text")
        progress.message(
            f"ranges     {cut} cut into ranges to hold out some for validation; --val-data uses other documents"
        )
    for roles in _columns(corpus):
        progress.message(f"columns    {roles}")
    n_bad, first = corpus.bad_rows
    if n_bad:
        progress.warning(f"skipped {counted(n_bad, 'bad row')}, e.g. {'; '.join(first[:SHOWN_BAD_ROWS])}")
    trained = "every token is trained on" if corpus.train_on == "all" else "trained tokens are marked « »"
    place, runs = corpus.sample()
    shown = "".join(f"«{text}»" if is_trained and corpus.train_on != "all" else text for text, is_trained in runs)
    progress.message(f"sample     {place}, {trained}:")
    for line in shown.splitlines()[:SHOWN_LINES]:
        progress.message(f"  | {line}")


def _columns(corpus: Corpus) -> list[str]:
    """The roles of columns; with the number of files where these differ."""
    counts = Counter(
        ", ".join(f"{role} = {column}" for role, column in mapping.describe().items()) for mapping in corpus.mappings
    )
    if len(counts) == 1:
        return list(counts)
    return [f"{roles} in {counted(n, 'file')}" for roles, n in counts.most_common()]


def explain_validation(corpus: Corpus, settings: CaptureSettings, progress: Progress) -> None:
    """Warn about a missing or a small validation split, with what to set."""
    if settings.extend is not None:
        return  # the extended cache has its own splits
    data, splits = settings.data, corpus.splits
    n_documents = splits["validation"]
    if data.val_path is None and data.val_fraction == 0:
        progress.message("no validation split (--val-fraction 0): students cannot be evaluated")
        return
    if not n_documents:
        what = f"texts of {LONG_BYTES:,} bytes or more" if corpus.is_text else "texts, not conversations"
        progress.warning(
            f"no validation split: only {counted(splits['train'], 'document')} (ranges are held out of {what}). "
            "Students cannot be evaluated: give --val-data PATH, or --val-fraction 0 to accept that"
        )
        return
    length = settings.sequences.length or DEFAULT_LENGTH
    tokens = {split: float(corpus.expected_tokens(split, length).sum()) for split in SPLITS}
    if n_documents >= FEW_DOCUMENTS and tokens["validation"] >= FEW_TOKENS:
        return
    hint = "give more --val-data"
    if data.val_path is None:
        share = max(share_for(corpus, FEW_DOCUMENTS), FEW_TOKENS / max(sum(tokens.values()), 1), data.val_fraction)
        fraction = math.ceil(100 * share) / 100
        is_enough = fraction <= LARGEST_FRACTION and (not corpus.n_cut_rows or fraction * corpus.n_rows < 1)
        hint = f"give --val-fraction {fraction:g}" if is_enough else "give --val-data PATH"
    progress.warning(
        f"small validation split: {counted(n_documents, 'document')}, about {tokens['validation']:,.0f} tokens; "
        f"metrics vary below {FEW_DOCUMENTS} documents and {FEW_TOKENS:,} tokens: {hint}"
    )


def share_for(corpus: Corpus, n_documents: int) -> float:
    """The validation fraction that holds out about this many documents, or ranges of long ones."""
    if corpus.n_cut_rows:
        return (n_documents + corpus.n_cut_rows) * MIN_RANGE_BYTES / corpus.n_bytes
    return n_documents / sum(corpus.splits.values())


def explain_cuts(counts: DocumentCounts, length: int, progress: Progress) -> None:
    """Report documents that were split, truncated or skipped."""
    if counts.split_documents:
        progress.message(f"{counted(counts.split_documents, 'document')} split: longer than {length:,} tokens")
    if counts.truncated_documents:
        lost = counted(counts.truncated_tokens, "token")
        progress.warning(
            f"{counted(counts.truncated_documents, 'document')} truncated to {length:,} tokens: {lost} lost"
        )
    if counts.masked_segments:
        skipped = counted(counts.masked_segments, "segment")
        tokens = counted(counts.masked_tokens, "token")
        progress.message(f"{skipped} of long documents without a token to train on skipped ({tokens})")
    if counts.known_documents or counts.known_segments:
        others = f", and {counted(counts.known_segments, 'segment')} of others" if counts.known_segments else ""
        progress.message(
            f"{counted(counts.known_documents, 'document')}{others} skipped: already in the extended cache"
        )
    if counts.untrainable_documents:
        examples = "; ".join(counts.untrainable)
        progress.warning(f"skipped {counted(counts.untrainable_documents, 'untrainable document')}, e.g. {examples}")
    if counts.empty_documents:
        progress.warning(f"skipped {counted(counts.empty_documents, 'document')} without tokens")
    if counts.documents and not counts.positions:
        progress.warning("no document has a token to train on: every document is a single token or fully masked")
