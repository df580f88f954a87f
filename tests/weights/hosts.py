"""A local server in place of the hosts of weights. It records the requests."""

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Host:
    """files: path → content. cut: whether the connection ends after half of the content. login: user:password that a
    request must have, or "".

    Its answers have the headers that the Hugging Face hub's client needs: a commit and an ETag.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = False
        self.login = ""
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def asked(self, method: str = "GET") -> list[str]:
        return [path for asked, path in self.requests if asked == method]


@contextmanager
def serve() -> Iterator[Host]:
    """A host at 127.0.0.1, in this context."""
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            host.requests.append((self.command, self.path))
            content = host.files.get(self.path)
            if host.login and self.headers["Authorization"] != f"Basic {b64encode(host.login.encode()).decode()}":
                self.send_error(401)
                return
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if host.cut else content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    host.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
