"""A model folder on disk, looked at before anything is loaded: is all of it there, and what is its digest?

In: a folder as transformers saves it. Out: its weight files, their digest, its license; or what is wrong in two lines.
"""

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import sha256_file

# Where a run saves its student.
FINAL = "final"
# In the order in which transformers looks for them; an index names the shards of a large model.
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The header of a safetensors file is at most 100 MB (its specification).
MAX_HEADER_BYTES = 100_000_000
DOWNLOAD_AGAIN = "download it again: it was cut short, or copied without all of its files"


def local_folder(name: str) -> Path | None:
    """Find the folder that a name stands for; None where it is a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{name} is a file", hint="name the folder that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ConfigError(
            f"there is no folder {name}", hint="name a folder that holds a model, or a hub id as in org/name"
        )
    return None


def check_folder(folder: Path) -> None:
    """Refuse a folder without a config, an adapter without its base, and a model that is not whole."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"{folder} holds an adapter and no model", hint="merge it into its base model, and name the result"
            )
        raise ConfigError(
            f"{folder} has no config.json", hint="name the folder that save_pretrained or a download made"
        )
    for name in weight_files(folder):
        if name.endswith(".safetensors"):
            _check_safetensors(folder / name)


def weight_files(folder: Path) -> tuple[str, ...]:
    """List the files that transformers loads weights from, all of which are there."""
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if (folder / whole).is_file():
            return (whole,)
        if (folder / index).is_file():
            return _shards(folder, index)
    raise ConfigError(f"{folder} holds a config and no weights", hint=f"expected {WHOLE[0]}; {DOWNLOAD_AGAIN}")


def file_of(folder: Path, tensor: str) -> str | None:
    """The file that holds a tensor; None where no index names it, since models may call it otherwise than files do."""
    names = weight_files(folder)
    if len(names) == 1:
        return names[0]
    index = next(index for index in INDEXES if (folder / index).is_file())
    found = _json(folder / index)["weight_map"].get(tensor)
    return None if found is None else str(found)


def weights_sha256(folder: Path) -> str:
    """Digest the weights: the sha256 over the sorted names and sha256 of their files."""
    names = sorted(weight_files(folder))
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: sha256_file(folder / name), names)
        lines = [f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def license_of(readme: str) -> str | None:
    """Read the license that a model card states in its front matter."""
    lines = readme.splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in ("license", "license_name") and value.strip():
            found[key] = value.strip().strip("'\"")[:200]
    if found.get("license") == "other" and "license_name" in found:
        return f"other: {found['license_name']}"
    return found.get("license")


def check_loaded(name: str, report: dict[str, Any]) -> None:
    """Refuse a model some of whose weights are made up: transformers fills in what it does not find."""
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise ConfigError(
            f"{name} lacks weights that its config asks for: {missing[0]} and {len(missing) - 1} more"
            if len(missing) > 1
            else f"{name} lacks weights that its config asks for: {missing[0]}",
            hint=f"was it saved without its head? {DOWNLOAD_AGAIN}",
        )
    odd = sorted(
        f"{key} has shape {list(found)} and not {list(due)}" for key, found, due in report.get("mismatched_keys", ())
    )
    odd += [str(error) for error in report.get("error_msgs", ())]
    if odd:
        raise ConfigError(f"{name} has weights that do not fit its config: {odd[0]}", hint=DOWNLOAD_AGAIN)


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    weight_map = _json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{folder / index} names no weights", hint=DOWNLOAD_AGAIN)
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"{folder} is half a model: {missing[0]}{more} of {len(names)} files of weights is missing",
            hint=DOWNLOAD_AGAIN,
        )
    return tuple(names)


def _check_safetensors(path: Path) -> None:
    """Hold the size of a file against the offsets in its header, which is first in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
        header = file.read(length) if length <= min(size - 8, MAX_HEADER_BYTES) else b""
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ConfigError(f"{path} is no whole safetensors file ({size:,} bytes)", hint=DOWNLOAD_AGAIN) from None
    if size != expected:
        raise ConfigError(f"{path} has {size:,} bytes, its header promises {expected:,}", hint=DOWNLOAD_AGAIN)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}", hint=DOWNLOAD_AGAIN) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object", hint=DOWNLOAD_AGAIN)
    return found
