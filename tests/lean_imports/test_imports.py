"""What a load leaves out of its imports is left out, and everything works that worked after plain ones.

Each test is a fresh process: what is imported already can't be left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wanstore import loading

ROOT = Path(loading.__file__).parents[2]

LEFT_OUT = ["torch._dynamo", "sympy", "torch.distributed.tensor", "scipy", "sklearn", "peft", "xformers"]

LOAD = """
import json, sys
from pathlib import Path
import torch

asked = []
def tell(name):
    def ask(*arguments):
        asked.append(name)
        return False
    return ask
for name in ("is_available", "device_count", "get_device_capability", "get_device_properties", "mem_get_info"):
    setattr(torch.cuda, name, tell(name))
torch.accelerator.is_available = tell("accelerator")

import builtins, gc, importlib.metadata
before = [builtins.__import__, importlib.metadata.packages_distributions, torch.compiler.disable]
from wanstore.loading._load import load_folder as load
pipe = load(Path(sys.argv[1]), device="cpu", sealed=False)
assert [builtins.__import__, importlib.metadata.packages_distributions, torch.compiler.disable] == before
assert gc.isenabled() and torch.accelerator.is_available() is False
facts = {"asked": asked[:-1], "after load": sorted(sys.modules)}

for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
    model.float()
pipe.set_progress_bar_config(disable=True)
def generate():
    noise = torch.Generator().manual_seed(0)
    clip = pipe("a cat", num_inference_steps=2, height=32, width=32, num_frames=5, output_type="pt", generator=noise)
    return clip.frames
clip = generate()
facts["after a clip"] = sorted(sys.modules)
"""

AFTERWARDS = """
import tempfile
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import import_utils, torch_utils
from transformers import LlamaConfig, LlamaForCausalLM, UMT5EncoderModel
from transformers.masking_utils import create_causal_mask

def refuses(action):
    try:
        action()
    except Exception:
        return True
    return False

# The compiler: its marks are made up for, its functions are disabled, and what it compiles is right.
from torch._dynamo import trace_rules
from torch._dynamo.utils import counters
assert torch._dynamo is sys.modules["torch._dynamo"]
assert id(WanTransformerBlock) in trace_rules._allowed_callable_ids
assert not torch_utils.is_compiled_module(pipe.transformer)
pipe.transformer = torch.compile(pipe.transformer, backend="eager")
assert torch_utils.is_compiled_module(pipe.transformer)
assert torch.equal(generate(), clip)
assert not counters["graph_break"]
def step(number):
    with pipe.progress_bar(total=1):
        return number + 1
assert torch.compile(step, backend="eager")(torch.ones(1)) == 2
torch.compiler.reset()
assert refuses(lambda: torch.compile(step, backend="eager", fullgraph=True)(torch.ones(1)))

# Many GPUs: plans name styles of a registry, which is whole.
llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2, vocab_size=100))
llama.tp_plan = {"model.layers.*.self_attn.q_proj": "colwise"}
assert refuses(lambda: setattr(llama, "tp_plan", {"model.layers.*.self_attn.q_proj": "no such style"}))
assert llama.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False).shape == (1, 6)
mask = create_causal_mask(llama.config, torch.zeros(1, 3, 32), torch.ones(1, 3, dtype=torch.long), past_key_values=None,
                          or_mask_function=lambda batch, head, query, key: key < 2)
