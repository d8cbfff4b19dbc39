"""Calls that are spawned, and looked up later by their ids."""

from __future__ import annotations

from typing import Any

import modal
import pytest

from tests.modal_loopback import ControlPlane


def found(call_id: str, client: Any) -> Any:
    """The call as a process sees it that did not start it."""
    return modal.FunctionCall.from_id(call_id, client=client)


def test_a_call_is_found_by_its_id(client: Any) -> None:
    """While it is at work, and as often as one likes when it is done."""
    call = modal.Function.from_name("small", "half", client=client).spawn(8, seconds=1)
    with pytest.raises(TimeoutError):
        found(call.object_id, client).get(timeout=0)
    assert found(call.object_id, client).get() == 4
    assert found(call.object_id, client).get(timeout=0) == 4


def test_a_container_spawns(client: Any) -> None:
    """The call is the control plane's, not the container's."""
    call_id = modal.Function.from_name("small", "start_half", client=client).remote(8)
    assert found(call_id, client).get() == 4


def test_an_id_that_was_never_given_is_not_found(client: Any) -> None:
    """As `NotFoundError`."""
    with pytest.raises(modal.exception.NotFoundError):
        found("fc-nobody", client).get(timeout=0)


def test_outputs_expire(control: ControlPlane, client: Any) -> None:
    """As `OutputExpiredError`, at once, whatever the call has come to."""
    call = modal.Function.from_name("small", "half", client=client).spawn(8)
    assert call.get() == 4
    control.faults.expire(call.object_id)
    with pytest.raises(modal.exception.OutputExpiredError):
        found(call.object_id, client).get(timeout=0)
