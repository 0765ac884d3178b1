"""URIs of files and folders as text: what their queries may say, and that they hold no secret."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

# What the query of a URI may say. The first of s3 are those that a configuration's `storage` sets
# for all paths; `endpoint_override` and `scheme` are how pyarrow writes an endpoint.
_OPTIONS = {
    "s3": ("endpoint", "region", "anonymous", "attempts", "connect_timeout", "request_timeout"),
    "gs": ("endpoint", "anonymous", "attempts", "request_timeout"),
    "abfs": (
        *("anonymous", "enable_tls", "blob_storage_authority", "dfs_storage_authority"),
        "credential_kind",
    ),
    "hdfs": ("user", "replication", "buffer_size", "default_block_size", "kerb_ticket"),
}
_KINDS = {"s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "hdfs": "hdfs"}
_KINDS["viewfs"] = "hdfs"
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "abfs": "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, AZURE_STORAGE_KEY or "
    "AZURE_STORAGE_SAS_TOKEN, or a managed identity",
    "hdfs": "a Kerberos ticket",
}

_QUERY = re.compile(r"\?(?=[A-Za-z][\w.-]*=)")  # any other question mark is a glob's


def is_remote(uri: str) -> bool:
    """Whether it names something in a store, not on this machine."""
    return "://" in uri and not uri.startswith("file://")


def kind_of(uri: str) -> str:
    """s3, gs, abfs or hdfs. `ValueError` for another scheme."""
    scheme = uri.partition("://")[0]
    if scheme not in _KINDS:
        raise ValueError(
            f"{scheme}:// is no store that can be read: use a local path, s3://, gs://, abfs:// "
            "or hdfs://"
        )
    return _KINDS[scheme]


def options_of(kind: str) -> tuple[str, ...]:
    """The names of the options that URIs of this kind take."""
    return _OPTIONS[kind]


def credentials_of(kind: str) -> str:
    """Where the credentials of this kind of store come from, in words."""
    return _ENVIRONMENT[kind]


def split(uri: str) -> tuple[str, dict[str, str]]:
    """A remote URI without its query, and what the query says.

    Raises `ValueError`, which repeats nothing but the scheme and the bad option's name, for
    another scheme, for credentials and for an option that its kind does not take.
    """
    kind = kind_of(uri)
    place = _QUERY.search(uri)
    address = uri if place is None else uri[: place.start()]
    authority = address.partition("://")[2].partition("/")[0]
    user, at, _ = authority.rpartition("@")
    if at and (kind in ("s3", "gs") or ":" in user):
        raise ValueError(_secret(uri, "before its @"))
    query = "" if place is None else uri[place.end() :]
    options = dict(parse_qsl(query, keep_blank_values=True))
    if kind in ("s3", "gs") and "endpoint_override" in options:
        host, scheme = options.pop("endpoint_override"), options.pop("scheme", "https")
        options.setdefault("endpoint", f"{scheme}://{host}")
    for name in options:
        if name not in _OPTIONS[kind]:
            raise ValueError(_secret(uri, f"as {name!r}, or an option that there is not"))
    if "endpoint" in options:
        endpoint_of(options["endpoint"])
    return address, options


def join(address: str, options: Mapping[str, str]) -> str:
    """What `split` takes apart."""
    return f"{address}?{urlencode(options, safe=':/')}" if options else address


def with_options(uri: str, options: Mapping[str, str]) -> str:
    """A URI whose query also says those of the options that its kind takes and that it does not
    set itself; a local path is as it was. `ValueError` as of `split`."""
    if not is_remote(uri):
        return uri
    address, own = split(uri)
    taken = {name: options[name] for name in _OPTIONS[kind_of(uri)] if name in options}
    return join(address, taken | own)


def endpoint_of(text: str) -> tuple[str, str]:
    """http or https, and HOST:PORT. `ValueError` for anything else."""
    found = re.fullmatch(r"(?:(https?)://)?([\w.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)/?", text)
    if found is None:
        told = "" if "@" in text else f" {text!r}"
        raise ValueError(f"endpoint{told}: expected http://HOST:PORT or https://HOST, and no more")
    return found[1] or "https", found[2]


def _secret(uri: str, where: str) -> str:
    kind = kind_of(uri)
    return (
        f"a {uri.partition('://')[0]}:// path holds a key or password {where}: leave it out. "
        f"Credentials come from the environment or the platform ({_ENVIRONMENT[kind]}); options "
        f"are {', '.join(_OPTIONS[kind])}"
    )