assert mask.int().tolist() == [[[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]]

# What the libraries save, they load.
with tempfile.TemporaryDirectory() as folder:
    for model, kind in ((pipe.vae, AutoencoderKLWan), (pipe.text_encoder, UMT5EncoderModel)):
        model.save_pretrained(folder)
        again = kind.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
pipe.vae.enable_layerwise_casting(torch.float16, torch.float32)

# What was answered quickly is answered fully.
assert dict(import_utils._package_map) == importlib.metadata.packages_distributions()
from transformers.utils import import_utils as scanned
assert scanned.fetch__all__('x = 1\\n__all__ = ["Ab", "Cd"]\\n') == ["Ab", "Cd"]
"""


def run(code: str, *arguments: object, path: Path | None = None) -> dict[str, Any]:
    """What `code` prints as its last line, in a process that finds the packages in `path` first."""
    found = os.pathsep.join(str(part) for part in (path, ROOT) if part)
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(json.dumps(facts))", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": found},
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def install(path: Path, package: str, version: str, **modules: str) -> None:
    """A package in `path` as pip leaves it, with the code of its modules."""
    (path / package).mkdir()
    for name in {"__init__", *modules}:
        (path / package / f"{name}.py").write_text(modules.get(name, ""))
    info = path / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(package)


def test_rarely_used_libraries_are_left_out_and_work_when_used(tiny_fp16: Path) -> None:
    """Neither a load nor a clip imports them or looks for a GPU; the compiler and the rest work afterwards."""
    facts = run(LOAD + AFTERWARDS, tiny_fp16)
    assert facts["asked"] == []
    assert set(facts["after load"]).isdisjoint(LEFT_OUT)
    assert set(facts["after a clip"]).isdisjoint(LEFT_OUT)
    assert not [name for name in facts["after load"] if name.startswith("diffusers.quantizers.bitsandbytes")]


def test_installed_extras_wait_until_they_are_used(tmp_path: Path) -> None:
    """Attention packages are imported by `allow_gpu`, a broken one is given up; others when they are called."""
    install(tmp_path, "xformers", "0.0.35", ops="def memory_efficient_attention(): return 'fast'")
    install(tmp_path, "flash_attn", "2.8.0", __init__="raise ImportError('built for another torch')")
    install(tmp_path, "scipy", "1.16.0", optimize="def linear_sum_assignment(costs): return 'solved'", stats="beta = 7")
    code = """
import json, sys
from wanstore.lean_imports import allow_gpu, import_lean
from wanstore.loading._load import LIBRARIES
import_lean(LIBRARIES)
facts = {"early": [name for name in ("xformers", "flash_attn", "scipy") if name in sys.modules]}
from diffusers.models import attention_dispatch as dispatch
assert dispatch._CAN_USE_XFORMERS_ATTN and dispatch._CAN_USE_FLASH_ATTN
allow_gpu()
import xformers.ops
assert dispatch.xops is xformers.ops and dispatch._CAN_USE_XFORMERS_ATTN
assert dispatch.flash_attn_func is None and not dispatch._CAN_USE_FLASH_ATTN
from diffusers.schedulers import scheduling_unipc_multistep
from transformers.loss import loss_for_object_detection
assert "scipy" not in sys.modules
assert loss_for_object_detection.linear_sum_assignment([]) == "solved"
assert scheduling_unipc_multistep.scipy.stats.beta == 7
allow_gpu()
"""
    assert run(code, path=tmp_path)["early"] == []


def test_an_installed_torchvision_does_not_bring_the_compiler(tmp_path: Path) -> None:
    """transformers imports it at its top, and it asks the compiler for one function: that comes when it is called."""
    install(tmp_path, "torchvision", "0.28.0", __init__="from torch._dynamo.utils import is_compile_supported")
    code = """
import json, sys
import torch
from wanstore.lean_imports import deferred_imports
with deferred_imports():
    import torchvision
facts = {"early": [name for name in ("torchvision", "torch._dynamo", "sympy") if name in sys.modules]}
assert torchvision.is_compile_supported("cpu") in (True, False)
import torch._dynamo.utils
assert torchvision.is_compile_supported is torch._dynamo.utils.is_compile_supported
"""
    assert run(code, path=tmp_path)["early"] == ["torchvision"]


def test_a_failing_measure_leaves_the_plain_import() -> None:
    """Whatever goes wrong with deferred imports, the libraries are there; what is missing is said as ever."""
    code = """
import json
from wanstore.lean_imports import _imports as imports
from wanstore.lean_imports._proxies import NameProxy
from wanstore.loading._load import LIBRARIES
proxies, deferring, went_well = imports.make_proxies, imports._import_deferring, []
def unfit():  # this class is in annotations with "|", which no proxy understands
    name = "transformers.configuration_utils"
    return proxies() | {name: {"PreTrainedConfig": NameProxy(name, "PreTrainedConfig")}}
imports.make_proxies = unfit
imports._import_deferring = lambda modules: went_well.append(deferring(modules)) or went_well[-1]
imports.import_lean(LIBRARIES)
assert went_well == [False]
from diffusers import WanPipeline
try:
    imports.import_lean((*LIBRARIES, "no_such_library"))
except ModuleNotFoundError as error:
    facts = {"error": error.name, "because of": repr(error.__context__)}
"""
    assert run(code) == {"error": "no_such_library", "because of": "None"}


PROXIES_LEFT = """
import json, sys
from pathlib import Path
from wanstore.lean_imports._deferred_names import IMPORTERS
from wanstore.lean_imports._proxies import find_proxies
from wanstore.loading._load import load_folder as load

class Meanwhile:
    def start(self, *_): ...
    def advance(self, *_): ...
    def finish(self, *_):  # all weights are there, the libraries are imported, and the load goes on
        global imported
        before = find_proxies(IMPORTERS)
        import torch.distributed.fsdp, torch.distributed.tensor
        imported = [name for _, name, proxy in before if proxy.imported() is not None]
    def message(self, *_): ...

load(Path(sys.argv[1]), device="cpu", sealed=False, progress=Meanwhile())
left = find_proxies(IMPORTERS)
facts = {
    "imported": imported,
    "left": len(left),
    "left and imported": [name for _, name, proxy in left if proxy.imported() is not None],
    "modules": sorted(sys.modules),
}
"""


def test_a_load_leaves_no_proxy_for_what_is_imported_meanwhile(tiny_fp16: Path) -> None:
    """What somebody imports while a load goes on is the real thing in other libraries' namespaces when it is over."""
    facts = run(PROXIES_LEFT, tiny_fp16)
    assert facts["left"] > 0 and facts["left and imported"] == []
    if not facts["imported"]:
        pytest.skip("the installed transformers imports none of them at its top")


def test_the_switch_turns_all_of_it_off(tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANSTORE_PLAIN_IMPORTS=1 no proxy is made, and the compiler comes with the libraries that import it."""
    monkeypatch.setenv("WANSTORE_PLAIN_IMPORTS", "1")
    facts = run(PROXIES_LEFT, tiny_fp16)
    assert facts["left"] == 0
    assert "torch._dynamo" in facts["modules"]
