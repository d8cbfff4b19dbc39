"""Weights that are published on the Hugging Face Hub: listing, fetching, checking."""

from wanstore.conversion.hub._http import Limits
from wanstore.conversion.hub._source import HubSource

__all__ = ["HubSource", "Limits"]
