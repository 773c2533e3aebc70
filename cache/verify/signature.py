"""`sign_cache`: a cache is verified, and then signed.

In: the address of a finished cache and a private key. Out: manifest.sig in the cache. A signature says that its holder
vouches for every byte, so every byte is checked first: a damaged cache is refused and left without a signature.
"""

import os
from contextlib import suppress
from pathlib import Path

from kdpipe.cache.durable.files import new_file, sync_dir, translate_os_errors, work_folder
from kdpipe.cache.layout import SIGNATURE, WORK
from kdpipe.cache.signing import identity_of, signature_of
from kdpipe.cache.stores.addresses import is_url, is_web
from kdpipe.cache.stores.dispatch import open_folder, open_store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify.first_use import VerifyProgress, verify_and_remember
from kdpipe.schemas.errors import CacheDamaged, ConfigError


def sign_cache(url: str, key: Path, told: VerifyProgress, retry_policy: RetryPolicy | None = None) -> str:
    """Check every byte of a cache, then put manifest.sig into it; the cache_id that was signed."""
    if is_web(url):
        raise ConfigError(
            f"{url} cannot be written to: a web server takes no files", hint="sign the cache before it is published"
        )
    retry_policy = (retry_policy or RetryPolicy()).at(url)
    store = open_store(url, retry_policy)
    identity = identity_of(store)
    data = signature_of(identity, key)  # a wrong key is refused before the long work
    report = verify_and_remember(url, "full", told, retry_policy)
    problems = [f"{problem.file}: {problem.what}" for problem in report.problems]
    if report.cache_id not in (identity, None):
        problems.append(f"its cache_id changed from {identity} to {report.cache_id} while it was checked")
    if problems:
        more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise CacheDamaged(
            f"{url} is not signed, it has problems: {problems[0]}{more}",
            hint=f"run kdpipe cache verify {url} to list them all, repair the cache, then sign it",
        )
    if is_url(url):
        _send(url, data, retry_policy)
    else:
        _write(Path(store.url), data)
    return identity


def _send(url: str, data: bytes, retry_policy: RetryPolicy) -> None:
    """Put manifest.sig beside a remote manifest, in place of an older one."""
    place = retry_policy.call(lambda: open_folder(url))
    if retry_policy.call(lambda: place.size(SIGNATURE)) is not None:
        retry_policy.call(lambda: place.remove(SIGNATURE))
    retry_policy.call(lambda: place.create(SIGNATURE, data))


def _write(path: Path, data: bytes) -> None:
    """Replace manifest.sig at once."""
    with translate_os_errors("signing the cache", path):
        with work_folder(path, SIGNATURE) as work:
            with new_file(work / SIGNATURE) as file:
                file.write(data)
            os.replace(work / SIGNATURE, path / SIGNATURE)
            sync_dir(path)
        with suppress(OSError):  # other work may be under way there
            (path / WORK).rmdir()
