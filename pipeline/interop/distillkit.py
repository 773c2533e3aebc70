"""DistillKit's format: `input_ids` with packed values and ids, in the recommended codec or the legacy one.

In: its Parquet columns, and its codec settings (compression_config.yaml). Out: `SourceRow`s. Row t predicts token
t + 1; the last row predicts a token that does not exist and is dropped. Legacy values are logits minus an unknown
constant, so the stored ids are normalized to add up to 1 and the tail is unknown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.config_file import read_file
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import FormatInfo, FormatOption
from kdpipe.pipeline.interop import distillkit_codec as codec
from kdpipe.pipeline.interop.fields import Bools, integers, lists_of_integers, lists_of_numbers
from kdpipe.pipeline.interop.source_files import choose_columns
from kdpipe.pipeline.interop.validated_row import SourceRow, aligned
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import DistillkitCodec, DistillkitLegacyCodec, ImportSettings
from kdpipe.schemas.records import Record, explain
from kdpipe.schemas.strict_json import canonical

CODEC_FILE = "compression_config.yaml"
LEGACY = "legacy_logit_compression"
# Largest sum of a row's fitted probabilities: up to 2.7 measured for small trained teachers under the budget setting,
# 100 for sharper ones. Without a constant term, settings of another codec show only as sums of ten or more.
MAX_FITTED_MASS, MAX_UNCHECKED_MASS = 1000.0, 8.0
# Polynomial terms in memory at a time.
MAX_NUMBERS = 1 << 23
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
LEGACY_COLUMNS = ("input_ids", "packed_indices", "exact_values", "coeffs")
Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
R = TypeVar("R", bound=Record)


@final
class Distillkit:
    """DistillKit's packed columns."""

    options: ClassVar[tuple[FormatOption, ...]] = ("codec",)

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        self._codec = read_codec(settings)
        is_legacy = isinstance(self._codec, DistillkitLegacyCodec)
        if is_legacy and settings.tail == "rest":
            raise ConfigError(
                "--tail rest: the legacy codec stores logits without their normalizer, so the tail is unknown",
                hint="omit --tail",
            )
        choose_columns(files, LEGACY_COLUMNS if is_legacy else COLUMNS, ())
        tail = settings.tail or ("unknown" if is_legacy else "rest")
        self.info = FormatInfo(tail=tail, k=self._codec.k, has_loss_mask=False, alignment="row t predicts token t + 1")

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        tokens = integers(columns, "input_ids")
        legacy = isinstance(self._codec, DistillkitLegacyCodec)
        decoded = list(_legacy(self._codec, columns) if legacy else _recommended(self._codec, columns))  # type: ignore[arg-type]  # as `legacy` states
        counts = np.full(sum(len(ids) for ids, _ in decoded), self._codec.k, np.int64)
        joined = [np.concatenate([part[i].ravel() for part in decoded]) if decoded else np.zeros(0) for i in (0, 1)]
        ids = aligned(NumberLists(joined[0].astype(np.int64), counts), len(tokens), own=False)
        values = NumberLists(joined[1].astype(np.float64), ids.counts)
        raw = SourceRow(tokens=tokens, trained=np.ones(len(tokens), bool), ids=ids, values=values)
        if isinstance(self._codec, DistillkitLegacyCodec) or self._codec.exact_k == self._codec.k:
            return raw
        is_fitted = np.tile(np.arange(self._codec.k) >= self._codec.exact_k, len(ids.values) // self._codec.k)
        most = MAX_FITTED_MASS if _has_constant(self._codec) else MAX_UNCHECKED_MASS
        return replace(raw, is_fitted=is_fitted, max_mass=most)


def read_codec(settings: ImportSettings) -> DistillkitCodec | DistillkitLegacyCodec:
    """The codec settings, from the given file or from the one next to the data."""
    path = Path(settings.codec).expanduser() if settings.codec else _default_file(Path(settings.source).expanduser())
    values = read_file(path)
    if LEGACY in values:
        return _record(DistillkitLegacyCodec, values[LEGACY], path)
    return _record(DistillkitCodec, values.get("logprob_compressor", values), path)


def _default_file(source: Path) -> Path:
    path = (source if source.is_dir() else source.parent) / CODEC_FILE
    if not path.is_file():
        raise ConfigError(
            f"no {CODEC_FILE} next to the data: DistillKit's data files do not contain their codec settings",
            hint="name the settings file with --codec",
        )
    return path


def _record(kind: type[R], values: Any, path: Path) -> R:
    try:
        return kind.model_validate_json(canonical(values))
    except ValidationError as error:
        raise ConfigError(
            f"{path}: {explain(kind, error)}", hint="use the file that DistillKit wrote together with the data"
        ) from None


def _recommended(settings: DistillkitCodec, columns: Mapping[str, Any]) -> Iterator[Arrays]:
    values = _rectangle(lists_of_integers(columns, COLUMNS[1]), codec.value_bytes(settings), COLUMNS[1])
    ids = _rectangle(lists_of_integers(columns, COLUMNS[2]), codec.id_bytes(settings), COLUMNS[2])
    if len(values) != len(ids):
        raise BadRow(f"{COLUMNS[1]} has {len(values):,} rows, {COLUMNS[2]} has {len(ids):,}")
    for rows in _slices(len(ids), settings.k * (1 + len(settings.polynomial_terms or ()))):
        packed = [_bytes(array[rows], name) for array, name in ((ids, COLUMNS[2]), (values, COLUMNS[1]))]
        decoded = codec.decode_values(settings, packed[1])
        if _has_constant(settings):
            _refuse_unfitted(settings, codec.beyond_codec(settings, packed[1]), decoded, rows.start)
        yield codec.decode_ids(settings, packed[0]), decoded


def _has_constant(settings: DistillkitCodec) -> bool:
    return settings.exact_k < settings.k and 0 in (settings.polynomial_terms or ())


def _refuse_unfitted(settings: DistillkitCodec, wrong: Bools, values: npt.NDArray[np.float32], first: int) -> None:
    """Refuse values that cannot be a fit of probabilities: damaged data, or settings of another codec."""
    if wrong.any():
        row = int(wrong.argmax())
        with np.errstate(over="ignore"):
            mass = np.exp(values[row].astype(np.float64)).sum()
        raise BadRow(
            f"after token {first + row}, probabilities add up to {mass:.4g}, impossible for {settings.k} fitted ones:"
            " damaged data, or wrong codec settings"
        )


def _legacy(settings: DistillkitLegacyCodec, columns: Mapping[str, Any]) -> Iterator[Arrays]:
    words = _rectangle(_words(columns), codec.legacy_words(settings), "packed_indices")
    exact = _rectangle(lists_of_numbers(columns, "exact_values"), settings.exact_k, "exact_values")
    coefficients = _rectangle(lists_of_numbers(columns, "coeffs"), codec.legacy_terms(settings), "coeffs")
    if not len(words) == len(exact) == len(coefficients):
        raise BadRow(f"its columns have different lengths: {len(words):,}, {len(exact):,} and {len(coefficients):,}")
    for rows in _slices(len(words), settings.k * (1 + codec.legacy_terms(settings))):
        ids = codec.decode_legacy_ids(settings, words[rows].view(np.uint64))
        logits = codec.decode_legacy_values(
            settings, exact[rows].astype(np.float32), coefficients[rows].astype(np.float32)
        )
        if not np.isfinite(logits).all():
            raise BadRow(
                f"after token {rows.start + int((~np.isfinite(logits)).any(axis=1).argmax())}, a logit is not finite"
            )
        yield ids, normalized(logits)


def _slices(n_rows: int, numbers_per_row: int) -> Iterator[slice]:
    size = max(1, MAX_NUMBERS // numbers_per_row)
    return (slice(first, first + size) for first in range(0, n_rows, size))


def normalized(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-softmax over the stored ids."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values.astype(np.float32)


def _words(columns: Mapping[str, Any]) -> NumberLists:
    """64-bit words; the highest bit may be set."""
    value = columns.get("packed_indices")
    if isinstance(value, NumberLists) and value.values.dtype == np.uint64:
        return NumberLists(value.values.view(np.int64), value.counts)
    return lists_of_integers(columns, "packed_indices")


def _rectangle(lists: NumberLists, width: int, name: str) -> npt.NDArray[Any]:
    """Lists of equal width as a matrix."""
    wrong = lists.counts != width
    if wrong.any():
        row = int(wrong.argmax())
        raise BadRow(
            f"{name} has {lists.counts[row]:,} numbers after token {row}, expected {width:,}:"
            " truncated data, or wrong codec settings"
        )
    return lists.values.reshape(len(lists.counts), width)


def _bytes(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise BadRow(f"{name} contains {int(values.max())}, expected bytes")
    return values.astype(np.uint8)
