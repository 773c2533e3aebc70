"""What stage one reads before anything else: the tokenizer and the documents, shown to the person.

In: settings. Out: `Inputs`, and a word about which columns play which role and what a document looks like.
Before it: `pipeline/data`. After it: `identity.py`, `parts.py`.
"""

from dataclasses import dataclass

from kdpipe.pipeline.data.corpus import Corpus, open_corpus
from kdpipe.pipeline.data.tokenise import Counts
from kdpipe.pipeline.data.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.watch import Watch
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.stage_one import StageOne

SHOWN_BAD_ROWS = 3
SHOWN_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Documents, and the tokenizer that turns them into ids."""

    tokenizer: LoadedTokenizer
    corpus: Corpus


def read_inputs(settings: StageOne, watch: Watch) -> Inputs:
    """Load the tokenizer, go through the documents once, and say what was found."""
    tokenizer = read_tokenizer(settings)
    corpus = open_corpus(settings.data, tokenizer)
    _describe(corpus, watch)
    return Inputs(tokenizer=tokenizer, corpus=corpus)


def read_tokenizer(settings: StageOne) -> LoadedTokenizer:
    """The teacher's tokenizer, or the one that is named in its place."""
    own = settings.teacher.tokenizer
    name = own or settings.teacher.name
    if name is None:
        raise ConfigError("no teacher is named", hint="give --teacher; --tokenizer is enough with --targets none")
    return load_tokenizer(
        name,
        revision=None if own else settings.teacher.revision,
        trust_remote_code=settings.teacher.trust_remote_code,
        chat_template=settings.data.chat_template,
    )


def _describe(corpus: Corpus, watch: Watch) -> None:
    """How the data were understood, and one document as the teacher reads it."""
    documents = " and ".join(f"{n:,} of {split}" for split, n in corpus.splits.items() if n)
    roles = ", ".join(f"{role} = {column}" for role, column in corpus.mapping.describe().items())
    watch.say(f"data       {corpus.source}: {documents}")
    watch.say(f"columns    {roles}")
    n_bad, first = corpus.bad_rows
    if n_bad:
        watch.warn(f"{n_bad:,} rows are left out. The first: {'; '.join(first[:SHOWN_BAD_ROWS])}")
    learnt = "every token is learnt" if corpus.loss == "all" else "what is learnt stands between « and »"
    shown = "".join(f"«{text}»" if is_learnt and corpus.loss != "all" else text for text, is_learnt in corpus.sample())
    watch.say(f"sample     {corpus.place('train', 0)}, {learnt}:")
    for line in shown.splitlines()[:SHOWN_LINES]:
        watch.say(f"  | {line}")


def explain_cuts(counts: Counts, length: int, watch: Watch) -> None:
    """What became of the documents that are longer than a sequence, once they were read."""
    if counts.split_documents:
        watch.say(f"{counts.split_documents:,} documents are longer than {length:,} tokens and were split")
    if counts.truncated_documents:
        watch.warn(
            f"{counts.truncated_documents:,} documents were cut to {length:,} tokens, {counts.truncated_tokens:,} "
            "tokens are lost"
        )
    if counts.untaught_pieces:
        watch.say(
            f"{counts.untaught_pieces:,} pieces of long documents, {counts.untaught_tokens:,} tokens, have nothing "
            "to be learnt and were left out"
        )
    if counts.empty_documents:
        watch.warn(f"{counts.empty_documents:,} documents have no tokens and were left out")
