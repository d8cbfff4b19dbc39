"""Published weights to a clip, on one machine with a local store.

    python examples/local_quickstart.py [--source Wan-AI/Wan2.1-T2V-1.3B-Diffusers] [--store ./models]

Needs about 25 GB of disk for the 1.3B model while it is set up (14.5 GB afterwards), and a GPU to generate in
reasonable time. Run it again: setup has nothing to do the second time.
"""

import argparse
from pathlib import Path

import wanstore
from wanstore.generation import generate, write_clip
from wanstore.presets import preset_named

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
parser.add_argument("--store", default="./models")
parser.add_argument("--preset", default="480p/3s")
parser.add_argument("--prompt", default="A cat walks on the grass, realistic style.")
options = parser.parse_args()

store = wanstore.open_store(options.store)
manifest = wanstore.setup(options.source, store, name="wan2.1-fp16")
print(f"{manifest.name}: {manifest.size_bytes / 1e9:.2f} GB of {manifest.source.location}")

pipe = wanstore.load("wan2.1-fp16", store=store)
print(pipe.load_report)

write_clip(generate(pipe, options.prompt, preset_named(options.preset)), Path("clip.mp4"))
print("clip.mp4")
