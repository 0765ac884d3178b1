"""A server of Azure Blob Storage's protocol on loopback: Azurite, where it is installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_head import free_port
from store_server import serving

from coreset_ray.io.filesystem import locate

COMMAND = shutil.which(os.environ.get("AZURITE", "azurite-blob"))
ACCOUNT = "devstoreaccount1"
# Azurite's own, the same for everybody.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Azure:
    """host: 127.0.0.1:PORT."""

    host: str

    def bucket(self, name: str) -> str:
        """A new container."""
        locate(self.uri(name)).fs.create_dir(name)
        return name

    def uri(self, path: str) -> str:
        return f"abfs://{ACCOUNT}@{self.host}/{path}?enable_tls=false"


@contextmanager
def running() -> Iterator[Azure]:
    """The server, for as long as the block lasts; its key is in the tests' environment."""
    assert COMMAND is not None
    port = free_port()
    line = [COMMAND, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    line += ["--blobHost=127.0.0.1", f"--blobPort={port}"]
    with serving(line, f"http://127.0.0.1:{port}/{ACCOUNT}?comp=list"):
        yield Azure(f"127.0.0.1:{port}")
