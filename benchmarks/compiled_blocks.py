"""What compiled transformer blocks save in a forward, and what each way to keep them costs a fresh process.

A Wan 2.1 T2V-1.3B transformer of full size with random weights is built on the GPU; times do not depend on the values.
Each way is a process of its own, and begins with an empty TORCHINDUCTOR_CACHE_DIR if it is to show a fresh machine:

    python benchmarks/compiled_blocks.py eager            # as diffusers runs it; keeps its output to compare with
    python benchmarks/compiled_blocks.py jit              # compile_repeated_blocks; keeps torch's cache artifacts
    python benchmarks/compiled_blocks.py jit-cached       # the same with those artifacts
    python benchmarks/compiled_blocks.py function         # torch.compile(...).aot_compile of a block, kept in a file
    python benchmarks/compiled_blocks.py function-loaded  # all blocks run the function of that file
    python benchmarks/compiled_blocks.py package          # an AOTInductor package of a block, parameters as inputs
    python benchmarks/compiled_blocks.py package-loaded   # all blocks run that package

`--device cpu` takes a transformer of two small layers, to try the script itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from full_size import TRANSFORMER

from wanstore.components import COMPONENTS
from wanstore.presets import SPATIAL, ClipSize, preset_named
from wanstore.testing import tiny_wan


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.2f} s", flush=True)


class Blocks:
    """A transformer, inputs of one preset, and the ways to run its blocks."""

    def __init__(self, device: str, clip: ClipSize, kept: Path) -> None:
        self.device, self.kept = device, kept
        torch.manual_seed(0)
        with torch.device(device):
            config = tiny_wan.TRANSFORMER if device == "cpu" else TRANSFORMER
            self.transformer: Any = WanTransformer3DModel.from_config(config)
        self.transformer.eval().requires_grad_(False)
        for name, parameter in self.transformer.named_parameters():
            if not COMPONENTS["transformer"].keeps_float32(name):
                parameter.data = parameter.data.half()
        text_dim = self.transformer.config.text_dim
        latent = (1, 16, clip.latent_frames, clip.height // SPATIAL, clip.width // SPATIAL)
        self.inputs = {
            "hidden_states": torch.randn(latent, device=device, dtype=torch.float16),
            "timestep": torch.tensor([500], device=device),
            "encoder_hidden_states": torch.randn(1, 512, text_dim, device=device, dtype=torch.float16),
        }
        self.first: Any = self.transformer.blocks[0]
        self.names = [name for name, _ in self.first.named_parameters()]

    def forward(self) -> torch.Tensor:
        output: torch.Tensor = self.transformer(**self.inputs, return_dict=False)[0]
        if self.device == "cuda":
            torch.cuda.synchronize()
        return output

    def arguments(self) -> tuple[Any, ...]:
        """What a forward gives its first block."""
        seen: list[tuple[Any, ...]] = []
        hook = self.first.register_forward_pre_hook(lambda _, given: seen.append(given))
        self.forward()
        hook.remove()
        return seen[0]

    def run_by(self, run: Callable[..., Any]) -> None:
        """Let every block run `run(block, *arguments)`."""
        for block in self.transformer.blocks:
            block._compiled_call_impl = lambda *given, block=block: run(block, *given)

    def jit(self) -> None:
        self.transformer.compile_repeated_blocks(fullgraph=True)

    def jit_cached(self) -> None:
        torch.compiler.load_cache_artifacts((self.kept / "cache").read_bytes())
        self.jit()

    def save_function(self) -> None:
        given = self.arguments()
        with timed("compiled"):
            compiled: Any = torch.compile(type(self.first).forward, fullgraph=True)
            made = compiled.aot_compile(((self.first, *given), {}))
        made.save_compiled_function(str(self.kept / "function"))

    def load_function(self) -> None:
        with timed("loaded"), (self.kept / "function").open("rb") as file:
            self.run_by(torch.compiler.load_compiled_function(file))

    def save_package(self) -> None:
        hidden, text, time_embedding, rotary = self.arguments()
        block, names = self.first, self.names

        class Pure(torch.nn.Module):
            """The block with its parameters as inputs, so that one package serves every block."""

            def forward(self, parameters: list[torch.Tensor], *given: torch.Tensor) -> Any:
                *plain, cosines, sines = given
                values = dict(zip(names, parameters, strict=True))
                return torch.func.functional_call(block, values, (*plain, (cosines, sines)))

        with timed("compiled"):
            parameters = [parameter.detach() for parameter in block.parameters()]
            exported = torch.export.export(Pure(), (parameters, hidden, text, time_embedding, *rotary))
            torch._inductor.aoti_compile_and_package(exported, package_path=str(self.kept / "package.pt2"))

    def load_package(self) -> None:
        with timed("loaded"):
            loader = torch._C._aoti.AOTIModelPackageLoader(str(self.kept / "package.pt2"), "model", True, 1, -1)

        def run(block: Any, hidden: Any, text: Any, time_embedding: Any, rotary: Any) -> Any:
            values = dict(block.named_parameters())
            inputs = [*(values[name].detach() for name in self.names), hidden, text, time_embedding, *rotary]
            return loader.boxed_run(inputs)[0]

        self.run_by(run)


WAYS: dict[str, Callable[[Blocks], None]] = {
    "eager": lambda _: None,
    "jit": Blocks.jit,
    "jit-cached": Blocks.jit_cached,
    "function": Blocks.save_function,
    "function-loaded": Blocks.load_function,
    "package": Blocks.save_package,
    "package-loaded": Blocks.load_package,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--preset", default="480p/3s")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--kept", type=Path, default=Path("build/compiled-blocks"), help="where files are kept")
    asked = parser.parse_args()
    asked.kept.mkdir(parents=True, exist_ok=True)
    blocks = Blocks(
        asked.device, ClipSize(64, 64, 9) if asked.device == "cpu" else preset_named(asked.preset).clip, asked.kept
    )
    reference = asked.kept / "reference.pt"
    if asked.way not in ("eager", "package-loaded"):
        with timed("torch's compiler imported"):
            import_module("torch._dynamo").config.enable_aot_compile = True
            import_module("torch._inductor.compile_fx")
    with torch.no_grad():
        WAYS[asked.way](blocks)
        if asked.way in ("function", "package"):
            return
        with timed("first forward"):
            output = blocks.forward()
        began = time.perf_counter()
        for _ in range(4):
            output = blocks.forward()
        print(f"a forward: {(time.perf_counter() - began) / 4 * 1e3:.1f} ms")
    if asked.way == "eager":
        torch.save(output.cpu(), reference)
    elif reference.exists():
        difference = (output.cpu() - torch.load(reference)).float()
        print(f"largest difference from eager: {difference.abs().max().item():.2g}")
    if asked.way == "jit" and (artifacts := torch.compiler.save_cache_artifacts()):
        (asked.kept / "cache").write_bytes(artifacts[0])


if __name__ == "__main__":
    main()
