"""Documents of the data found, gone through once, and opened as a corpus.

In: what a person said of the data, and the tokenizer. Out: `Corpus`.
"""

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

from kdpipe.pipeline.documents.columns import ColumnMapping, detect
from kdpipe.pipeline.documents.corpus import LOOKED_AT, Corpus
from kdpipe.pipeline.documents.corpus_index import SHOWN_BAD_ROWS, Index, Indexer
from kdpipe.pipeline.documents.data_sources import find_files
from kdpipe.pipeline.documents.document_duplicates import text_key
from kdpipe.pipeline.documents.render import Renderer
from kdpipe.pipeline.documents.row_files import Limits, RowFile
from kdpipe.pipeline.documents.text_ranges import ranges_to_hold_out
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.errors import ConfigError


def open_corpus(settings: DataSettings, tokenizer: LoadedTokenizer) -> Corpus:
    """Find the documents and go through them once."""
    if settings.path is None:
        raise ConfigError("there are no data", hint="name them with --data")
    _check_val_path(settings)
    limits = Limits(document_bytes=settings.max_document_bytes, row_bytes=settings.max_row_bytes)
    files = find_files(settings.path, settings.split, limits)
    mapping = detect(_first_rows(files, settings.path), settings.columns, settings.path)
    renderer = Renderer(mapping, settings, tokenizer)
    _want(files, mapping)
    key_of = text_key(tokenizer, settings.append_stop) if mapping.form == "text" else None
    new_indexer = partial(Indexer, mapping, settings, renderer.most_bytes, key_of)
    indexer, made_with = new_indexer(), _made_with(settings, mapping, renderer)
    has_own = settings.val_path is not None
    found = indexer.read(files, split="train" if has_own else None)
    if not found:
        raise _nothing(settings.path, indexer.finish({}))
    if settings.val_path is not None:
        more = find_files(settings.val_path, None, limits, hub_split="validation")
        _want(more, mapping)
        if not indexer.read(more, len(files), "validation"):
            roles = " and ".join(sorted(mapping.names() - set(mapping.keep)))
            raise _nothing(
                settings.val_path, indexer.finish({}), f"--val-data is read by the columns of --data: {roles}"
            )
        files = [*files, *more]
    index = indexer.finish(made_with)
    if mapping.form == "text" and not has_own and 0 < found * settings.val_fraction < 1:
        n_held_out = ranges_to_hold_out(index.sizes, settings.val_fraction)
        if n_held_out.any():
            indexer = new_indexer(n_held_out)
            indexer.read(files)
            index = indexer.finish(made_with)
    if index.in_validation.all():
        raise ConfigError(
            f"all {found:,} documents fall into validation, at a fraction of {settings.val_fraction}",
            hint="lower --val-fraction, or give more documents",
        )
    return Corpus(files, index, mapping, renderer, settings, tokenizer)


def _want(files: Iterable[RowFile], mapping: ColumnMapping) -> None:
    for file in files:
        file.wanted = mapping.names()


def _check_val_path(settings: DataSettings) -> None:
    """Training documents must not be the validation documents too; on the hub, splits differ by name."""
    path, val_path = settings.path or "", settings.val_path or ""
    if os.path.exists(path) and os.path.exists(val_path) and os.path.samefile(path, val_path):
        raise ConfigError(
            f"--val-data {val_path} are the same documents as --data",
            hint="name others, or give --val-fraction, which takes some of --data away",
        )


def _first_rows(files: Iterable[RowFile], what: str) -> list[dict[str, None]]:
    """The names of the columns of the first rows that can be read at all; a hundred large rows are not held."""
    found: list[dict[str, None]] = []
    bad: list[str] = []
    for file in files:
        for row in file.rows():
            if row.columns is not None:
                found.append(dict.fromkeys(row.columns))
            elif len(bad) < SHOWN_BAD_ROWS:
                bad.append(f"{file.name}:{row.number}: {row.problem}")
            if len(found) == LOOKED_AT:
                return found
    if not found:
        why = f"that can be read. The first: {'; '.join(bad)}" if bad else "at all"
        raise ConfigError(f"{what} has no row {why}", hint="is it the right file, and is it whole?")
    return found


def _made_with(settings: DataSettings, mapping: ColumnMapping, renderer: Renderer) -> dict[str, Any]:
    """What tokens depend on beside documents and tokenizer."""
    return {
        "mapping": mapping.describe(),
        "train_on": renderer.train_on,
        "template": renderer.template,
        "append_stop": settings.append_stop,
        "long_documents": settings.long_documents,
    }


def _nothing(path: str, index: Index, hint: str = "look at the rows, and at data.columns") -> ConfigError:
    n = index.n_bad_rows
    first = f" The first: {index.bad_rows[0]}" if index.bad_rows else ""
    return ConfigError(
        f"{path} has no document that can be used; {n:,} {'row is' if n == 1 else 'rows are'} bad.{first}",
        hint=hint,
    )
