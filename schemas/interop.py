"""Settings and reports of `kdpipe cache import` and `kdpipe cache export`, and DistillKit's codec settings."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from kdpipe.schemas.choices import Align, ExportFormat, ImportedTail, ImportFormat, SplitName, StatedTail
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import MAX_VOCABULARY
from kdpipe.schemas.records import Record, explain
from kdpipe.schemas.summary import ScaledSummary
from kdpipe.schemas.target_kinds import MAX_ENTRIES

FloatName = Literal["float16", "bfloat16", "float32", "float64"]
Term = Annotated[int, Field(ge=0, le=16)] | Literal["sqrt", "exp"]


class ResidualBin(Record):
    """`num_elements` residuals of `element_bits` each, with one common scale."""

    scale_dtype: FloatName
    element_bits: int = Field(ge=1, le=63)
    num_elements: int = Field(ge=1, le=MAX_ENTRIES)


class DistillkitCodec(Record):
    """DistillKit's `DistributionQuantizationConfig` with its defaults; `d` is the vocabulary size."""

    d: int = Field(ge=2, le=MAX_VOCABULARY)
    k: int = Field(ge=1, le=MAX_ENTRIES)
    exact_k: int = Field(ge=0, le=MAX_ENTRIES)
    exact_dtype: FloatName = "float32"
    polynomial_terms: Annotated[tuple[Term, ...], Field(max_length=32)] | None = None
    term_dtype: FloatName = "float32"
    residual_bins: Annotated[tuple[ResidualBin, ...], Field(max_length=64)]
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "DistillkitCodec":
        rest = self.k - self.exact_k
        if rest < 0 or self.k > self.d:
            raise ValueError(f"expected exact_k <= k <= d, found {self.exact_k}, {self.k} and {self.d}")
        if sum(residual_bin.num_elements for residual_bin in self.residual_bins) > rest:
            raise ValueError(f"residual_bins have more elements than the {rest} values that are not exact")
        if rest and not self.polynomial_terms and not self.residual_bins:
            raise ValueError(f"neither polynomial_terms nor residual_bins encode the {rest} values that are not exact")
        return self


class DistillkitLegacyCodec(Record):
    """DistillKit's `LegacyLogitCompressionConfig`."""

    k: int = Field(ge=1, le=MAX_ENTRIES)
    exact_k: int = Field(ge=0, le=MAX_ENTRIES)
    polynomial_degree: int = Field(ge=0, le=32)
    vocab_size: int = Field(ge=2, le=MAX_VOCABULARY)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: FloatName = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> "DistillkitLegacyCodec":
        if not self.exact_k <= self.k <= self.vocab_size:
            raise ValueError(
                f"expected exact_k <= k <= vocab_size, found {self.exact_k}, {self.k} and {self.vocab_size}"
            )
        return self


class ImportSettings(Record):
    """Settings of `kdpipe cache import`; the format determines `tail`, `align` and `columns` if not given."""

    source_format: ImportFormat
    source: str = Field(min_length=1)
    data_split: str | None = Field(default=None, min_length=1)
    tokenizer: str = Field(min_length=1)
    out: str = Field(min_length=1)
    codec: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    tail: StatedTail | None = None
    align: Align | None = None
    val_fraction: float = Field(default=0.0, ge=0, lt=1)
    pack: bool = True
    limit: int | None = Field(default=None, ge=1)
    max_row_bytes: int = Field(default=1 << 26, ge=1 << 10, le=1 << 30)
    teacher_name: str | None = Field(default=None, min_length=1, max_length=2000)
    teacher_revision: str | None = Field(default=None, min_length=1, max_length=2000)
    teacher_license: str | None = Field(default=None, min_length=1, max_length=2000)
    trust_remote_code: bool = False


class ImportReport(Record):
    """The result of an import; `unknown` lists the information that the source lacks.

    `padding_entries` were dropped; `rows_without_targets` are not trained on; `scaled_rows` had a sum of probabilities
    above 1 and were scaled to 1 (`scaled`: by how much).
    """

    cache: str
    cache_id: str
    source_format: ImportFormat
    documents: int
    positions: int
    parts: int
    parts_made: int
    bytes: int
    entries_per_position: float
    tail: ImportedTail
    unknown: tuple[str, ...]
    padding_entries: int
    rows_without_targets: int
    scaled_rows: int
    scaled: ScaledSummary | None
    seconds: float


class ExportSettings(Record):
    """Settings of `kdpipe cache export`."""

    cache: str = Field(min_length=1)
    form: ExportFormat
    out: str = Field(min_length=1)
    split: SplitName | None = None


class TablesReport(Record):
    """The result of an export; `left_out` lists what the format cannot represent."""

    folder: str
    form: ExportFormat
    cache_id: str
    files: int
    files_made: int
    rows: int
    positions: int
    bytes: int
    left_out: tuple[str, ...]
    seconds: float


def import_settings(**given: Any) -> ImportSettings:
    """Validate the options of an import."""
    try:
        return ImportSettings(**given)
    except ValidationError as error:
        raise ConfigError(explain(ImportSettings, error), hint="see `kdpipe cache import --help`") from None


def export_settings(**given: Any) -> ExportSettings:
    """Validate the options of an export."""
    try:
        return ExportSettings(**given)
    except ValidationError as error:
        raise ConfigError(explain(ExportSettings, error), hint="see `kdpipe cache export --help`") from None
