"""Caches in repositories of the Hugging Face hub. The only module that imports huggingface_hub.

In: an hf:// URL. Out: the commit that a reader keeps to, so that nothing changes under it; a `HubFolder` that writes by
commits.

The hub creates no file on a condition, but commits on the condition that their parent is still the newest: of two who
create a name, the second is refused, looks again, and finds it there. A part and its record are one commit.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, final

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from kdpipe.cache import layout
from kdpipe.cache.stores.failures import describe_error, driver_error
from kdpipe.cache.stores.fsspec_store import RemoteStore
from kdpipe.cache.stores.retries import RetryingStore, RetryPolicy
from kdpipe.schemas.errors import CacheError, ConfigError, KdpipeError, Unreachable

BUCKETS: Final = "hf://buckets/"
LOG_IN: Final = "log in there with a token that may do this: hf auth login, or HF_TOKEN in the environment"
# Up to here the hub may take a file into the commit itself, so its bytes are kept until then.
SMALL_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A folder of a repository; `revision` is a branch, or the commit that was its newest."""

    kind: str
    name: str
    revision: str
    folder: str

    @property
    def root(self) -> str:
        """The same as fsspec names it."""
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{prefix}{self.name}@{self.revision}/{self.folder}".rstrip("/")

    def at_newest(self) -> "Repository":
        """The same, at the newest commit of its branch."""
        found = HfApi().repo_info(self.name, repo_type=self.kind, revision=self.revision)
        return replace(self, revision=str(found.sha))


def repository(url: str) -> Repository:
    """The repository of a URL, which must be there."""
    with _asking(url):
        try:
            found: Any = HfFileSystem(skip_instance_cache=True).resolve_path(url)
        # huggingface_hub raises either for a URL that it cannot resolve.
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{url} is no folder of a repository: {describe_error(error)}",
                hint="write hf://datasets/OWNER/NAME/FOLDER, or hf://OWNER/NAME/FOLDER for a model's",
            ) from None
        except FileNotFoundError:
            raise ConfigError(
                f"there is no repository or branch at {url}, or none that you may see",
                hint=f"create it first (hf repo create), or {LOG_IN}",
            ) from None
        return Repository(
            kind=found.repo_type, name=found.repo_id, revision=found.revision, folder=found.path_in_repo.strip("/")
        )


def open_hub(url: str, retry_policy: RetryPolicy) -> RetryingStore:
    """The store of a URL at its newest commit, with retries."""
    return RetryingStore(retry_policy.call(lambda: RemoteStore(url, pinned_root)), retry_policy)


def pinned_root(url: str) -> str:
    """Where a reader of a URL reads: the newest commit there is now, which never changes."""
    if url.startswith(BUCKETS):
        return url.removeprefix("hf://")
    with _asking(url):
        return repository(url).at_newest().root


@final
class HubFolder(RemoteStore):
    """A folder of a repository that is written to: files of a part appear with its record, `create` replaces none."""

    def __init__(self, url: str) -> None:
        if url.startswith(BUCKETS):
            raise ConfigError(
                f"{url} cannot be written to: a bucket of the hub creates no file on a condition",
                hint="give a repository: hf://datasets/OWNER/NAME/FOLDER",
            )
        self._branch = repository(url)
        self._api = HfApi()
        self._lock = threading.Lock()
        self._pending: dict[str, dict[str, CommitOperationAdd]] = {}
        super().__init__(url)
        self._look_again()

    def _check_there(self) -> None:
        """A place to write to need not be there yet."""

    def _look_again(self) -> None:
        with _asking(self.url):
            self._newest = self._branch.at_newest()
        self._root = self._newest.root

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file, with those of its part that were put; false when there is one of that name already."""
        with self._lock:
            part = layout.within_part(name)
            if self.size(name) is not None:
                if part is not None:
                    self._pending.pop(part[0], None)
                return False
            before = self._pending.get(part[0], {}) if part is not None else {}
            self._commit([*before.values(), self._addition(name, data)], f"kdpipe: {name}")
            if part is not None:
                self._pending.pop(part[0], None)
            return True

    def put(self, name: str, path: Path) -> None:
        """Send a file from the disk; one of a part is seen when its record is."""
        part = layout.within_part(name)
        content = path.read_bytes() if path.stat().st_size <= SMALL_BYTES else str(path)
        addition = self._addition(name, content)
        with _asking(self.url):
            self._api.preupload_lfs_files(
                self._branch.name, [addition], repo_type=self._branch.kind, revision=self._branch.revision
            )
        with self._lock:
            if part is None:
                self._commit([addition], f"kdpipe: {name}")
            else:
                self._pending.setdefault(part[0], {})[name] = addition

    def remove(self, name: str) -> None:
        """Remove a file; one that was put and never seen is forgotten."""
        with self._lock:
            part = layout.within_part(name)
            if part is not None and self._pending.get(part[0], {}).pop(name, None) is not None:
                return
            if self.size(name) is not None:
                self._commit([CommitOperationDelete(path_in_repo=self._in_repository(name))], f"kdpipe: no {name}")

    def _addition(self, name: str, content: bytes | str) -> CommitOperationAdd:
        return CommitOperationAdd(path_in_repo=self._in_repository(name), path_or_fileobj=content)

    def _in_repository(self, name: str) -> str:
        return f"{self._branch.folder}/{name}".lstrip("/")

    def _commit(self, operations: list[CommitOperationAdd | CommitOperationDelete], message: str) -> None:
        """Commit on top of the newest commit that was looked at; when there is a newer one, look and be tried again."""
        try:
            with _asking(self.url):
                made = self._api.create_commit(
                    self._branch.name,
                    operations,
                    commit_message=message,
                    repo_type=self._branch.kind,
                    revision=self._branch.revision,
                    parent_commit=self._newest.revision,
                )
        except Unreachable:
            self._look_again()
            raise
        self._newest = replace(self._newest, revision=made.oid)
        self._root = self._newest.root


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Tell what may not be done from what did not work this time."""
    try:
        yield
    except (KdpipeError, MemoryError):
        raise
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"there is no repository or branch at {url}, or none that you may see: {describe_error(error)}", hint=LOG_IN
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise CacheError(f"{url} denies access: {describe_error(error)}", hint=LOG_IN) from None
        raise driver_error(url, error) from None
    except Exception as error:
        raise driver_error(url, error) from None
