"""Every file name inside a cache, and the names that are allowed there.

In: part numbers and array names. Out: relative POSIX paths.
"""

import re

from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import sha256_hex

MANIFEST = "manifest.json"
INDEX = "index.parquet"
PARTS = "parts"
TABLES = "tables"
TOKENIZER = "tokenizer"
JOURNAL = "journal"
WORK = "tmp"
TOP_LEVEL = frozenset({MANIFEST, INDEX, PARTS, TABLES, TOKENIZER, JOURNAL, WORK})
# Files that hubs and people add to a cache; never read.
SIGNATURE = "manifest.sig"
BESIDE = frozenset({"README.md", "LICENSE", ".gitattributes", SIGNATURE})

# The set of tables that is selected while several are published at once.
TABLE_SET = f"{WORK}/tables.json"

PART_RECORD = "part.json"
SEQUENCES = "sequences.arrow"
TEXT = "text.arrow"
TARGETS = "targets.zarr"
ZARR_JSON = "zarr.json"
ARRAY_NAMES = ("row", "id", "times", "logprob", "hidden", "state")

MAX_RECORD_BYTES = 1 << 20
PART_NAME = re.compile(r"^[0-9]{5,7}$")
JOURNAL_NAME = re.compile(r"^[0-9]{5,7}\.json$")
ATTEMPT_LETTERS = 16


def part_dir(number: int) -> str:
    """The folder of a part."""
    return f"{PARTS}/{number:05d}"


def attempt(record: bytes) -> str:
    """The folder inside a part's for its files in stores without rename, named by the digest of the part's record."""
    return sha256_hex(record)[:ATTEMPT_LETTERS]


def within_part(name: str) -> tuple[str, str] | None:
    """The folder of a part and the name of a file in it; None for other files."""
    top, _, rest = name.partition("/")
    number, _, file = rest.partition("/")
    return (f"{top}/{number}", file) if top == PARTS and PART_NAME.match(number) and file else None


def table_file(name: str) -> str:
    """The file of a table."""
    return f"{TABLES}/{name}.bin"


def table_aside(sha256: str) -> str:
    """A table before its set is selected, in stores that cannot publish several at once."""
    return f"{WORK}/{TABLES}/{sha256}.bin"


def journal_file(number: int) -> str:
    """The journal of a part: worker, machine and speed, outside of every digest."""
    return f"{JOURNAL}/{number:05d}.json"


def array_metadata(array: str) -> str:
    """The zarr.json of an array, within its part."""
    return f"{TARGETS}/{array}/{ZARR_JSON}"


def array_shard(array: str) -> str:
    """The one shard of an array, within its part; two-dimensional arrays have one more index in its name."""
    return f"{TARGETS}/{array}/c/0" if array in ("id", "times", "logprob") else f"{TARGETS}/{array}/c/0/0"


def array_names(manifest: Manifest) -> tuple[str, ...]:
    """The arrays that every part of a cache has."""
    return tuple(name for name in ARRAY_NAMES if getattr(manifest.arrays, name) is not None)


def part_files(manifest: Manifest, lengths: dict[str, int]) -> set[str]:
    """The required files of a part, given the length of each array (an empty array has no shard)."""
    names = {SEQUENCES, f"{TARGETS}/{ZARR_JSON}"} | ({TEXT} if manifest.data.text else set())
    for array in array_names(manifest):
        names.add(array_metadata(array))
        if lengths[array]:
            names.add(array_shard(array))
    return names
