"""Weights that are published on the Hugging Face Hub: listing, fetching, checking."""

from wanstore.conversion.hub._source import HubSource, Limits

__all__ = ["HubSource", "Limits"]
