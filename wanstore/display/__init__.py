"""What people are shown, by the command, in notebooks and on pages: progress, tables, and figures as text."""

from wanstore.display._manifest import PlainTable, manifest_tables
from wanstore.display._progress import shown
from wanstore.display._text import escaped, human_bytes

__all__ = ["PlainTable", "escaped", "human_bytes", "manifest_tables", "shown"]
