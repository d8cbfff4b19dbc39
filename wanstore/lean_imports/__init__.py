"""torch, diffusers and transformers, imported in half the time. Knows nothing of pipelines.

Most of what these imports cost is code that the libraries import at their top and a load never uses. This folder
imports the same libraries and defers the rest until somebody uses it.

What is deferred:

- names of scipy, scikit-learn, peft, quantization packages, `torch.distributed.tensor` and attention packages:
  the list, with the reason for each group, is in `_deferred_names.py`;
- PyTorch's compiler, `torch._dynamo`: `_dynamo.py`;
- `importlib.metadata.packages_distributions()`, and transformers' second scan of its model files: `_shortcuts.py`;
- the question whether there is a GPU: CUDA's answer holds for the life of a process, and a process that goes into a
  CPU memory snapshot must not have asked. `allow_gpu` lets the libraries ask later.

How: while `deferred_imports()` is active, an import statement in diffusers, transformers or torchvision that asks for a
listed name gets a proxy (`_proxies.py`). The first use of the proxy imports the real module.

Why it is safe:

- A proxy is bound only in the module whose import statement asked for it. It is never in `sys.modules`, so every other
  import, in your code or in another thread, gets the real module.
- A statement that asks for any name that is not listed, or for a module that is imported already, is left alone. A new
  release that imports other names is slower, not wrong.
- If an import fails while others are deferred, it is made again plainly.
- `resolve_imported`, which a load calls last, replaces each proxy whose real module has been imported meanwhile.

How to check a new release of torch, diffusers or transformers: `pytest tests/lean_imports` runs every deferred
feature after a load, and `python benchmarks/imports.py` shows what the release costs. Then look through
`_deferred_names.py` for names that the release no longer imports.

Switch: with `WANSTORE_PLAIN_IMPORTS=1` in the environment nothing here is deferred, hidden or shortened. The libraries
are imported as an `import` statement does it. An installed attention package may then look for a GPU, so do not take a
CPU memory snapshot of such a process.
"""

from wanstore.lean_imports._imports import (
    allow_gpu,
    collection_paused,
    deferred_imports,
    import_lean,
    resolve_imported,
)
from wanstore.lean_imports._library_logs import quiet_libraries

__all__ = [
    "allow_gpu",
    "collection_paused",
    "deferred_imports",
    "import_lean",
    "quiet_libraries",
    "resolve_imported",
]
