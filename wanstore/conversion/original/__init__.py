"""The layout that Wan 2.1 was first published in, as a source: read as if it were a diffusers pipeline folder."""

from wanstore.conversion.original._source import OriginalSource, is_original

__all__ = ["OriginalSource", "is_original"]
