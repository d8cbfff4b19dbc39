"""Web endpoints: HTTP in, HTTP out, by the real container entrypoint."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from http.client import IncompleteRead
from typing import Any

import modal
import pytest

from tests.modal_loopback import ControlPlane

TOKEN = {"Modal-Key": "wk-made-up", "Modal-Secret": "ws-made-up"}
Answer = tuple[int, Message, bytes]
Ask = Callable[..., Answer]


class Stay(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like another."""

    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.fixture(scope="module")
def ask(client: Any) -> Ask:
    """Sends a request to the app's web function, with a proxy token unless told otherwise."""
    url = modal.Function.from_name("small", "web", client=client).get_web_url()

    def ask(path: str, body: bytes | None = None, headers: dict[str, str] = TOKEN) -> Answer:
        request = urllib.request.Request(f"{url}{path}", body, headers)
        try:
            with urllib.request.build_opener(Stay).open(request, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    return ask


def test_a_request_reaches_the_app_whole_and_so_does_its_answer(ask: Ask) -> None:
    """Path, query, headers and body; status, headers and body."""
    status, headers, body = ask("/echo/caf%C3%A9?a=1%262&b=", b"hello", {**TOKEN, "X-Kind": "odd"})
    assert (status, headers["X-Told"]) == (202, "yes")
    assert json.loads(body) == {"name": "café", "query": {"a": "1&2", "b": ""}, "body": "hello", "kind": "odd"}


def test_an_answer_may_come_in_pieces(ask: Ask) -> None:
    """Each is larger than what a container sends at once."""
    status, _, body = ask("/pieces")
    assert status == 200 and body == b"".join(bytes([number]) * 3_000_000 for number in range(4))


def test_what_the_app_does_not_know_it_says_itself(ask: Ask) -> None:
    """The loopback adds nothing to it."""
    assert ask("/nowhere")[::2] == (404, b'{"detail":"Not Found"}')


@pytest.mark.parametrize("missing", TOKEN)
def test_without_a_proxy_token_nobody_is_let_in(ask: Ask, control: ControlPlane, missing: str) -> None:
    """And no container is asked."""
    before = control.faults.calls["FunctionGetInputs"]
    assert ask("/pieces", None, {name: value for name, value in TOKEN.items() if name != missing})[0] == 401
    assert control.faults.calls["FunctionGetInputs"] == before


def test_who_waits_too_long_is_redirected_to_where_the_answer_will_be(
    ask: Ask, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it takes. The app is asked once."""
    with monkeypatch.context() as patch:
        patch.setattr(control.web, "redirect_seconds", 0)
        status, headers, _ = ask("/late", b"")
        assert status == 303
        assert ask(headers["Location"])[0] == 303
    assert ask(headers["Location"])[::2] == (200, b'"late"')
    assert ask("/count")[2] == b"1"


def test_a_container_that_dies_is_an_internal_error(ask: Ask) -> None:
    """The next request gets a new one."""
    assert ask("/death")[0] == 500
    assert ask("/nowhere")[0] == 404


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(ask: Ask) -> None:
    """Its status was sent before its container died."""
    with pytest.raises(IncompleteRead):
        ask("/half")
