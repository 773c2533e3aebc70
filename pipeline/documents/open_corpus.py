"""Find the documents, index them in one pass, and open them as a corpus.

In: the data settings, and the tokenizer. Out: `Corpus`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kdpipe.pipeline.documents.columns import ColumnMapping, detect
from kdpipe.pipeline.documents.corpus import DETECTION_ROWS, Corpus
from kdpipe.pipeline.documents.corpus_index import SHOWN_BAD_ROWS, Index, Indexer
from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.pipeline.documents.document_duplicates import text_key
from kdpipe.pipeline.documents.render import Renderer
from kdpipe.pipeline.documents.row_files import Limits, PlainFile, RowFile
from kdpipe.pipeline.documents.text_ranges import ranges_to_hold_out
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import ConfigError


def open_corpus(settings: DataSettings, tokenizer: LoadedTokenizer) -> Corpus:
    if settings.path is None:
        raise ConfigError("no data given", hint="set --data")
    _check_val_path(settings)
    limits = Limits(document_bytes=settings.max_document_bytes, row_bytes=settings.max_row_bytes)
    query = DataQuery(split=settings.split, text_files=settings.text_files)
    files, others = find_files(settings.path, query, limits), list[RowFile]()
    if settings.val_path is not None:
        others = find_files(settings.val_path, replace(query, split=None, hub_split="validation"), limits)
    mappings = detect(_first_columns(files, others, settings.path), settings.columns, settings.path)
    for file, mapping in zip((*files, *others), mappings, strict=True):
        file.wanted = mapping.names()
    forms = {mapping.form for mapping in mappings}
    renderer = Renderer(forms, settings, tokenizer)
    key_of = text_key(tokenizer, settings.append_stop) if forms == {"text"} else None
    new_indexer = partial(Indexer, mappings, settings, renderer.max_bytes, key_of)
    indexer, made_with = new_indexer(), _tokenization_inputs(settings, mappings, renderer)
    has_own = settings.val_path is not None
    n_documents = indexer.read(files, split="train" if has_own else None)
    if not n_documents:
        raise _no_documents(settings.path, indexer.finish({}))
    if settings.val_path is not None and not indexer.read(others, len(files), "validation"):
        roles = " and ".join(sorted(mappings[0].names() - set(mappings[0].keep)))
        raise _no_documents(settings.val_path, indexer.finish({}), f"give data with the columns of --data: {roles}")
    files = [*files, *others]
    index = indexer.finish(made_with)
    if forms == {"text"} and not has_own and 0 < n_documents * settings.val_fraction < 1:
        n_held_out = ranges_to_hold_out(index.sizes, settings.val_fraction)
        if n_held_out.any():
            indexer = new_indexer(n_held_out)
            indexer.read(files)
            index = indexer.finish(made_with)
    if index.in_validation.all():
        raise ConfigError(
            f"all {n_documents:,} documents are in validation at --val-fraction {settings.val_fraction}",
            hint="lower --val-fraction, or use more documents",
        )
    return Corpus(files, index, mappings, renderer, settings, tokenizer)


def _check_val_path(settings: DataSettings) -> None:
    """Refuse validation on the training documents; on the Hub, splits differ by name."""
    path, val_path = settings.path or "", settings.val_path or ""
    if os.path.exists(path) and os.path.exists(val_path) and os.path.samefile(path, val_path):
        raise ConfigError(
            f"--val-data {val_path} is the same file or folder as --data",
            hint="use other documents, or --val-fraction to hold out part of --data",
        )


def _first_columns(files: Sequence[RowFile], others: Sequence[RowFile], what: str) -> list[list[str] | None]:
    """The columns of the first valid rows of each file; None for plain text."""
    columns: list[list[str] | None] = []
    bad: list[str] = []
    for file in (*files, *others):
        if isinstance(file, PlainFile):
            columns.append(None)
            continue
        names, n_valid = dict[str, None](), 0
        for row in file.rows():
            if row.columns is not None:
                names |= dict.fromkeys(row.columns)
                n_valid += 1
            elif len(bad) < SHOWN_BAD_ROWS:
                bad.append(f"{file.name}:{row.number}: {row.problem}")
            if n_valid == DETECTION_ROWS:
                break
        columns.append(list(names))
    if not any(names is None or names for names in columns[: len(files)]):
        why = f"no valid row. First errors: {'; '.join(bad)}" if bad else "no rows"
        raise ConfigError(f"{what} has {why}", hint="check the path, and that the file is complete")
    return columns


def _tokenization_inputs(
    settings: DataSettings, mappings: Sequence[ColumnMapping], renderer: Renderer
) -> dict[str, Any]:
    """Everything that tokens depend on, besides documents and tokenizer."""
    described = [mapping.describe() for mapping in mappings]
    return {
        "mapping": described[0] if described.count(described[0]) == len(described) else described,
        "train_on": renderer.train_on,
        "template": renderer.template,
        "append_stop": settings.append_stop,
        "long_documents": settings.long_documents,
    }


def _no_documents(path: str, index: Index, hint: str = "check the rows and data.columns") -> ConfigError:
    first = f" The first: {index.bad_rows[0]}" if index.bad_rows else ""
    return ConfigError(f"{path} has no usable document; {counted(index.n_bad_rows, 'invalid row')}.{first}", hint=hint)
