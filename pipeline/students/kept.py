"""The tokenizer that the cache keeps, as stage two needs it: files for fresh students, content for the comparison.

In: the place of a cache and its manifest. Out: a `KeptTokenizer`. Before it: `kdpipe.cache.tokenizer_files`.
After it: `find.py`, `fit.py`, `saving.py`.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdpipe.cache.retries import Patience
from kdpipe.cache.tokenizer_files import read_tokenizer_files
from kdpipe.pipeline.data.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.students.presets import Ids
from kdpipe.schemas.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokenizer:
    """Files, the tokenizer they make (None where the cache keeps no files), and what a fresh student is made for."""

    files: Mapping[str, bytes]
    loaded: LoadedTokenizer | None
    ids: Ids


def kept_tokenizer(url: str, manifest: Manifest, patience: Patience | None = None) -> KeptTokenizer:
    """Read the tokenizer of a cache; its files run no code of their own."""
    files = read_tokenizer_files(url, manifest, patience)
    count, longest = manifest.vocabulary_size, manifest.plan.sequence_length
    if not files:
        return KeptTokenizer(files=files, loaded=None, ids=Ids(count=count, longest=longest))
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), files)
        loaded = load_tokenizer(folder, chat_template="none")
    fast = loaded.fast
    ids = Ids(count=count, longest=longest, begin=fast.bos_token_id, end=loaded.stop, padding=fast.pad_token_id)
    return KeptTokenizer(files=files, loaded=loaded, ids=ids)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path within a folder, which is one deep at most."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
