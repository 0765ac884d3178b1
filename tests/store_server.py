"""A real S3 server over HTTP on loopback (moto), and a proxy before it that fails as told."""

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pyarrow import fs as pafs
from ray_head import free_port

from coreset_ray.core.address import with_options


@dataclass(frozen=True)
class Store:
    """endpoint: http://127.0.0.1:PORT."""

    endpoint: str

    @property
    def fs(self) -> pafs.S3FileSystem:
        """Straight at the server, past any proxy."""
        host = self.endpoint.removeprefix("http://")
        return pafs.S3FileSystem(endpoint_override=host, scheme="http", region="us-east-1")

    def bucket(self, name: str) -> str:
        """A new bucket."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request):
            return name

    def uri(self, path: str) -> str:
        """Of what lies there, with what it takes to come to it; it is given up soon."""
        return with_options(f"s3://{path}", {"endpoint": self.endpoint, "attempts": "3"})

    def keys(self, bucket: str) -> dict[str, int]:
        """Every object's key and size."""
        found = self.fs.get_file_info(pafs.FileSelector(bucket, recursive=True))
        files = [info for info in found if info.type == pafs.FileType.File]
        return {info.path.removeprefix(f"{bucket}/"): info.size for info in files}

    def put(self, bucket: str, folder: Path, prefix: str = "") -> None:
        """A local folder's files, below a prefix."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{bucket}/{prefix}{path.relative_to(folder)}"
            with self.fs.open_output_stream(key) as sink:
                sink.write(path.read_bytes())

    def uploads(self, bucket: str) -> int:
        """Uploads in parts that were begun and neither finished nor given up."""
        with urllib.request.urlopen(f"{self.endpoint}/{bucket}?uploads") as answer:
            return answer.read().count(b"<UploadId>")


@contextmanager
def running() -> Iterator[Store]:
    """The server, for as long as the block lasts."""
    port = free_port()
    line = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(line, f"http://127.0.0.1:{port}/moto-api/"):
        yield Store(f"http://127.0.0.1:{port}")


@contextmanager
def serving(line: list[str], url: str) -> Iterator[None]:
    """A process that serves for the length of the block, which begins once it answers a GET at
    url, were it with a refusal."""
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(url, server)
        yield
    finally:
        server.kill()
        server.wait()


def _wait(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@dataclass
class Fault:
    """What becomes of the next `times` requests of a method whose path and query hold a text.

    kind: `status` answers `status`; `drop` closes without an answer; `cut` sends half of the
    answer's body; `lose` passes the request on and closes without the answer; `slow` waits for
    `seconds` first. after: so many requests pass first. seen: how many requests it met; struck:
    how often it did.
    """

    method: str
    holds: str
    kind: str
    times: int = 1 << 30
    status: int = 503
    seconds: float = 0.0
    after: int = 0
    seen: int = field(default=0, init=False)
    struck: int = field(default=0, init=False)


class Proxy(ThreadingHTTPServer):
    """Passes requests on, but for the faults."""

    daemon_threads = True

    def __init__(self, store: Store):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = store.endpoint.removeprefix("http://")
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def strike(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.method == method and fault.holds in path:
                    fault.seen += 1
                    if fault.seen > fault.after and fault.struck < fault.times:
                        fault.struck += 1
                        return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        return  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        fault = self.server.strike(self.command, self.path)
        kind = fault.kind if fault else ""
        body = self._body()
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if fault and kind == "status":
            self._answer(fault.status, [], b"")
            return
        if kind == "drop":
            self._hang_up()
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if kind == "lose":
            self._hang_up()
            return
        self._answer(answer.status, answer.getheaders(), content, cut=kind == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        lengthless = ("content-length", "transfer-encoding", "connection")
        length = dict((k.lower(), v) for k, v in headers).get("content-length")
        for name, value in headers:
            if name.lower() not in lengthless:
                self.send_header(name, value)
        told = length if self.command == "HEAD" and length else str(len(content))
        self.send_header("Content-Length", told)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *told: object) -> None:
        return


@contextmanager
def proxied(store: Store) -> Iterator[Proxy]:
    """A proxy before the server, for as long as the block lasts."""
    proxy = Proxy(store)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
