"""An HTTP server that answers as a test says, for what no real server does when it is asked to."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What answers a path: it gets the request's JSON, and writes.
Reply = Callable[[BaseHTTPRequestHandler, Any], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    """A whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def json_reply(value: Any, status: int = 200) -> Reply:
    """Always the same JSON."""
    return lambda handler, body: send(handler, json.dumps(value).encode(), status)


def stream_reply(*lines: bytes, every_s: float = 0.0) -> Reply:
    """A stream of events, one every so many seconds, that ends with the connection."""

    def reply(handler: BaseHTTPRequestHandler, body: Any) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for line in lines:
            handler.wfile.write(line + b"\n\n")
            handler.wfile.flush()
            time.sleep(every_s)
        handler.close_connection = True

    return reply


def reset(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """No answer at all."""
    handler.close_connection = True


@contextlib.contextmanager
def scripted(replies: Mapping[str, Reply]) -> Iterator[str]:
    """The URL of a server's API; other paths than those of `replies` are answered with 404."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else small events wait for each other.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: Any) -> None:
            replies.get(self.path, json_reply({"error": {"message": "no such path"}}, 404))(self, body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
