"""Which components compute in float32 instead of float16. No torch: weights start moving before it is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wanstore.components import COMPONENTS
from wanstore.errors import NotSupportedError

FLOAT16, FLOAT32 = "float16", "float32"


def check_dtypes(asked: object) -> dict[str, str]:
    """The components that are asked to compute in float32, each with that name; the others do in float16.

    `asked` are dtypes, torch's or their names, by component; None asks for nothing. Raises `NotSupportedError`
    for another component or dtype.
    """
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        raise NotSupportedError(f"{asked!r} is not a dtype by component", 'Write it as {"vae": "float32"}')
    found = {component: str(dtype).removeprefix("torch.") for component, dtype in asked.items()}
    for component, dtype in found.items():
        if component not in COMPONENTS:
            raise NotSupportedError(
                f"There is no component {component!r} that has weights", f"Choose from {', '.join(COMPONENTS)}"
            )
        if dtype not in (FLOAT16, FLOAT32):
            raise NotSupportedError(f"{component} can't compute in {dtype}", f"Choose {FLOAT16} or {FLOAT32}")
    return {component: dtype for component, dtype in sorted(found.items()) if dtype == FLOAT32}


def stays_float32(component: str, dtypes: Mapping[str, str]) -> Callable[[str], bool]:
    """Which of the component's tensors are float32 on the device, by their names."""
    return (lambda _: True) if dtypes.get(component) == FLOAT32 else COMPONENTS[component].keeps_float32
