"""Errors of remote stores: transient, permanent, or no connection at all.

In: an error of any driver. Out: an error of kdpipe with a hint. Errors are classified by status code, errno and class
name, so that no driver has to be imported.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from kdpipe.cache.stores.addresses import without_secrets
from kdpipe.schemas.errors import CacheError, ConfigError, ConnectionFailed, Unreachable

MAX_SHOWN: Final = 300
# Status codes below 500 that are worth a retry.
AGAIN: Final = frozenset({408, 409, 412, 425, 429})
_NEVER: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})
_MAX_CHAIN: Final = 16

_NO_CREDENTIALS: Final = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "NoAuthTokenError",
    "TokenRetrievalError", "SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError",
    "LocalTokenNotFoundError",
})  # fmt: skip
_BAD_ADDRESS: Final = frozenset({
    "ParamValidationError", "InvalidRegionError", "InvalidURL", "UnsupportedProtocol", "TooManyRedirects",
    "OfflineModeIsEnabled", "HFValidationError",
})  # fmt: skip
# Raised if no connection was established; after a connection reset there has been one.
_NO_CONNECTION: Final = frozenset({"EndpointConnectionError", "ClientConnectorError", "ClientConnectorDNSError"})
_UNROUTED: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})
_WRONG_USE: Final = frozenset({
    errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EPERM, errno.EACCES
})  # fmt: skip

_CREDENTIALS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile with AWS_PROFILE, or run `aws configure`",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "log in with `hf auth login`, or set HF_TOKEN",
}
_ACCOUNT: Final = "check that you are logged in, and that your account may list and read it"
_NO_SERVER: Final = "check host and port of the address, that the server runs, and that this machine is online"
_AGAIN_LATER: Final = "check the URL and the network, then run the same command again"


def is_retryable(code: int) -> bool:
    """Whether a request with this status code is worth a retry."""
    return code in AGAIN or (code >= HTTPStatus.INTERNAL_SERVER_ERROR and code not in _NEVER)


def driver_error(name: str, error: Exception) -> CacheError | ConfigError:
    """The error of kdpipe for an error of a driver."""
    chain = list(_chain(error))
    names = {type(item).__name__ for item in chain}
    what = f"{name} cannot be reached: {describe_error(error)}"
    protocol = name.partition(":")[0]
    if names & _NO_CREDENTIALS:
        return ConfigError(what, hint=_CREDENTIALS.get(protocol, _ACCOUNT))
    code = next((code for item in chain if (code := _status(item)) is not None), None)
    if isinstance(error, PermissionError) or code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return CacheError(f"{name} denies access: {describe_error(error)}", hint=_ACCOUNT)
    if code is not None:
        if is_retryable(code):
            return Unreachable(what, hint=_AGAIN_LATER)
        return CacheError(what, hint="check the URL, and the message of the server")
    if any(isinstance(item, ssl.SSLCertVerificationError) for item in chain):
        return CacheError(what, hint="use the host name of its certificate, or trust its issuer (SSL_CERT_FILE)")
    if names & _BAD_ADDRESS or type(error) in (ValueError, TypeError):
        return ConfigError(what, hint="check the address, and the settings of the driver (endpoint, region, profile)")
    return _connection_error(what, chain, names)


def describe_error(error: Exception) -> str:
    """Class and first line of an error, and the second line after a heading; without secrets."""
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":") and rest:
        first += f" {rest.strip().splitlines()[0]}"
    text = without_secrets(first)
    return f"{type(error).__name__}: {text[:MAX_SHOWN]}" if text else type(error).__name__


def _connection_error(what: str, chain: list[BaseException], names: set[str]) -> CacheError | ConfigError:
    """Whether there was a connection, and whether there can be one."""
    if any(isinstance(item, TimeoutError) or "Timeout" in type(item).__name__ for item in chain):
        return Unreachable(what, hint=_AGAIN_LATER)
    if any(isinstance(item, ConnectionResetError | ConnectionAbortedError | BrokenPipeError) for item in chain):
        return Unreachable(what, hint=_AGAIN_LATER)
    numbers = {item.errno for item in chain if isinstance(item, OSError)}
    if (
        names & _NO_CONNECTION
        or numbers & _UNROUTED
        or any(isinstance(item, ConnectionRefusedError | socket.gaierror | ssl.SSLError) for item in chain)
    ):
        return ConnectionFailed(what, hint=_NO_SERVER)
    if numbers & _WRONG_USE:
        return ConfigError(what, hint="give the URL of a folder that its driver can open")
    return Unreachable(what, hint=_AGAIN_LATER)


def _status(error: BaseException) -> int | None:
    """The status code of an error: of botocore, HTTP libraries or gcsfs."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = getattr(response, "status_code", None)
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) and 100 <= status < 600 else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    for _ in range(_MAX_CHAIN):
        yield error
        below = error.__cause__ or error.__context__  # also after `from None`
        if below is None:
            return
        error = below
