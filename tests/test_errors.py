"""Errors are wanstore's own, and the built-in that fits."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

import wanstore
from wanstore import errors
from wanstore.errors import (
    AccessError,
    AlreadyExistsError,
    DeviceMemoryError,
    DiskFullError,
    InvalidNameError,
    InvalidSettingError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
    WanstoreError,
    without_secrets,
)
from wanstore.generation import check_place

EVERY = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, WanstoreError)]


@pytest.mark.parametrize(
    ("ours", "built_in"),
    [
        (NotFoundError, FileNotFoundError),
        (AlreadyExistsError, FileExistsError),
        (AccessError, PermissionError),
        (UnreachableError, ConnectionError),
        (DiskFullError, OSError),
        (InvalidNameError, ValueError),
        (InvalidSettingError, ValueError),
        (NotSupportedError, ValueError),
        (DeviceMemoryError, MemoryError),
    ],
)
def test_code_that_does_not_know_wanstore_can_catch_it(ours: type[WanstoreError], built_in: type[Exception]) -> None:
    """By the built-in, with the message that wanstore gives it."""
    with pytest.raises(built_in) as caught:
        raise ours("There is no pipeline 'w'", "Run setup")
    assert str(caught.value) == "There is no pipeline 'w'. Run setup."


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_after_a_trip_to_another_process(kind: type[WanstoreError]) -> None:
    """What happened, the next step, and whether work can be resumed."""
    before = kind("The disk is full", "Free some space")
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is kind
    assert (str(after), after.what, after.next_step) == (str(before), before.what, before.next_step)
    assert after.resumable == before.resumable


def test_a_missing_pipeline_is_a_file_that_is_not_found(tmp_path: Path) -> None:
    """Through the public functions."""
    with pytest.raises(FileNotFoundError):
        wanstore.load("nobody", store=tmp_path)
    with pytest.raises(ValueError, match="cannot name a pipeline"):
        wanstore.load("../x", store=tmp_path)


def test_an_error_that_is_an_os_error_too_is_not_taken_for_the_systems(tmp_path: Path) -> None:
    """Where errors of the operating system are translated, ours keep their kind."""
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(AlreadyExistsError):
        check_place(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cret@host/x cannot be reached",
        "'modal://:s3cret@volume' does not name a Modal Volume",
        "https://user:p@ss:s3cret@host cannot be reached",
        "'hf_s3cretABCDEFGHIJKLMNOPQRST' is neither a folder nor a Hub repo",
    ],
)
def test_no_message_repeats_a_secret_that_was_typed(text: str) -> None:
    """Wherever it was: messages end up in logs."""
    error = WanstoreError(text, text)
    assert "s3cret" not in str(error) + error.what + error.next_step and "***" in str(error)


def test_commands_do_not_repeat_a_secret_of_the_stores_address() -> None:
    """Neither on the screen nor, as the command that made it, on a page of benchmarks."""
    assert without_secrets("wanstore bench w --store s3://key:s3cret@bucket/x") == (
        "wanstore bench w --store s3://***@bucket/x"
    )


def test_the_addresses_in_a_message_stay_readable() -> None:
    """Only what comes before an @ in the host's place is a secret."""
    text = "modal://volume/name@1 and https://host/a@b and me@host"
    assert WanstoreError(text).what == text
