"""Check of the Hugging Face Hub: whether its address resolves and accepts a connection, within a few seconds.

In: environment variables as huggingface_hub reads them (HF_ENDPOINT, HF_HUB_OFFLINE, proxies). Out: one check. No
request is sent.
"""

import os
import queue
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kdpipe.schemas.doctor_report import Check, passed, problem, warning

ENDPOINT = "https://huggingface.co"
# Values that huggingface_hub takes as true.
TRUE = {"1", "ON", "YES", "TRUE"}
PORTS = {"http": 80, "https": 443}
SECONDS = 3.0
LOCAL = "use local folders for models and data, or check network and proxy settings"


def hub(environment: Mapping[str, str] = os.environ, seconds: float = SECONDS) -> Check:
    """Resolve and connect, for at most `seconds` each."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environment.get(name, "").upper() in TRUE:
            return passed("hub", f"offline by {name}: only models and data that are on this machine can be used")
    endpoint = environment.get("HF_ENDPOINT") or ENDPOINT
    host, port, scheme = _address(endpoint)
    if host is None:
        expected = "expected https://HOST or http://HOST:PORT"
        return problem("hub", f"HF_ENDPOINT is {endpoint}, {expected}", "correct or unset HF_ENDPOINT")
    name = f"{host}:{port}"
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    if proxy is not None:
        host, port, _ = _address(proxy if "://" in proxy else f"http://{proxy}")
        if host is None:
            return problem("hub", f"the proxy for {scheme} has no valid address", f"correct {scheme.upper()}_PROXY")
        name += f" through the proxy {host}:{port}"
    failure = _connect(host, port, seconds)
    return passed("hub", f"{name} is reachable") if failure is None else warning("hub", f"{name}: {failure}", LOCAL)


def _address(url: str) -> tuple[str | None, int, str]:
    """Host, port and scheme of a URL; no host if it is not a valid one."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        return None, 0, ""
    return (parts.hostname if port else None), port, parts.scheme


def _connect(host: str, port: int, seconds: float) -> str | None:
    """Why no connection could be made; None if one could."""
    # A lookup has no timeout of its own, so it runs in a thread that is abandoned.
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()
    threading.Thread(target=_resolve, args=(host, port, answers), daemon=True).start()
    try:
        addresses = answers.get(timeout=seconds)
    except queue.Empty:
        return f"no DNS answer for {host} within {seconds:g} s"
    if isinstance(addresses, OSError):
        return f"DNS lookup of {host} failed: {addresses.strerror or addresses}"
    end, failure = time.monotonic() + seconds, "no address"
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection.connect(address)
            except TimeoutError:
                return f"no connection within {seconds:g} s"
            except OSError as error:
                failure = f"connection failed: {error.strerror or error}"
            else:
                return None
    return failure


def _resolve(host: str, port: int, answers: "queue.SimpleQueue[list[Any] | OSError]") -> None:
    try:
        answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError as error:
        answers.put(error)
    except UnicodeError as error:
        answers.put(OSError(str(error)))
