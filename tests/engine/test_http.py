"""The HTTP client by itself: what keeps a connection alive, interim answers, certificates."""

import asyncio
import ssl
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from scripted_server import json_reply, scripted, stream_reply

from pytest_quantbudget.engine.openai.http import Client, Late, Unreachable

MODEL = {"data": [{"id": "q"}]}


def test_a_stream_that_is_kept_alive_without_an_event_is_late() -> None:
    comments = stream_reply(*[b": still here"] * 100, every_s=0.05)
    with scripted({"/": comments}) as url:

        async def hear() -> None:
            async for _ in Client(url).stream("/", {}, limit_s=0.5):
                pass

        began = time.monotonic()
        with pytest.raises(Late, match=r"POST / sent no event for 0\.5 s"):
            asyncio.run(hear())
    assert time.monotonic() - began < 4


def test_a_certificate_that_does_not_hold_is_no_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: Any, **__: Any) -> Any:
        raise ssl.SSLCertVerificationError(1, "certificate verify failed")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    with pytest.raises(Unreachable, match=r"^GET /v1/models: certificate verify failed$"):
        asyncio.run(Client("https://127.0.0.1/v1").json("/v1/models"))


def test_interim_answers_are_passed_over_and_a_connection_that_has_been_closed_is_opened_anew() -> None:
    def models(handler: BaseHTTPRequestHandler, body: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
        json_reply(MODEL)(handler, body)
        # It said nothing of that.
        handler.close_connection = True

    async def ask_often(client: Client) -> list[Any]:
        found = []
        for _ in range(3):
            found.append(await client.json("/v1/models"))
            await asyncio.sleep(0.05)
        await client.close()
        return found

    with scripted({"/v1/models": models}) as url:
        assert asyncio.run(ask_often(Client(url))) == [MODEL] * 3
