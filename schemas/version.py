"""The format version of a cache, and whether this kdpipe can read it.

In: the `format` object of manifest.json. Out: nothing, or an error that names the needed version of kdpipe.
"""

from typing import Any, Final, Literal

from pydantic import Field

from kdpipe.schemas.errors import CacheDamaged, Incompatible
from kdpipe.schemas.records import Record

FORMAT_NAME: Final = "kdpipe-cache"
MAJOR = 1
MINOR = 1
UNDERSTOOD: frozenset[str] = frozenset()


class FormatVersion(Record):
    """`major` breaks readers, `minor` adds optional keys, `must_understand` names keys that must not be ignored."""

    name: Literal["kdpipe-cache"] = FORMAT_NAME
    major: int = Field(default=MAJOR, ge=1)
    minor: int = Field(default=MINOR, ge=0)
    must_understand: tuple[str, ...] = ()


def check_version(manifest: Any, what: str) -> bool:
    """Refuse a format that this kdpipe cannot read; true if it is newer by a minor version."""
    stated = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(stated, dict) or stated.get("name") != FORMAT_NAME:
        raise CacheDamaged(
            f"{what} does not describe a kdpipe cache",
            hint="check the path: expected the folder with manifest.json",
        )
    major, minor = stated.get("major"), stated.get("minor")
    if type(major) is not int or type(minor) is not int:
        raise CacheDamaged(f"{what} has no format version")
    if major != MAJOR:
        raise Incompatible(
            f"{what} has format {major}.{minor}, this kdpipe reads {MAJOR}.x",
            hint=f"install a kdpipe that reads format {major}",
        )
    if minor == 0:
        raise Incompatible(
            f"{what} has format {major}.{minor}, written by a development version of kdpipe",
            hint="recreate the cache: kdpipe cache-teacher",
        )
    needed = stated.get("must_understand", [])
    names = needed if isinstance(needed, list) else [needed]
    unknown = [name for name in names if not isinstance(name, str) or name not in UNDERSTOOD]
    if unknown:
        raise Incompatible(
            f"{what} needs {', '.join(map(str, unknown))}, unknown to this kdpipe",
            hint="install a newer kdpipe",
        )
    return minor > MINOR
