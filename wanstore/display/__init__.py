"""What people are shown, by the command, in notebooks and on pages: progress, and figures as text."""

from wanstore.display._progress import TerminalProgress, shown
from wanstore.display._text import escaped, human_bytes

__all__ = ["TerminalProgress", "escaped", "human_bytes", "shown"]
