"""Bytes of a store that lies elsewhere: in an object store, behind HTTP, or in another folder.

Names are ours, never the other side's; sizes are asked for before anything is read.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from mmfuse.features import layout
from mmfuse.features.errors import ConfigError, MissingError, StoreError

_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}


class Source(Protocol):
    """Files by their path within a store, with slashes."""

    def size(self, path: str) -> int:
        """Bytes of a file; `StoreError` if it is not there."""

    def read(self, path: str, start: int, stop: int) -> Any:
        """Bytes `start` to `stop`, as something with the buffer protocol."""


def open_source(address: str) -> Source:
    """`s3://bucket/prefix`, `http://...`, `https://...`, or a folder.

    S3 takes credentials, region and endpoint from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true where none is
    needed).

    Raises:
        ConfigError: another scheme, or settings that the client refuses.
        MissingError: obstore is not installed.
    """
    scheme, colon, _ = address.partition("://")
    if not colon:
        return _Folder(Path(address))
    if scheme not in ("s3", "http", "https"):
        raise ConfigError(f"{address}: write s3://bucket/prefix, http(s)://..., or a folder")
    return _Objects(address)


class _Folder:
    """A store on a file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, path: str) -> int:
        return layout.require_regular(self._root, self._root / path)

    def read(self, path: str, start: int, stop: int) -> bytes:
        descriptor = os.open(self._root / path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)


class _Objects:
    """A store behind obstore, which asks again a few times where an answer fails."""

    def __init__(self, address: str) -> None:
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise MissingError(
                f"{address} needs obstore; install it: pip install 'mmfuse[s3]'"
            ) from None
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        plain = address.startswith("http:") or endpoint.startswith("http:")
        self._address, self._api, self._error = address, obstore, BaseError
        try:
            client: Any = {"allow_http": plain}
            self._store = from_url(address, client_options=client, retry_config=_RETRY)  # type: ignore[call-overload]
        except (BaseError, ValueError) as error:
            raise ConfigError(f"{address}: {_first_line(error)}") from None

    def size(self, path: str) -> int:
        try:
            return int(self._api.head(self._store, path)["size"])
        except (self._error, OSError) as error:
            raise self._fault(path, error) from None

    def read(self, path: str, start: int, stop: int) -> Any:
        try:
            return self._api.get_range(self._store, path, start=start, end=stop)
        except (self._error, OSError) as error:
            raise self._fault(path, error) from None

    def _fault(self, path: str, error: Exception) -> StoreError:
        if isinstance(error, FileNotFoundError) or type(error).__name__ == "NotFoundError":
            return StoreError(f"{path} is missing from {self._address}")
        return StoreError(
            f"can't read {path} of {self._address}: {_first_line(error)}; the same command goes on "
            "where it was"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
