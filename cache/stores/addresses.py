"""Addresses of caches: folders and URLs, and what must never stand in one or be repeated from one.

In: what a person wrote, and what drivers say when they fail. Out: the same, unless it carries a password or a key:
addresses are kept in manifests, run folders and logs.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kdpipe.schemas.errors import CacheError, ConfigError

HIDDEN = "(hidden)"
# Environment variables whose values are nobody's business, by their names.
_SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|CONNECTION_STRING)", re.IGNORECASE
)
_FEWEST_LETTERS = 8
# What signed requests carry, in whatever text they are quoted.
_SIGNED = re.compile(r"((?:X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|token|access_token|password)=)[^&\s\"']+")
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """Where parts of far caches are kept on this machine, and how many bytes of each cache."""

    folder: Path
    limit: int


def is_url(address: str) -> bool:
    """Whether an address is another place than a folder of this machine."""
    return ("://" in address or address.startswith("memory:")) and not address.startswith("file://")


def is_web(address: str) -> bool:
    """Whether an address is one of a web server."""
    return address.startswith(("http://", "https://"))


def user_cache_folder() -> Path:
    """Where this machine keeps for kdpipe what can be fetched or found out again."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        return (Path(named) if named else Path.home() / ".cache") / "kdpipe"
    except RuntimeError as error:
        raise CacheError(f"there is no folder to keep things in: {error}", hint="set XDG_CACHE_HOME") from None


def local_path(address: str) -> str:
    """The path that a local address stands for."""
    return unquote(address.removeprefix("file://")) if address.startswith("file://") else address


def check_address(address: str) -> None:
    """Refuse a URL that carries a key: it would be kept where a run or a cache says what it was made from."""
    if not is_url(address):
        return
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ConfigError("the address of the cache is no URL", hint="see how it is written") from None
    where = f"{parts.scheme}://{parts.hostname or ''}"
    if "@" in parts.netloc and parts.scheme != "hf":
        raise ConfigError(
            f"the address at {where} carries a user or a password, which would be kept with what is made from it",
            hint="leave them out of it: ~/.netrc, the environment or the driver's own configuration is their place",
        )
    if parts.query:
        raise ConfigError(
            f"the address at {where} carries a query (?...), which may hold a key and would be kept",
            hint="give the URL of the folder alone",
        )


def without_secrets(text: str) -> str:
    """A text of somebody else's without the keys of this process and of signed requests."""
    for name, value in os.environ.items():
        if len(value) >= _FEWEST_LETTERS and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return _USER.sub(rf"\1{HIDDEN}@", _SIGNED.sub(rf"\1{HIDDEN}", text))
