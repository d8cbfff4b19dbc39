"""Which device a pipeline goes to."""

from __future__ import annotations

import torch

from wanstore._error_translation import first_line
from wanstore.errors import NotSupportedError


def pick_device(wanted: str | torch.device | None) -> torch.device:
    """The device, tried out and with its number; CUDA where there is one if none is named.

    Asked for the CPU it leaves CUDA alone.

    Raises `NotSupportedError` when it can't be used.
    """
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        raise NotSupportedError(
            f"There is no device {wanted} ({first_line(error)})", "Use cpu, or a machine that has it"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise NotSupportedError(f"Pipelines don't go to a device {wanted}", "Use cpu or cuda")
    return device
