"""manifest.json: what a cache is made from and how its bytes are read. Written first, never rewritten.

In: stage one's spec, or the file. Out: the record that reader, writer and verification obey.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdpipe.schemas import strict_json
from kdpipe.schemas.arrays import Arrays, LinearQuantizer, VectorArray, default_arrays
from kdpipe.schemas.cache_plan import CachePlan
from kdpipe.schemas.choices import OriginAction, TrainOn
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.member_tables import DEFAULT_BACKEND
from kdpipe.schemas.records import Record, read_record
from kdpipe.schemas.target_kinds import MAX_WIDTH, State
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, TargetSpec
from kdpipe.schemas.version import FormatVersion, check_version

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, Field(max_length=2000)]
LARGEST_LOG_Z_STEP = 1 / 1024
MAX_VOCABULARY = 1 << 24
# What a fingerprint is worked out from; the writer makes it where a teacher comes without.
TOKENIZER_JSON = "tokenizer.json"
MAX_TABLE_BYTES = 1 << 36


# A file name, at most one folder down: transformers keeps further chat templates in one.
TOKENIZER_FILE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,99})?$"


class FileRecord(Record):
    """Size and sha256 of a file."""

    bytes: int = Field(ge=0, le=1 << 40)
    sha256: Sha256


class TeacherRecord(Record):
    """The teacher: enough to load it again, and the license that its students inherit.

    Name and license are descriptive: `identity` distinguishes teachers. `hidden_size`, and `hub_id` where it is not the
    `name`, are written only where they are known, `backend` where it is not transformers.
    """

    name: ShortText
    revision: ShortText | None = None
    weights_sha256: Sha256 | None = None
    dtype: Literal["float32", "float16", "bfloat16", "float64", "quantized", "unknown"] = "float32"
    license: ShortText | None = None
    n_layers: int | None = Field(default=None, ge=0, le=10_000)
    hidden_size: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    full_distribution: bool = True
    remote_code: bool = False
    notes: tuple[ShortText, ...] = Field(default=(), max_length=64)
    hub_id: ShortText | None = None
    backend: str = Field(default=DEFAULT_BACKEND, pattern=r"^[a-z][a-z0-9_-]{0,31}$")

    @property
    def identity(self) -> dict[str, Any]:
        """Equal for equal teachers: weights by content, else by Hub id or name and revision, and how it was run."""
        values = self.model_dump(exclude={"name", "hub_id", "revision", "license", "hidden_size"})
        if self.weights_sha256 is None:
            values |= {"source": self.hub_id or self.name, "revision": self.revision}
        return values

    def described_as(self, other: "TeacherRecord") -> "TeacherRecord":
        """A copy with the descriptive fields of another record of this teacher; its license only where one is
        missing.
        """
        if self.identity != other.identity:
            return self
        license = self.license if self.license is not None and other.license is not None else other.license
        update = {"name": other.name, "hub_id": other.hub_id, "revision": other.revision, "license": license}
        return self.model_copy(update=update)

    @model_serializer(mode="wrap")
    def _without_unknown(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = inner(self)
        for name, unwritten in (("hidden_size", None), ("hub_id", None), ("backend", DEFAULT_BACKEND)):
            if getattr(self, name) == unwritten:
                written.pop(name, None)
        return written


class Tokenizer(Record):
    """The tokenizer by content: `fingerprint` compares two tokenizers, `files` are kept byte for byte in tokenizer/."""

    fingerprint: Sha256
    vocabulary_size: int = Field(ge=1, le=MAX_VOCABULARY)
    chat_template_sha256: Sha256 | None = None
    files: dict[Annotated[str, Field(pattern=TOKENIZER_FILE)], FileRecord] = Field(default_factory=dict, max_length=64)

    @model_validator(mode="after")
    def _with_vocabulary(self) -> "Tokenizer":
        if self.files and TOKENIZER_JSON not in self.files:
            raise ValueError(f"files lacks {TOKENIZER_JSON}, it has {', '.join(sorted(self.files)[:4])}")
        return self


class SourceColumn(Record):
    """A column of the data that is stored for each document."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    type: Literal["string", "int64", "float64", "bool"]


