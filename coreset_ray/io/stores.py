"""The filesystem that a URI means: pyarrow's, with retries, one for each store in a process."""

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from coreset_ray.core.address import endpoint_of, join, kind_of

ATTEMPTS = 8  # of a request; the pauses between them double, up to 20 s: about half a minute in all
_CONNECT_SECONDS, _STALL_SECONDS = 10.0, 30.0


class _S3(pafs.S3FileSystem):
    """What is sent to another process is made there anew: pyarrow's own loses the retries."""

    def __init__(self, told: tuple[tuple[str, str], ...], region: str | None):
        self._told = told, region
        given = dict(told)
        scheme, host = endpoint_of(given["endpoint"]) if "endpoint" in given else (None, None)
        super().__init__(
            anonymous=_truth(given, "anonymous"),
            region=given.get("region", region),
            scheme=scheme,
            endpoint_override=host,
            connect_timeout=_number(given, "connect_timeout", _CONNECT_SECONDS),
            request_timeout=_number(given, "request_timeout", _STALL_SECONDS),
            retry_strategy=pafs.AwsStandardS3RetryStrategy(
                max_attempts=int(_number(given, "attempts", ATTEMPTS))
            ),
            allow_delayed_open=True,  # a small file is one request, and no upload in parts
        )

    def __reduce__(self) -> Any:
        return _s3, self._told


@cache
def _s3(told: tuple[tuple[str, str], ...], region: str | None) -> _S3:
    return _S3(told, region)


class _Azure(pafs.AzureFileSystem):
    """With the key or the signature of the environment (as `az storage` reads it), if there is one
    for this account, else whatever identity Azure finds. None of it is sent to another process."""

    def __init__(self, told: Mapping[str, str]):
        self._told = dict(told)
        secret = {}
        if os.environ.get("AZURE_STORAGE_ACCOUNT", told["account_name"]) == told["account_name"]:
            secret = {"account_key": os.environ.get("AZURE_STORAGE_KEY")}
            if not secret["account_key"]:
                secret = {"sas_token": os.environ.get("AZURE_STORAGE_SAS_TOKEN")}
        given = {name: value or None for name, value in (self._told | secret).items()}
        super().__init__(**given)

    def __reduce__(self) -> Any:
        return _Azure, (self._told,)


def open_store(address: str, options: Mapping[str, str]) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a remote URI and the path on it. address, options: as `split` gives them.

    Raises `ValueError` for an option's value, `OSError` for a store that cannot be reached or a
    library that is missing.
    """
    root, slash, key = _parts(address)
    try:
        filesystem, base = _opened(root, tuple(sorted(options.items())))
    except pa.ArrowNotImplementedError as error:
        raise RuntimeError(f"{root}: this pyarrow was built without it: {error}") from error
    path = f"{base}{slash}{unquote(key)}".rstrip("/")
    return filesystem, path if kind_of(root) == "hdfs" else path.lstrip("/")


def _parts(address: str) -> tuple[str, str, str]:
    scheme, _, rest = address.partition("://")
    authority, slash, key = rest.partition("/")
    return f"{scheme}://{authority}", slash, key


@cache
def _opened(root: str, told: tuple[tuple[str, str], ...]) -> tuple[pafs.FileSystem, str]:
    """One a process: each has its own connections and asks for credentials anew."""
    kind, authority, given = kind_of(root), root.partition("://")[2], dict(told)
    if kind == "s3":
        return _s3(told, _region(authority, given)), authority
    if kind == "gs":
        return _gs(given), authority
    if kind == "abfs" and _truth(given, "anonymous"):
        given["credential_kind"] = "anonymous"
    given.pop("anonymous", None)
    filesystem, base = pafs.FileSystem.from_uri(join(f"{root}/", given))
    if kind == "abfs" and "credential_kind" not in given:
        filesystem = _Azure(filesystem.__reduce__()[1][0])
    return filesystem, base.rstrip("/")


def _region(bucket: str, given: Mapping[str, str]) -> str | None:
    """Of a bucket at the provider itself; a server of one's own has none."""
    if "region" in given or "endpoint" in given:
        return None
    return pafs.resolve_s3_region(bucket)


def _gs(given: Mapping[str, str]) -> pafs.GcsFileSystem:
    scheme, host = endpoint_of(given["endpoint"]) if "endpoint" in given else (None, None)
    # Google's library bounds the time of all attempts together.
    attempts = _number(given, "attempts", ATTEMPTS)
    seconds = attempts * _number(given, "request_timeout", _STALL_SECONDS)
    return pafs.GcsFileSystem(
        anonymous=_truth(given, "anonymous"),
        scheme=scheme,
        endpoint_override=host,
        retry_time_limit=timedelta(seconds=seconds),
    )


def _truth(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "false")
    if text not in ("true", "false"):
        raise ValueError(f"{name}={text!r} in a URI: expected true or false")
    return text == "true"


def _number(given: Mapping[str, str], name: str, default: float) -> float:
    text = given.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6 or (name == "attempts" and value != int(value)):
        raise ValueError(f"{name}={text!r} in a URI: expected a number above 0")
    return value
