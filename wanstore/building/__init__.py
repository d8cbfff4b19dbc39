"""How the parts of a pipeline folder become modules.

In the order of a load: `_check` compares the folder with its manifest, `_weight_files` opens the weights and reads
their headers, `_weight_transfer` sends them on their way, `_skeleton` builds the models without weights and gives them
theirs, `_tokenizer` and `_scheduler` build the small parts, `_attention` tries the attention backend.
"""