class Data(Record):
    """The documents by content, and what the cache stores of them besides tokens."""

    fingerprint: Sha256
    source: ShortText
    columns: tuple[SourceColumn, ...] = Field(default=(), max_length=64)
    text: bool = False
    train_on: TrainOn = "all"

    @model_validator(mode="after")
    def _distinct(self) -> "Data":
        if len({column.name for column in self.columns}) != len(self.columns):
            raise ValueError("duplicate column")
        return self


class Table(Record):
    """An array that is fitted once for all parts: little-endian numbers in tables/NAME.bin."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    dtype: Literal["uint32", "float32", "float16", "bfloat16"]
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 32)], ...] = Field(min_length=1, max_length=3)

    @property
    def n_bytes(self) -> int:
        """The size of its file."""
        return math.prod(self.shape) * (4 if self.dtype in ("uint32", "float32") else 2)


class Origin(Record):
    """An operation on other caches that made this one."""

    action: OriginAction
    caches: tuple[Sha256, ...] = Field(max_length=4096)
    note: ShortText = ""


class Manifest(Record):
    """The whole of manifest.json."""

    format: FormatVersion = FormatVersion()
    kdpipe: ShortText
    seed: int = Field(ge=0, lt=1 << 63)
    teacher: TeacherRecord | None
    tokenizer: Tokenizer
    data: Data
    plan: CachePlan
    targets: TargetSpec
    hidden: HiddenSpec = HiddenSpec()
    tables: tuple[Table, ...] = Field(default=(), max_length=256)
    arrays: Arrays
    history: tuple[Origin, ...] = Field(default=(), max_length=1000)
    _sha256: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if (self.teacher is None) == self.targets.keep.has_teacher:
            kind, needs = self.targets.keep.kind, "need a" if self.teacher is None else "cannot have a"
            raise ValueError(f"targets of kind {kind} {needs} teacher")
        _check_teacher(self)
        _check_arrays(self)
        _check_tables(self)
        return self

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are: every id is below."""
        return self.tokenizer.vocabulary_size

    def table(self, name: str) -> Table:
        """The table of a name."""
        for table in self.tables:
            if table.name == name:
                return table
        raise ConfigError(f"there is no table {name!r}", hint=f"there are {', '.join(t.name for t in self.tables)}")

    def with_hidden_size_of(self, other: "Manifest") -> "Manifest":
        """A copy with the hidden size of the other's teacher where its own has none: older caches lack the key."""
        if self.teacher is None or other.teacher is None or self.teacher.hidden_size is not None:
            return self
        teacher = self.teacher.model_copy(update={"hidden_size": other.teacher.hidden_size})
        return Manifest.model_validate({**dict(self), "teacher": teacher})

    def described_as(self, other: "Manifest") -> "Manifest":
        """A copy with the other's descriptive fields of the teacher, where both have the same teacher."""
        own = self.with_hidden_size_of(other)
        if own.teacher is None or other.teacher is None:
            return own
        return own.model_copy(update={"teacher": own.teacher.described_as(other.teacher)})

    @property
    def sha256(self) -> str:
        """The digest of manifest.json, whose bytes are the canonical form (and more, in a newer minor version)."""
        if not self._sha256:
            self._sha256 = strict_json.sha256_hex(self.to_json())
        return self._sha256


def read_manifest(data: bytes, what: str) -> Manifest:
    """Read manifest.json, of this format version or of a newer one that stays readable."""
    newer = check_version(strict_json.parse(data, what, damaged=CacheDamaged), what)
    manifest = read_record(Manifest, data, what, ignore_unknown=newer, damaged=CacheDamaged)
    manifest._sha256 = strict_json.sha256_hex(data)
    return manifest


