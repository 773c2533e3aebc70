"""Detached signatures of caches.

In: a cache and a key pair in PEM files (Ed25519). Out: manifest.sig beside the manifest, or the problem with it. The
cache_id is signed, the digest of everything in a cache; `verify/signature.py` signs only after checking every byte. The
only module that imports cryptography.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from kdpipe.cache.catalog import load_index, load_manifest
from kdpipe.cache.layout import SIGNATURE
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.manifest import Sha256
from kdpipe.schemas.records import Record, read_record

MAX_BYTES: Final = 1 << 12
_MAX_KEY_BYTES: Final = 1 << 14


class Signature(Record):
    """The whole of manifest.sig; the signature is in base64."""

    version: Literal[1] = 1
    cache_id: Sha256
    signature: str = Field(max_length=200)


def signature_of(identity: str, key: Path) -> bytes:
    """The content of manifest.sig for a cache_id, by a private key."""
    signed = base64.b64encode(_loaded(key, private=True).sign(_message(identity))).decode()
    return Signature(cache_id=identity, signature=signed).to_json()


def signature_problem(store: Store, key: Path, verified: str | None) -> str | None:
    """The problem with the signature of a verified cache_id; None where it is valid.

    The cache_id is the one of the bytes that were checked, not read again: what serves the cache may have changed.
    """
    from cryptography.exceptions import InvalidSignature

    public = _loaded(key, private=False)
    try:
        if store.size(SIGNATURE) is None:
            return "the cache is not signed"
        stated = read_record(Signature, store.read(SIGNATURE, MAX_BYTES), SIGNATURE, damaged=CacheDamaged)
    except CacheDamaged as error:
        return error.message
    if verified is None:
        return f"it is of the cache {stated.cache_id}, and the cache_id of this one is not known"
    if stated.cache_id != verified:
        return f"it is of the cache {stated.cache_id}, and this one is {verified}"
    try:
        public.verify(base64.b64decode(stated.signature, validate=True), _message(verified))
    except (InvalidSignature, binascii.Error):
        return f"it was not made with the private half of {key}"
    return None


def new_keys(private: Path, public: Path) -> None:
    """Create a key pair; only the owner can read the private key."""
    formats, ed25519 = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(formats.Encoding.PEM, formats.PrivateFormat.PKCS8, formats.NoEncryption())
    public_pem = key.public_key().public_bytes(formats.Encoding.PEM, formats.PublicFormat.SubjectPublicKeyInfo)
    for path, data, mode in ((private, secret, 0o600), (public, public_pem, 0o644)):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise ConfigError(f"{path} already exists", hint="use another name: keys are never overwritten") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def identity_of(store: Store) -> str:
    """The cache_id of a finished cache."""
    identity = load_index(store, load_manifest(store), allow_partial=False)[1]
    assert identity is not None, "an index has one"
    return identity


def _message(identity: str) -> bytes:
    return f"kdpipe cache signature 1\n{identity}\n".encode()


def _loaded(path: Path, *, private: bool) -> Any:
    """A key of a PEM file."""
    formats, ed25519 = _library()
    kind = "private" if private else "public"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES)
        key = formats.load_pem_private_key(data, None) if private else formats.load_pem_public_key(data)
    except OSError as error:
        raise ConfigError(f"the {kind} key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path} is no {kind} key in PEM without a password",
            hint="make a pair with kdpipe cache sign --new-key NAME",
        ) from None
    wanted = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    if not isinstance(key, wanted):
        raise ConfigError(f"{path} is no Ed25519 key", hint="make a pair with kdpipe cache sign --new-key NAME")
    return key


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError(
            "signatures need cryptography, which is not there", hint="pip install 'kdpipe[sign]'"
        ) from None
    return serialization, ed25519
