"""How bytes get from files, or from host memory, to a device. Knows nothing of pipelines.

A layout says which buffers tensors are views of, and which chunks of the files fill them. A reader gives the bytes of
chunks; a read queue keeps many reads in progress, each into a slot. The GPU copies from the slots.
"""
