"""Checks of a model folder before anything is loaded: is it complete, and what is its digest?

In: a folder saved by transformers. Out: its weight files, their digest, its license; or an error.
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
# Present in adapters only.
ADAPTER = "adapter_config.json"
# In the search order of transformers; an index lists the shards of a large model.
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The header of a safetensors file is at most 100 MB (its specification).
MAX_HEADER_BYTES = 100_000_000
# Shown before a look-up that may take half a minute when the Hub does not respond.
HUB_LOOKUP = "{} is not a local path: looking it up on the Hugging Face Hub"
DOWNLOAD_AGAIN = "download it again: it is incomplete"


def local_folder(name: str) -> Path | None:
    """The folder of a model's name; None for a Hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{name} is a file", hint="give the folder with config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ConfigError(f"no such folder: {name}", hint="give a model folder, or a Hub id such as org/name")
    return None


def is_hub_id(name: str) -> bool:
    """Whether a name is not a local file or folder."""
    return not Path(name).expanduser().exists()


def check_model_name(name: str) -> None:
    """Refuse a path that does not exist and an incomplete folder; a Hub id is looked up later."""
    try:
        folder = local_folder(name)
        if folder is not None:
            check_folder(folder)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or name} cannot be read: {error.strerror}",
            hint="check its permissions, or use another model",
        ) from None


def check_folder(folder: Path) -> None:
    """Refuse a folder without a config, an adapter, and incomplete weights."""
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file():
            raise ConfigError(
                f"{folder} is an adapter, not a model", hint="merge it into its base model, and use the result"
            )
        raise ConfigError(
            f"{folder} has no config.json", hint="give a folder saved by save_pretrained, or a downloaded one"
        )
    for name in weight_files(folder):
        if name.endswith(".safetensors"):
            _check_safetensors(folder / name)


def weight_files(folder: Path) -> tuple[str, ...]:
    """The weight files that transformers loads, all present."""
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if (folder / whole).is_file():
            return (whole,)
        if (folder / index).is_file():
            return _shards(folder, index)
    raise ConfigError(f"{folder} has a config and no weights", hint=f"expected {WHOLE[0]}; {DOWNLOAD_AGAIN}")


def file_of(folder: Path, tensor: str) -> str | None:
    """The file with a tensor; None if the index lacks it (models may use other names than files)."""
    names = weight_files(folder)
    if len(names) == 1:
        return names[0]
    index = next(index for index in INDEXES if (folder / index).is_file())
    file = _json(folder / index)["weight_map"].get(tensor)
    return None if file is None else str(file)


def weights_sha256(folder: Path) -> str:
    """The sha256 over the sorted names and sha256 digests of the weight files."""
    names = sorted(weight_files(folder))
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: sha256_file(folder / name), names)
        lines = [f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def license_of(readme: str) -> str | None:
    """The license in a model card's front matter."""
    lines = readme.splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in ("license", "license_name") and value.strip():
            fields[key] = value.strip().strip("'\"")[:200]
    if fields.get("license") == "other" and "license_name" in fields:
        return f"other: {fields['license_name']}"
    return fields.get("license")


def check_loaded(name: str, report: dict[str, Any]) -> None:
    """Refuse a model with missing weights, which transformers initializes randomly."""
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    if missing:
        raise ConfigError(
            f"{name} lacks weights that its config needs: {missing[0]} and {len(missing) - 1} more"
            if len(missing) > 1
            else f"{name} lacks weights that its config needs: {missing[0]}",
            hint=f"it may have been saved without its head; {DOWNLOAD_AGAIN}",
        )
    odd = sorted(
        f"{key} has shape {list(shape)}, expected {list(expected)}"
        for key, shape, expected in report.get("mismatched_keys", ())
    )
    odd += [str(error) for error in report.get("error_msgs", ())]
    if odd:
        raise ConfigError(f"weights of {name} do not match its config: {odd[0]}", hint=DOWNLOAD_AGAIN)


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    weight_map = _json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{folder / index} lists no weights", hint=DOWNLOAD_AGAIN)
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"{folder} is incomplete: {missing[0]}{more} of {len(names)} weight files missing",
            hint=DOWNLOAD_AGAIN,
        )
    return tuple(names)


def _check_safetensors(path: Path) -> None:
    """Check the size of a file against the offsets in its header."""
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
        raise ConfigError(f"{path} is not a complete safetensors file ({size:,} bytes)", hint=DOWNLOAD_AGAIN) from None
    if size != expected:
        raise ConfigError(f"{path} has {size:,} bytes; expected {expected:,} from its header", hint=DOWNLOAD_AGAIN)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", hint=DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object", hint=DOWNLOAD_AGAIN)
    return value
