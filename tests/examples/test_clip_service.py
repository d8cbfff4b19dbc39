"""examples/clip_service.py: the endpoint's HTTP, without Modal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="what the web function's image has")
sys.path.append(str(Path(__file__).parents[2] / "examples"))

from clip_service import BODY_BYTES, service  # type: ignore[import-not-found]
from fastapi import testclient

MADE = {"mp4": b"mp4", "preset": "480p/3s", "degraded": True, "reason": "the queue is long", "seconds": 2.5}


def nothing(_: Any) -> Any:
    pytest.fail("it was not to be called")


def fails(error: Exception) -> Callable[[Any], Any]:
    def work(_: Any) -> Any:
        raise error

    return work


def http(make: Any = nothing, submit: Any = nothing, find: Any = nothing) -> Any:
    return testclient.TestClient(service(make, submit, find))


def test_a_clip_is_the_answer_and_headers_say_how_it_was_made() -> None:
    """The work is given what was sent, as it was sent."""
    asked: dict[str, Any] = {}

    def make(request: Any) -> Any:
        asked.update(request)
        return MADE

    answer = http(make).post("/clip", json={"prompt": "a fox"})
    assert asked == {"prompt": "a fox"}
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"mp4", "video/mp4")
    assert answer.headers["x-wanstore-degraded"] == "True" and answer.headers["x-wanstore-reason"] == MADE["reason"]


def test_a_job_has_an_id_and_an_address() -> None:
    """202: it was accepted, and is not done."""
    answer = http(submit=lambda _: {"id": "fc-1", "estimate_seconds": 60}).post("/clips", json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["id"], answer.headers["location"]) == (202, "fc-1", "/clips/fc-1")


def test_a_job_is_looked_at_by_its_id_until_the_clip_is_there() -> None:
    """202 with the state, then 200 with the clip."""
    answer = http(find=lambda job: {"id": job, "state": "in progress"}).get("/clips/fc-1")
    assert (answer.status_code, answer.json()) == (202, {"id": "fc-1", "state": "in progress"})
    assert http(find=lambda _: MADE).get("/clips/fc-1").content == b"mp4"


@pytest.mark.parametrize(
    ("error", "status", "of_job"),
    [
        (ValueError("prompt: too long"), 422, 422),
        (RuntimeError("the queue is too long"), 503, 500),
        (TimeoutError("not done"), 504, 504),
        (LookupError("there is no such job"), 404, 404),
    ],
)
def test_built_in_errors_are_statuses(error: Exception, status: int, of_job: int) -> None:
    """With the reason; never a traceback."""
    client = http(fails(error), fails(error), fails(error))
    answers = [client.post("/clip", json={}), client.post("/clips", json={}), client.get("/clips/fc-1")]
    assert [answer.status_code for answer in answers] == [status, status, of_job]
    assert all(answer.json()["detail"] == error.args[0] for answer in answers)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 60_000])
def test_what_is_not_json_goes_no_further(body: bytes) -> None:
    """400."""
    assert http().post("/clip", content=body).status_code == 400


def test_a_body_has_a_limit() -> None:
    """Whatever its header says; the rest is not read."""
    parts = (b"a" * 1024 for _ in range(1000))
    assert http().post("/clips", content=parts).status_code == 413
    assert http().post("/clips", content=b"a" * (BODY_BYTES + 1)).status_code == 413
