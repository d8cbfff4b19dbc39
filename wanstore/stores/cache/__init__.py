"""What remote stores keep in the cache (`WANSTORE_CACHE`): look at it, and clear it.

`WANSTORE_CACHE_GIB` limits what downloads take of it. Before a pipeline comes down, others that nobody uses leave to
make room for it: first those that were not used for longest. `local_path` uses a pipeline until the process ends, and
`load` until it returns, or on a GPU for as long as a clip may have to read offloaded weights again.
"""

from wanstore.stores.cache._contents import CachedPipeline, Cleared, cached, clear

__all__ = ["CachedPipeline", "Cleared", "cached", "clear"]
