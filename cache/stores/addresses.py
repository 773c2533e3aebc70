"""Addresses of caches, folders or URLs, which must not contain secrets.

In: addresses of settings, and error messages of drivers. Out: the same without passwords and keys: addresses are stored
in manifests, run folders and logs.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kdpipe.schemas.errors import CacheError, ConfigError

HIDDEN = "(hidden)"
# Names of environment variables whose values are never shown.
_SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|CONNECTION_STRING)", re.IGNORECASE
)
_MIN_SECRET_LENGTH = 8
# Parameters of signed requests, as quoted in error messages.
_SIGNED = re.compile(r"((?:X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|token|access_token|password)=)[^&\s\"']+")
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """The folder for local copies of remote parts, and the limit in bytes for each cache."""

    folder: Path
    limit: int


def is_url(address: str) -> bool:
    """Whether an address is a remote store, not a folder of this machine."""
    return ("://" in address or address.startswith("memory:")) and not address.startswith("file://")


def is_web(address: str) -> bool:
    """Whether an address belongs to a web server."""
    return address.startswith(("http://", "https://"))


def user_cache_folder() -> Path:
    """The folder for files that kdpipe can download or compute again: $XDG_CACHE_HOME/kdpipe or ~/.cache/kdpipe."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        return (Path(named) if named else Path.home() / ".cache") / "kdpipe"
    except RuntimeError as error:
        raise CacheError(f"no home directory for cached files: {error}", hint="set XDG_CACHE_HOME") from None


def local_path(address: str) -> str:
    """The path of a local address."""
    return unquote(address.removeprefix("file://")) if address.startswith("file://") else address


def check_address(address: str) -> None:
    """Refuse a URL with a secret in it: addresses are stored in runs and caches."""
    if not is_url(address):
        return
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ConfigError("the address of the cache is not a valid URL", hint="check its spelling") from None
    where = f"{parts.scheme}://{parts.hostname or ''}"
    if "@" in parts.netloc and parts.scheme != "hf":
        raise ConfigError(
            f"the URL at {where} contains a user name or password, which would be stored in runs and caches",
            hint="put credentials into ~/.netrc, the environment or the driver's configuration",
        )
    if parts.query:
        raise ConfigError(
            f"the URL at {where} contains a query (?...), which may hold a key and would be stored",
            hint="give the URL of the folder without a query",
        )


def without_secrets(text: str) -> str:
    """A message of a library, without the secrets of this process and of signed requests."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return _USER.sub(rf"\1{HIDDEN}@", _SIGNED.sub(rf"\1{HIDDEN}", text))
