"""An HTTP server on this machine where an issuer publishes his keys, well or badly."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class KeyServer:
    """What it publishes can be changed at any time; it counts who asks."""

    def __init__(self, port: int = 0) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.visits += 1
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                """Says nothing."""

        self.visits = 0
        self.answer: Answer = document(b'{"keys": []}')
        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/jwks.json"

    def publish(self, content: bytes) -> None:
        self.answer = document(content)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def key_server(content: bytes, port: int = 0) -> Iterator[KeyServer]:
    server = KeyServer(port)
    server.publish(content)
    try:
        yield server
    finally:
        server.stop()


def document(content: bytes, *, status: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def redirect(url: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", url)
        request.end_headers()

    return answer


def dripping(gone: threading.Event) -> Answer:
    """Answers a byte at a time, and never ends until it is told to."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not gone.wait(0.02):
            try:
                request.wfile.write(b" ")
            except OSError:
                return

    return answer
