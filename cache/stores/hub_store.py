"""Caches in repositories of the Hugging Face Hub. The only module that imports huggingface_hub.

In: an hf:// URL. Out: the commit that a reader is pinned to; a `HubFolder` that writes by commits.

The Hub has no conditional creation of files, but a commit can require that its parent is the newest: of two processes
that create a name, the second is refused, looks again, and finds the file. A part and its record are one commit.
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
LOG_IN: Final = "use a token with access to it: hf auth login, or HF_TOKEN in the environment"
# Smaller files may become part of the commit itself, so their bytes are kept until then.
SMALL_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A folder of a repository; `revision` is a branch or a commit."""

    kind: str
    name: str
    revision: str
    folder: str

    @property
    def root(self) -> str:
        """Its path in `HfFileSystem`."""
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{prefix}{self.name}@{self.revision}/{self.folder}".rstrip("/")

    def at_newest(self) -> "Repository":
        """The folder at the newest commit of its branch."""
        repository = HfApi().repo_info(self.name, repo_type=self.kind, revision=self.revision)
        return replace(self, revision=str(repository.sha))


def repository(url: str) -> Repository:
    """The repository of a URL, which must exist."""
    with _hub_errors(url):
        try:
            resolved: Any = HfFileSystem(skip_instance_cache=True).resolve_path(url)
        # huggingface_hub raises either for a URL that it cannot resolve.
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{url} does not name a folder in a Hub repository: {describe_error(error)}",
                hint="write hf://datasets/OWNER/NAME/FOLDER, or hf://OWNER/NAME/FOLDER for a model's",
            ) from None
        except FileNotFoundError:
            raise ConfigError(
                f"no repository or branch at {url}, or no access to it",
                hint=f"create it first (hf repo create), or {LOG_IN}",
            ) from None
        return Repository(
            kind=resolved.repo_type,
            name=resolved.repo_id,
            revision=resolved.revision,
            folder=resolved.path_in_repo.strip("/"),
        )


def open_hub(url: str, retry_policy: RetryPolicy) -> RetryingStore:
    """The store of a URL at its newest commit, with retries."""
    return RetryingStore(retry_policy.call(lambda: RemoteStore(url, pinned_root)), retry_policy)


def pinned_root(url: str) -> str:
    """The path of a URL at its newest commit, which never changes."""
    if url.startswith(BUCKETS):
        return url.removeprefix("hf://")
    with _hub_errors(url):
        return repository(url).at_newest().root


@final
class HubFolder(RemoteStore):
    """A folder of a repository to write to: files of a part appear with its record, `create` replaces none."""

    def __init__(self, url: str) -> None:
        if url.startswith(BUCKETS):
            raise ConfigError(
                f"{url} cannot be written to: Hub buckets have no conditional writes",
                hint="give a repository: hf://datasets/OWNER/NAME/FOLDER",
            )
        self._branch = repository(url)
        self._api = HfApi()
        self._lock = threading.Lock()
        self._pending: dict[str, dict[str, CommitOperationAdd]] = {}
        super().__init__(url)
        self._refresh()

    def _check_there(self) -> None:
        """A folder to write to may be missing."""

    def _refresh(self) -> None:
        with _hub_errors(self.url):
            self._newest = self._branch.at_newest()
        self._root = self._newest.root

    def create(self, name: str, data: bytes) -> bool:
        """Commit a small file, with the uploaded files of its part; false if one of that name exists."""
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
        """Upload a file; those of a part are committed with its record."""
        part = layout.within_part(name)
        content = path.read_bytes() if path.stat().st_size <= SMALL_BYTES else str(path)
        addition = self._addition(name, content)
        with _hub_errors(self.url):
            self._api.preupload_lfs_files(
                self._branch.name, [addition], repo_type=self._branch.kind, revision=self._branch.revision
            )
        with self._lock:
            if part is None:
                self._commit([addition], f"kdpipe: {name}")
            else:
                self._pending.setdefault(part[0], {})[name] = addition

    def remove(self, name: str) -> None:
        """Remove a file, or drop an upload that is not committed."""
        with self._lock:
            part = layout.within_part(name)
            if part is not None and self._pending.get(part[0], {}).pop(name, None) is not None:
                return
            if self.size(name) is not None:
                self._commit([CommitOperationDelete(path_in_repo=self._in_repository(name))], f"kdpipe: remove {name}")

    def _addition(self, name: str, content: bytes | str) -> CommitOperationAdd:
        return CommitOperationAdd(path_in_repo=self._in_repository(name), path_or_fileobj=content)

    def _in_repository(self, name: str) -> str:
        return f"{self._branch.folder}/{name}".lstrip("/")

    def _commit(self, operations: list[CommitOperationAdd | CommitOperationDelete], message: str) -> None:
        """Commit on top of the newest known commit; if there is a newer one, look it up and raise `Unreachable`."""
        try:
            with _hub_errors(self.url):
                commit = self._api.create_commit(
                    self._branch.name,
                    operations,
                    commit_message=message,
                    repo_type=self._branch.kind,
                    revision=self._branch.revision,
                    parent_commit=self._newest.revision,
                )
        except Unreachable:
            self._refresh()
            raise
        self._newest = replace(self._newest, revision=commit.oid)
        self._root = self._newest.root


@contextmanager
def _hub_errors(url: str) -> Iterator[None]:
    """Translate errors of the Hub: no access, or a failed request."""
    try:
        yield
    except (KdpipeError, MemoryError):
        raise
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"no repository or branch at {url}, or no access to it: {describe_error(error)}", hint=LOG_IN
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise CacheError(f"{url} denies access: {describe_error(error)}", hint=LOG_IN) from None
        raise driver_error(url, error) from None
    except Exception as error:
        raise driver_error(url, error) from None
