"""`kdpipe cache sign`: a detached signature of a cache, by a key of one's own.

In: a cache and a private key, or the name of a key pair to be made. Out: manifest.sig in the cache, or two PEM files.
The cache is verified first; a damaged one is not signed. `kdpipe cache verify --signature` checks the signature.
"""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.remote_options import RetryFor, retries
from kdpipe.schemas.errors import UsageError


def sign(
    cache: Annotated[str | None, typer.Argument(metavar="CACHE", help="The cache: a folder or a URL.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The private key, in PEM.")] = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", metavar="NAME", help="Make a key pair, NAME.pem and NAME.pub.pem.")
    ] = None,
    retry_for: RetryFor = None,
) -> None:
    """Verify a cache (level full), then sign its cache_id, so that others can tell that it is yours."""
    from kdpipe.cache.signing import new_keys
    from kdpipe.cache.verify.signature import sign_cache

    if new_key is not None:
        if cache is not None or key is not None:
            raise UsageError("--new-key makes keys and signs nothing", hint="sign with --key, another time")
        private, public = Path(f"{new_key}.pem"), Path(f"{new_key}.pub.pem")
        new_keys(private, public)
        console.answer(f"{private}: keep it to yourself\n{public}: for those who verify")
        return
    if cache is None or key is None:
        raise UsageError("a cache is signed with a key", hint="give CACHE --key FILE, or --new-key NAME to make one")
    console.answer(f"signed {sign_cache(cache, key, console.Notes(), retries(retry_for))}")
