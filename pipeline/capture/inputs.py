"""What stage one reads before anything else: the tokenizer and the documents, shown to the person.

In: settings. Out: `Inputs`, and a word about which columns play which role and what a document looks like.
"""

import math
from dataclasses import dataclass

from kdpipe.pipeline.documents.corpus import SPLITS, Corpus
from kdpipe.pipeline.documents.data_sources import is_of_hub
from kdpipe.pipeline.documents.open_corpus import open_corpus
from kdpipe.pipeline.documents.text_ranges import LEAST_BYTES, LONG_BYTES
from kdpipe.pipeline.documents.tokenize import DocumentCounts
from kdpipe.pipeline.tokenizers.cached_tokenizer import with_reloadable_files
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError

# Below them an interval over documents is itself a guess (docs/experiments.md#intervals-of-compare).
FEW_DOCUMENTS, FEW_TOKENS = 20, 2_000
# A larger share of the documents is missed in training.
LARGEST_FRACTION = 0.3
DEFAULT_LENGTH = 2048
SHOWN_BAD_ROWS = 3
SHOWN_LINES = 20
# A hub that does not answer is tried for half a minute.
ASKED_HUB = "{} is not a local path: looking it up on the Hugging Face hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Documents, and the tokenizer that turns them into ids."""

    tokenizer: LoadedTokenizer
    corpus: Corpus


def read_inputs(settings: CaptureSettings, watch: Watch, tokenizer: LoadedTokenizer | None = None) -> Inputs:
    """Load the tokenizer, unless it is there already, go through the documents once, and say what was found."""
    tokenizer = tokenizer or read_tokenizer(settings)
    for name in (settings.data.path, settings.data.val_path):
        if name is not None and is_of_hub(name):
            watch.say(ASKED_HUB.format(name))
    corpus = open_corpus(settings.data, tokenizer)
    _describe(corpus, watch)
    explain_validation(corpus, settings, watch)
    return Inputs(tokenizer=tokenizer, corpus=corpus)


def read_tokenizer(settings: CaptureSettings) -> LoadedTokenizer:
    """The teacher's tokenizer, or the one that is named in its place."""
    own = settings.teacher.tokenizer
    name = own or settings.teacher.name
    if name is None:
        raise ConfigError("no teacher is named", hint="give --teacher; --tokenizer is enough with --targets none")
    loaded = load_tokenizer(
        name,
        revision=None if own else settings.teacher.revision,
        trust_remote_code=settings.teacher.trust_remote_code,
        chat_template=settings.data.chat_template,
    )
    return with_reloadable_files(loaded)


def _describe(corpus: Corpus, watch: Watch) -> None:
    """How the data were understood, and one document as the teacher reads it."""
    documents = " and ".join(f"{n:,} of {split}" for split, n in corpus.splits.items() if n)
    roles = ", ".join(f"{role} = {column}" for role, column in corpus.mapping.describe().items())
    watch.say(f"data       {corpus.source}: {documents}")
    if corpus.n_cut_rows:
        cut = _of(corpus.n_cut_rows, "long text is", "long texts are")
        watch.say(
            f"ranges     {cut} cut: the share for validation is less than a document; --val-data holds out others"
        )
    watch.say(f"columns    {roles}")
    n_bad, first = corpus.bad_rows
    if n_bad:
        left_out = "1 row is left out" if n_bad == 1 else f"{n_bad:,} rows are left out. The first"
        watch.warn(f"{left_out}: {'; '.join(first[:SHOWN_BAD_ROWS])}")
    trained = "every token is learnt" if corpus.train_on == "all" else "what is learnt stands between « and »"
    place, runs = corpus.sample()
    shown = "".join(f"«{text}»" if is_trained and corpus.train_on != "all" else text for text, is_trained in runs)
    watch.say(f"sample     {place}, {trained}:")
    for line in shown.splitlines()[:SHOWN_LINES]:
        watch.say(f"  | {line}")


def explain_validation(corpus: Corpus, settings: CaptureSettings, watch: Watch) -> None:
    """Say where there is no validation split, or one on which numbers mean little, and what to set."""
    if settings.extend is not None:
        return  # the extended cache has splits of its own
    data, splits = settings.data, corpus.splits
    n_documents = splits["validation"]
    if data.val_path is None and data.val_fraction == 0:
        watch.say("no validation split, as --val-fraction 0 asks: students are not evaluated")
        return
    if not n_documents:
        what = f"from {LONG_BYTES:,} bytes on" if corpus.mapping.form == "text" else "but no conversations"
        watch.warn(
            f"no validation split: the data have {_of(splits['train'], 'document', 'documents')} (long texts are cut "
            f"into ranges for it, {what}). Students cannot be evaluated: give --val-data PATH, or --val-fraction 0 if "
            "that is wanted"
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
    watch.warn(
        f"the validation split is small, {_of(n_documents, 'document', 'documents')} and about "
        f"{tokens['validation']:,.0f} tokens: numbers of students vary with so few ({FEW_DOCUMENTS} documents and "
        f"{FEW_TOKENS:,} tokens are the least). {hint}"
    )


def share_for(corpus: Corpus, n_documents: int) -> float:
    """The share for validation at which about so many documents, or ranges of long ones, are held out."""
    if corpus.n_cut_rows:
        return (n_documents + corpus.n_cut_rows) * LEAST_BYTES / corpus.n_bytes
    return n_documents / sum(corpus.splits.values())


def explain_cuts(counts: DocumentCounts, length: int, watch: Watch) -> None:
    """What became of the documents that are longer than a sequence, once they were read."""
    if counts.split_documents:
        n, were = _of(counts.split_documents, "document is", "documents are"), _were(counts.split_documents)
        watch.say(f"{n} longer than {length:,} tokens and {were} split")
    if counts.truncated_documents:
        n, were = _of(counts.truncated_documents, "document", "documents"), _were(counts.truncated_documents)
        lost = _of(counts.truncated_tokens, "token is", "tokens are")
        watch.warn(f"{n} {were} cut to {length:,} tokens, {lost} lost")
    if counts.masked_segments:
        n, were = _of(counts.masked_segments, "piece", "pieces"), _were(counts.masked_segments)
        tokens = _of(counts.masked_tokens, "token", "tokens")
        watch.say(f"{n} of long documents, {tokens}, with nothing to be learnt {were} left out")
    if counts.known_documents or counts.known_segments:
        n, were = _of(counts.known_documents, "document", "documents"), _were(counts.known_documents)
        others = f", and {_of(counts.known_segments, 'piece', 'pieces')} of others" if counts.known_segments else ""
        watch.say(f"{n} {were} left out that the extended cache has{others}")
    if counts.untrainable_documents:
        n, were = _of(counts.untrainable_documents, "document", "documents"), _were(counts.untrainable_documents)
        watch.warn(f"{n} that cannot be learnt {were} left out. The first: {'; '.join(counts.untrainable)}")
    if counts.empty_documents:
        n, were = _of(counts.empty_documents, "document", "documents"), _were(counts.empty_documents)
        watch.warn(f"{n} without tokens {were} left out")
    if counts.documents and not counts.positions:
        watch.warn("nothing is to be learnt of any document: what is learnt is the next token, and there is none")


def _of(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
