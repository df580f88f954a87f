"""Local HTTP servers that fail in a given way."""

import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Faults:
    """Makes the first `times` requests of each path that ends with `suffix` fail.

    `kind` is an HTTP status code or a fault that `Handler` knows.
    `login` is the user:password that the server requires.
    """

    def __init__(self, kind: str = "none", times: int = 0, suffix: str = ".tar", login: str = "") -> None:
        self.kind, self.times, self.suffix, self.login = kind, times, suffix, login
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()

    def next(self, path: str) -> str:
        with self.lock:
            self.requests[path] += 1
            return self.kind if path.endswith(self.suffix) and self.requests[path] <= self.times else "none"


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, faults: Faults, **options: Any) -> None:
        self.faults = faults
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        fault = self.faults.next(self.path)
        path = Path(self.translate_path(self.path))
        login = f"Basic {b64encode(self.faults.login.encode()).decode()}" if self.faults.login else None
        if login and self.headers["Authorization"] != login:
            fault = "401"
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "none" or not path.is_file():
            super().do_GET()
        else:
            content = path.read_bytes()
            half = content[: len(content) // 2]
            told, sent = {
                "dropped": (content, half),  # the connection ends in the middle
                "shorter": (half, half),  # the header matches the shorter body
                "flipped": (content, half + bytes([content[len(half)] ^ 1]) + content[len(half) + 1 :]),
                "silent": (content, b""),  # no byte is sent
            }[fault]
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(sent)
            self.wfile.flush()
            if fault == "silent":
                self.connection.settimeout(5)
                self.rfile.read(1)  # wait until the client gives up
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Print nothing, because tests check what is printed."""


@contextmanager
def serving(folder: Path, faults: Faults | None = None) -> Iterator[str]:
    """Serve a folder and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder), faults=faults or Faults()))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
