"""A server of the OpenAI API that answers each request as a script says: what comes when, and how it ends."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = tuple[float, Sequence[int]]


@dataclass
class Script:
    """The answer to one request: after a pause in seconds some token ids, and so on.

    Then `usage`, and how it `ends`: in order (`done`), by a lost connection (`cut`), with words of failure (`error`),
    with what is no JSON (`garbage`), or not at all (`hang`). A `status` other than 200 is all that comes. The chunks
    hold token ids and a text, or only what is `told`.
    """

    steps: Sequence[Step] = ()
    ends: str = "done"
    status: int = 200
    usage: dict[str, Any] = field(default_factory=dict)
    told: Sequence[str] = ("text", "token_ids")


class ScriptedServer:
    """Serves at `url` until it is closed. `script` gives the answer to the request of a number, from 0.

    `prompts` are those that came, in order, each with the time of its arrival and the number of requests open then.
    Requests without a stream, which ask whether it lives, are answered with the status `health`.
    """

    def __init__(self, script: Callable[[int], Script], metrics: Sequence[str] = (), health: int = 200) -> None:
        self.script, self.metrics, self.health = script, list(metrics), health
        self.prompts: list[tuple[float, tuple[int, ...], int]] = []
        self.open = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                text = owner.metrics.pop(0) if owner.metrics and self.path == "/metrics" else None
                body = (text or "").encode()
                self.send_response(404 if text is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not wanted.get("stream"):  # asked whether it lives
                    self.whole(json.dumps({"choices": [{"text": "x", "token_ids": [1]}]}).encode(), owner.health)
                    return
                with owner.lock:
                    number = len(owner.prompts)
                    owner.open += 1
                    owner.prompts.append((time.perf_counter(), tuple(wanted["prompt"]), owner.open))
                try:
                    self.answer(owner.script(number))
                finally:
                    with owner.lock:
                        owner.open -= 1

            def whole(self, body: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def answer(self, script: Script) -> None:
                if script.status != 200:
                    self.whole(b'{"error": {"message": "too busy"}}', script.status)
                    return
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for pause, ids in script.steps:
                    time.sleep(pause)
                    chunk = {"text": "x" * len(ids), "token_ids": list(ids)}
                    self.event(json.dumps({"choices": [{name: chunk[name] for name in script.told}]}))
                if script.ends == "hang":
                    owner.closing.wait(60)
                if script.ends in ("hang", "cut"):
                    self.close_connection = True
                    self.connection.close()
                    return
                if script.ends == "error":
                    self.event('{"error": {"message": "out of memory"}}')
                elif script.ends == "garbage":
                    self.event("{nonsense")
                else:
                    self.event(json.dumps({"choices": [], "usage": script.usage}))
                    self.event("[DONE]")
                self.block(b"")

            def event(self, text: str) -> None:
                self.block(f"data: {text}\n\n".encode())

            def block(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the client has gone, or the script has closed the connection
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where its API begins."""
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        """Serve no more."""
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
