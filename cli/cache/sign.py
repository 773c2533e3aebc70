"""`kdpipe cache sign`: writes manifest.sig, a detached signature of a cache, or makes a key pair.

The cache is verified first; a damaged one is not signed. `kdpipe cache verify --signature` checks the signature.
"""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Quiet, RetryFor, retries
from kdpipe.cli.progress import shown_progress
from kdpipe.schemas.errors import UsageError


def sign(
    cache: Annotated[str | None, typer.Argument(metavar="CACHE", help="Cache: a folder or a URL.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Private key (PEM).")] = None,
    new_key: Annotated[
        str | None, typer.Option("--new-key", metavar="NAME", help="Make a key pair NAME.pem and NAME.pub.pem instead.")
    ] = None,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
) -> None:
    """Verify a cache and sign it with a private key."""
    from kdpipe.cache.signing import new_keys
    from kdpipe.cache.verify.signature import sign_cache

    if new_key is not None:
        if cache is not None or key is not None:
            raise UsageError(
                "--new-key only makes keys and cannot be combined with CACHE or --key",
                hint="sign in a second command, with --key",
            )
        private, public = Path(f"{new_key}.pem"), Path(f"{new_key}.pub.pem")
        new_keys(private, public)
        console.answer(f"{private}: private key, keep it secret\n{public}: public key, for cache verify --signature")
        return
    if cache is None or key is None:
        raise UsageError(
            "CACHE and --key are both needed", hint="give CACHE --key FILE, or --new-key NAME to make a key"
        )
    with shown_progress(quiet=quiet) as progress:
        identity = sign_cache(cache, key, progress, retries(retry_for, progress.message))
    console.answer(f"signed {identity}")
