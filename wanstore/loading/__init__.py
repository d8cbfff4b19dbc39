"""A local pipeline folder becomes a ready pipeline.

`_load` reads a folder into a `WanPipeline`, which `_pipeline` defines. `_activate` brings a pipeline that was prepared
before a memory snapshot onto its device. `_clock` times the phases that a `_report` lists. Importing this is light:
torch comes with a load.
"""

from wanstore.loading._report import Attention, Compiled, LoadReport, Phase
from wanstore.transfer._record import TransferRecord

__all__ = ["Attention", "Compiled", "LoadReport", "Phase", "TransferRecord"]
