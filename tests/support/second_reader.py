"""A second reader of caches, written from docs/cache-format.md alone: slow, float64, one row at a time.

In: the folder of a sealed cache. Out: its contents, sequence by sequence.
"""

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

Doubles = npt.NDArray[np.float64]
NAN_CODE, MINUS_INFINITY_CODE = 65535, 65534
STORED = {"uint32": "<u4", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True, kw_only=True)
class Read:
    """One sequence; `scalars` by the names of their columns, vectors by layer."""

    split: str
    tokens: list[int]
    token_bytes: list[int]
    loss_mask: list[bool]
    document_starts: list[int]
    documents: list[int]
    digests: list[bytes]
    columns: dict[str, list[Any]]
    pooled: dict[int, Doubles]
    texts: list[str] | None
    count: list[int]
    n_exact: list[int]
    ids: list[int]
    logprobs: Doubles
    weights: Doubles
    times: list[int] | None
    scalars: dict[str, Doubles]
    hidden: dict[int, Doubles]
    state: Doubles | None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A whole cache."""

    cache_id: str
    manifest: dict[str, Any]
    tables: dict[str, npt.NDArray[Any]]
    sequences: list[Read]


def read_cache(path: Path) -> Contents:
    """Read and check everything."""
    data = (path / "manifest.json").read_bytes()
    manifest: dict[str, Any] = json.loads(data)
    sealed = (path / "index.parquet").read_bytes()
    place = sealed.rfind(b"kdpipe.sha256") + len("kdpipe.sha256") + 2
    assert _sha256(sealed[:place] + b"0" * 64 + sealed[place + 64 :]) == sealed[place : place + 64].decode()
    index = pq.read_table(path / "index.parquet")
    parts = [(path / "parts" / f"{row['part']:05d}", row) for row in index.to_pylist()]
    identity = _canonical_sha256({"manifest": _sha256(data), "parts": [row["sha256"] for _, row in parts]})
    assert index.schema.metadata[b"kdpipe.cache_id"].decode() == identity
    tables = {table["name"]: _table(path, table) for table in manifest["tables"]}
    sequences = [read for folder, row in parts for read in _Part(folder, row, manifest, tables).sequences()]
    return Contents(cache_id=identity, manifest=manifest, tables=tables, sequences=sequences)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _sha256(text.encode() + b"\n")


def _table(path: Path, table: dict[str, Any]) -> npt.NDArray[Any]:
    numbers = np.fromfile(path / "tables" / f"{table['name']}.bin", STORED[table["dtype"]]).reshape(table["shape"])
    if table["dtype"] == "bfloat16":
        return (numbers.astype("<u4") << 16).view("<f4").astype(np.float64)
    return numbers if table["dtype"] == "uint32" else numbers.astype(np.float64)


def number(quantizer: dict[str, Any], code: int) -> float:
    """A code's number under a linear or log_odds quantizer."""
    assert 0 <= code < 65536
    if code == NAN_CODE:
        return math.nan
    if code == MINUS_INFINITY_CODE:
        return -math.inf
    x: float = (code - quantizer["zero"]) * quantizer["step"]
    return float(quantizer["sign"] * x) if quantizer["kind"] == "linear" else -math.log1p(math.exp(-x))


def complement(quantizer: dict[str, Any], code: int) -> float:
    """log(1 - exp(number)) of a code under a log_odds quantizer."""
    if code == MINUS_INFINITY_CODE:
        return 0.0
    return -math.log1p(math.exp((code - quantizer["zero"]) * quantizer["step"]))


