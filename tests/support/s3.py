"""An S3 server on loopback, moto's, in a process of its own.

In: nothing. Out: its address, and the environment in which s3fs finds it. Real S3 answers as this does as far as moto
knows; keys are made up.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

KEY, SECRET = "PLANTEDACCESSKEY0001", "planted/secret+key/of/these/tests/0000001"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server that is ready; what the environment of its users must hold."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address, child)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        child.terminate()
        child.wait(900)


def _wait_for(address: str, child: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert child.poll() is None, "the server ended before it was ready"
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server does not answer")
