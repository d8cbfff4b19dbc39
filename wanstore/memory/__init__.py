"""What a clip needs of a GPU's memory, and how components make room for one another.

`_plan` says which components are offloaded and in how many tiles a clip is decoded. `_estimate` works out what a clip
needs under a plan, and chooses one. `_schedule` has the right components on the device in each phase of a clip;
`_offload` takes them off and brings them back. `_vae` decodes in less memory, in the tiles of `_tiles`. `_origin` is
what a pipeline was prepared from: where offloaded components come back from.
"""

from wanstore.memory._plan import MemoryPlan

__all__ = ["MemoryPlan"]