def vectors(coded: bytes, specs: list[dict[str, int]]) -> list[list[float]]:
    """The consecutive vectors in some bytes."""
    found = []
    place = 0
    for spec in specs:
        width, group = spec["width"], spec["group"]
        n_groups = -(-width // group)
        numbers = np.frombuffer(coded, "i1", width, place)
        scales = np.frombuffer(coded, "<f4", n_groups, place + width)
        found.append([float(np.float32(numbers[i]) * scales[i // group]) for i in range(width)])
        place += width + 4 * n_groups
    assert place == len(coded)
    return found


def _layers(rows: list[bytes], specs: list[dict[str, int]]) -> dict[int, Doubles]:
    decoded = [vectors(row, specs) for row in rows]
    return {spec["layer"]: np.array([row[i] for row in decoded]) for i, spec in enumerate(specs)}


class _Part:
    def __init__(
        self, folder: Path, row: dict[str, Any], manifest: dict[str, Any], tables: dict[str, npt.NDArray[Any]]
    ) -> None:
        data = (folder / "part.json").read_bytes()
        assert _sha256(data) == row["sha256"]
        self.record: dict[str, Any] = json.loads(data)
        self.manifest, self.targets = manifest, manifest["targets"]
        self.ids_by_rank = tables["ids_by_rank"].tolist()
        self._folder = folder
        self._check_files()
        self.arrays = self._arrays()
        columns = manifest["arrays"]["row"]["columns"]
        self.quantizers = {column["name"]: column["quantizer"] for column in columns}
        self.columns = {column["name"]: self.arrays["row"][:, i].tolist() for i, column in enumerate(columns)}
        self.table: Any = pa.ipc.open_file(str(folder / "sequences.arrow")).read_all()
        self.texts = self._texts()

    def _check_files(self) -> None:
        for name, file in self.record["files"].items():
            data = (self._folder / name).read_bytes()
            assert (len(data), _sha256(data)) == (file["bytes"], file["sha256"]), name
        for name, table in self.record["tables"].items():
            assert _sha256((self._folder.parents[1] / "tables" / f"{name}.bin").read_bytes()) == table["sha256"]
        for array, sha256 in self.record["indexes"].items():
            shard = self._folder / "targets.zarr" / array / ("c/0/0" if array in ("row", "hidden", "state") else "c/0")
            data = shard.read_bytes()
            n = self._n_chunks(array)
            assert _sha256(data[len(data) - 20 * n - 4 :]) == sha256
            places = np.frombuffer(data[len(data) - 16 * n - 4 : -4], "<u8").reshape(n, 2).tolist()
            again = b"".join(data[offset + size - 4 : offset + size] for offset, size in places)
            assert again == data[len(data) - 20 * n - 4 : len(data) - 16 * n - 4]

    def _n_chunks(self, array: str) -> int:
        record, spec = self.record, self.manifest["arrays"][array]
        if array in ("row", "hidden", "state"):
            columns = len(spec["columns"]) if array == "row" else 1
            return -(-int(record["n_rows"]) // int(spec["chunk_rows"])) * columns
        n_draws = record["n_draws"] if array != "logprob" or self.targets["draw_values"] else 0
        length = n_draws + (record["n_exact"] if array != "times" else 0)
        return -(-length // int(spec["chunk_entries"]))

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        with warnings.catch_warnings():
            # numcodecs.pcodec is not in the zarr specification, and zarr warns about it.
            warnings.simplefilter("ignore")
            group: Any = zarr.open_group(str(self._folder / "targets.zarr"), mode="r", zarr_format=3)
            names = [name for name, spec in self.manifest["arrays"].items() if spec is not None]
            return {name: np.asarray(group[name][...]) for name in names}

    def _texts(self) -> list[str]:
        if not self.manifest["data"]["text"]:
            return []
        texts: list[str] = []
        table: Any = pa.ipc.open_file(str(self._folder / "text.arrow")).read_all()
        for row in table.to_pylist():
            data = pa.Codec("zstd").decompress(row["frame"], sum(row["lengths"]), asbytes=True)
            place = 0
            for length in row["lengths"]:
                texts.append(data[place : place + length].decode())
                place += length
        return texts

    def sequences(self) -> list[Read]:
        found, start, document = [], 0, 0
        for row in self.table.to_pylist():
            found.append(self._sequence(row, start, document))
            start, document = start + row["n_rows"], document + len(row["documents"])
        assert start == self.record["n_rows"]
        return found

    def _sequence(self, row: dict[str, Any], start: int, document: int) -> Read:
        span = range(start, start + row["n_rows"])
        hidden, keep = self.manifest["hidden"], self.targets["keep"]
        entries = _Entries(self, row["exact_start"], row["draw_start"])
        for t in span:
            entries.add_row(t)
        state = None
        if keep["kind"] == "state":
            state = np.array([vectors(self.arrays["state"][t].tobytes(), [keep])[0] for t in span])
        return Read(
            split=self.record["split"],
            tokens=[self.ids_by_rank[self.columns["token"][t]] for t in span],
            token_bytes=[self.columns["token_bytes"][t] for t in span],
            loss_mask=[self.columns["loss_mask"][t] == 1 for t in span],
            document_starts=row["document_starts"],
            documents=row["documents"],
            digests=row["digests"],
            columns={column["name"]: row[f"column:{column['name']}"] for column in self.manifest["data"]["columns"]},
            pooled=_layers(row["pooled"], hidden["pooled"]) if hidden["pooled"] else {},
            texts=self.texts[document : document + len(row["documents"])] if self.texts else None,
            count=[self.n_exact(t) + self.n_draws(t) for t in span],
            n_exact=[self.n_exact(t) for t in span],
            ids=entries.ids,
            logprobs=np.array(entries.logprobs),
            weights=np.array(entries.weights),
            times=entries.times if keep["kind"] == "sampled" else None,
            scalars=self._scalars(span, entries),
            hidden=_layers([self.arrays["hidden"][t].tobytes() for t in span], hidden["rows"])
            if hidden["rows"]
            else {},
            state=state,
        )

    def _scalars(self, span: range, entries: "_Entries") -> dict[str, Doubles]:
        """Step 8 of Decoding: the next token's log p is that of an exact id, where it is one."""
        found = {
            name: np.array([number(quantizer, self.columns[name][t]) for t in span])
            for name, quantizer in self.quantizers.items()
            if quantizer["kind"] in ("linear", "log_odds")
        }
        place = 0
        for row, t in enumerate(span):
            following = self.ids_by_rank[self.columns["token"][t + 1]] if t + 1 < span.stop else -1
            for i in range(place, place + self.n_exact(t)):
                if entries.ids[i] == following:
                    assert math.isnan(found["label_logprob"][row])
                    found["label_logprob"][row] = entries.logprobs[i]
            place += self.n_exact(t) + self.n_draws(t)
        return found

    def n_exact(self, t: int) -> int:
        return int(self.columns["n_exact"][t]) if "n_exact" in self.columns else 0

    def n_draws(self, t: int) -> int:
        return int(self.columns["n_draws"][t]) if "n_draws" in self.columns else 0


class _Entries:
    """Steps 3 to 7 and 9 of Decoding, a row at a time."""

    def __init__(self, part: _Part, exact_start: int, draw_start: int) -> None:
        self._part, self._has_draw_values = part, part.targets["draw_values"]
        self._id, self._draw = exact_start + draw_start, draw_start
        self._value = exact_start + (draw_start if self._has_draw_values else 0)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.weights: list[float] = []
        self.times: list[int] = []

    def add_row(self, t: int) -> None:
        part = self._part
        n_exact, n_draws = part.n_exact(t), part.n_draws(t)
        if n_exact + n_draws == 0:
            return
        coded = part.arrays["id"][self._id : self._id + n_exact + n_draws].tolist()
        ranks = coded[:n_exact] + _sums(coded[n_exact:])
        self.ids += [part.ids_by_rank[rank] for rank in ranks]
        self._id += n_exact + n_draws
        n_values = n_exact + (n_draws if self._has_draw_values else 0)
        values = part.arrays["logprob"][self._value : self._value + n_values].tolist()
        self._value += n_values
        quantizer = part.manifest["arrays"]["logprob"]["quantizer"]
        exact = [number(quantizer, code) for code in _sums(values[:n_exact])]
        draws = [number(quantizer, code) for code in values[n_exact:]] or [math.nan] * n_draws
        if "log_tail" in part.quantizers:
            correction = complement(part.quantizers["log_tail"], part.columns["log_tail"][t]) - _log(
                sum(map(math.exp, exact))
            )
            assert abs(correction) <= quantizer["step"]
            exact = [value + correction for value in exact]
        self.logprobs += exact + draws
        self._weigh(t, exact, n_draws)

    def _weigh(self, t: int, exact: list[float], n_draws: int) -> None:
        part, temperature = self._part, self._part.targets["target_temperature"]
        weights, tail = [math.exp(value) for value in exact], "log_tail"
        if temperature != 1 and "log_tail" in part.quantizers:
            tail, name = "drawn_log_tail", f"log_z@{temperature!r}"
            log_z = number(part.quantizers[name], part.columns[name][t])
            weights = [math.exp(value / temperature - log_z) for value in exact]
            mass = math.exp(complement(part.quantizers[tail], part.columns[tail][t]))
            total = sum(weights)
            weights = [weight * mass / total for weight in weights]
        if n_draws:
            left = math.exp(number(part.quantizers[tail], part.columns[tail][t]))
            times = [1] * n_draws
            if part.targets["keep"]["kind"] == "sampled":
                times = [code + 1 for code in part.arrays["times"][self._draw : self._draw + n_draws].tolist()]
                self.times += times
            weights += [left * time / sum(times) for time in times]
            self._draw += n_draws
        self.weights += weights


def _sums(differences: list[int]) -> list[int]:
    found, total = [], 0
    for difference in differences:
        total = (total + difference) % (1 << 32)
        found.append(total)
    return found


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def dense(contents: Contents, read: Read) -> Doubles:
    """Log-probabilities over the whole vocabulary at the target temperature; NaN where loss_mask is false."""
    targets, n_vocabulary = contents.manifest["targets"], contents.manifest["tokenizer"]["vocabulary_size"]
    p = np.full((len(read.tokens), n_vocabulary), np.nan)
    if read.state is not None:
        return np.where(np.array(read.loss_mask)[:, None], _from_states(contents, read.state), np.nan)
    place = 0
    for t, count in enumerate(read.count):
        ids, weights = read.ids[place : place + count], read.weights[place : place + count]
        place += count
        if read.loss_mask[t]:
            spread = targets["keep"]["kind"] not in ("threshold", "sampled") and count < n_vocabulary
            p[t] = max(0.0, 1 - weights.sum()) / (n_vocabulary - count) if spread else 0.0
            p[t, ids] = weights
    with np.errstate(divide="ignore"):
        return np.log(p)


def _from_states(contents: Contents, states: Doubles) -> Doubles:
    keep = contents.manifest["targets"]["keep"]
    logits = states @ contents.tables["output_head"].T
    if keep["head_bias"]:
        logits = logits + contents.tables["output_bias"]
    logits = logits * keep["logit_scale"]
    if keep["soft_cap"] is not None:
        logits = keep["soft_cap"] * np.tanh(logits / keep["soft_cap"])
    logits = logits / contents.manifest["targets"]["target_temperature"]
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
