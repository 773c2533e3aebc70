"""`sign_cache`: verifies a cache, then signs it.

In: the address of a finished cache and a private key. Out: manifest.sig in the cache. A signature covers every byte, so
every byte is checked first: a damaged cache is refused and not signed.
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
from kdpipe.cache.verify.first_use import verify_and_record
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.progress import Progress


def sign_cache(url: str, key: Path, progress: Progress, retry_policy: RetryPolicy | None = None) -> str:
    """Check every byte of a cache, then write its manifest.sig; returns the signed cache_id."""
    if is_web(url):
        raise ConfigError(f"cannot write to a web server: {url}", hint="sign the cache before publishing it")
    retry_policy = (retry_policy or RetryPolicy()).at(url)
    store = open_store(url, retry_policy)
    identity = identity_of(store)
    data = signature_of(identity, key)  # a wrong key is refused before the verification
    report = verify_and_record(url, "full", progress, retry_policy)
    problems = [f"{problem.file}: {problem.what}" for problem in report.problems]
    if report.cache_id not in (identity, None):
        problems.append(f"its cache_id changed from {identity} to {report.cache_id} during verification")
    if problems:
        more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise CacheDamaged(
            f"{url} was not signed because it is damaged: {problems[0]}{more}",
            hint=f"list all problems with kdpipe cache verify {url}, repair the cache, then sign it",
        )
    if is_url(url):
        _send(url, data, retry_policy)
    else:
        _write(Path(store.url), data)
    return identity


def _send(url: str, data: bytes, retry_policy: RetryPolicy) -> None:
    """Upload manifest.sig, in place of an older one."""
    remote = retry_policy.call(lambda: open_folder(url))
    if retry_policy.call(lambda: remote.size(SIGNATURE)) is not None:
        retry_policy.call(lambda: remote.remove(SIGNATURE))
    retry_policy.call(lambda: remote.create(SIGNATURE, data))


def _write(path: Path, data: bytes) -> None:
    """Replace manifest.sig atomically."""
    with translate_os_errors("signing the cache", path):
        with work_folder(path, SIGNATURE) as work:
            with new_file(work / SIGNATURE) as file:
                file.write(data)
            os.replace(work / SIGNATURE, path / SIGNATURE)
            sync_dir(path)
        with suppress(OSError):  # another process may be working there
            (path / WORK).rmdir()