def expected_tables(targets: TargetSpec, hidden: HiddenSpec, vocabulary_size: int) -> tuple[Table, ...]:
    """The tables that format 1.1 asks for: frequency ranks always, the head of states, fitted projections."""
    tables = [Table(name="ids_by_rank", dtype="uint32", shape=(vocabulary_size,))]
    keep = targets.keep
    if isinstance(keep, State):
        tables.append(Table(name="output_head", dtype=keep.head_dtype, shape=(vocabulary_size, keep.width)))
        if keep.head_bias:
            tables.append(Table(name="output_bias", dtype="float32", shape=(vocabulary_size,)))
    for role, vectors in (("pooled", hidden.pooled), ("rows", hidden.rows)):
        for vector in vectors:
            if isinstance(vector.projection, PcaProjection):
                name, wide = f"pca_{role}_{vector.layer}", vector.projection.input_width
                tables.append(Table(name=name, dtype="float32", shape=(vector.width, wide)))
                tables.append(Table(name=f"{name}_mean", dtype="float32", shape=(wide,)))
    return tuple(tables)


def _check_teacher(manifest: Manifest) -> None:
    """Refuse targets that need a full distribution from a teacher without one, and layers that it does not have."""
    teacher, targets = manifest.teacher, manifest.targets
    if teacher is None:
        return
    if not teacher.full_distribution:
        needs = [name for name in ("entropy", "boundary", "temperatures") if getattr(targets, name)]
        needs += [f"kind {targets.keep.kind}"] if targets.keep.full_distribution else []
        if needs:
            raise ValueError(f"{' and '.join(needs)} need a teacher whose full distribution was seen")
    layers = [vector.layer for vector in (*manifest.hidden.pooled, *manifest.hidden.rows)]
    if teacher.n_layers is not None and max(layers, default=0) > teacher.n_layers:
        raise ValueError(f"hidden names layer {max(layers)}, the teacher has {teacher.n_layers}")


def _check_arrays(manifest: Manifest) -> None:
    """Columns and arrays are those of the format; steps, chunks and levels are free within their bounds."""
    expected = default_arrays(manifest.targets, manifest.hidden, manifest.vocabulary_size)
    stated = [(column.name, column.quantizer.kind) for column in manifest.arrays.row.columns]
    wanted = [(column.name, column.quantizer.kind) for column in expected.row.columns]
    if stated != wanted:
        raise ValueError(f"arrays.row.columns are {_names(stated)}, these targets need {_names(wanted)}")
    for column in manifest.arrays.row.columns:
        if (
            column.name.startswith("log_z")
            and isinstance(column.quantizer, LinearQuantizer)
            and column.quantizer.step > LARGEST_LOG_Z_STEP
        ):
            raise ValueError(f"the step of {column.name} is {column.quantizer.step}, at most 1/1024 nat is allowed")
    for name in ("id", "times", "logprob", "hidden", "state"):
        has, should = getattr(manifest.arrays, name), getattr(expected, name)
        if (has is None) != (should is None):
            raise ValueError(f"arrays.{name} {'is there' if has is not None else 'is missing'}, against the targets")
        if isinstance(has, VectorArray) and has.row_bytes != should.row_bytes:
            raise ValueError(f"arrays.{name}.row_bytes is {has.row_bytes}, the vectors take {should.row_bytes}")


def _check_tables(manifest: Manifest) -> None:
    names = [table.name for table in manifest.tables]
    if len(set(names)) != len(names):
        raise ValueError("duplicate table")
    for table in expected_tables(manifest.targets, manifest.hidden, manifest.vocabulary_size):
        if table not in manifest.tables:
            raise ValueError(f"tables lacks {table.name} of type {table.dtype} and shape {list(table.shape)}")
    if sum(table.n_bytes for table in manifest.tables) > MAX_TABLE_BYTES:
        raise ValueError(f"tables hold more than {MAX_TABLE_BYTES:,} bytes")


def _names(columns: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} ({quantizer})" for name, quantizer in columns)
