"""What may be asked of the endpoint, checked before a GPU wakes for it. Needs pydantic and attrs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from wanstore.presets import PRESETS

Text = Annotated[str, StringConstraints(max_length=2000)]
"""Wan 2.1 reads 512 tokens of a prompt, and nothing beyond them."""


class ClipRequest(BaseModel):
    """One clip. Values of another type are refused, not converted, and so is a name that is not here."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1)]
    preset: str = "480p/3s"
    negative_prompt: Text | None = None
    """None for the model's own."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    may_degrade: bool = True
    """Whether another preset will do while too many requests wait."""

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"there is no such preset, only {', '.join(PRESETS)}")
        return preset


def checked(request: Any) -> ClipRequest:
    """The request, or `ValueError` with a line on each field that is wrong."""
    try:
        return ClipRequest.model_validate(request)
    except ValidationError as error:
        wrong = [(".".join(map(str, one["loc"])) or "the request", one["msg"]) for one in error.errors()]
        raise ValueError("; ".join(f"{where}: {what}" for where, what in wrong)) from None
