"""A server that speaks Google Cloud Storage's protocol on loopback (gcp-storage-emulator)."""

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_head import free_port
from store_server import serving

from coreset_ray.core.address import with_options

# One request at a time, as it has it, and a reader that asks anew before it has read to the end
# waits for ever.
_MAIN = """
import http.server
http.server.HTTPServer = http.server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main()
"""


@dataclass(frozen=True)
class Google:
    """endpoint: http://127.0.0.1:PORT."""

    endpoint: str

    def bucket(self, name: str) -> str:
        """A new bucket."""
        request = urllib.request.Request(
            f"{self.endpoint}/storage/v1/b?project=test",
            data=f'{{"name": "{name}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request):
            return name

    def uri(self, path: str) -> str:
        told = {"endpoint": self.endpoint, "anonymous": "true", "attempts": "3"}
        return with_options(f"gs://{path}", told)


@contextmanager
def running() -> Iterator[Google]:
    """The server, for as long as the block lasts."""
    port = free_port()
    line = [sys.executable, "-c", _MAIN, "start", "--in-memory"]
    line += ["--host=127.0.0.1", f"--port={port}"]
    with serving(line, f"http://127.0.0.1:{port}/storage/v1/b?project=test"):
        yield Google(f"http://127.0.0.1:{port}")
