"""A pipeline that offloads components makes the clips that one with all of them on the device makes."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from wanstore import MemoryPlan, activate
from wanstore.errors import ChangedError, DeviceMemoryError, NotFoundError, NotSupportedError
from wanstore.loading._load import load_folder as load
from wanstore.memory import _schedule as schedules
from wanstore.presets import ClipSize
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import make_tiny_wan
from wanstore.transfer import _transfer as transfer

MODELS = ("text_encoder", "transformer", "vae")
OFFLOADED, ALL = MemoryPlan(("text_encoder",)), MemoryPlan(MODELS)
PLANS = [
    "offload",
    MemoryPlan(),
    ALL,
    MemoryPlan(tiles=2),
    MemoryPlan(("text_encoder",), from_host=True),
    MemoryPlan(MODELS, tiles=2, from_host=True),
]


@pytest.fixture(scope="session")
def sealed(tiny_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed folder that nobody changes."""
    folder = Path(shutil.copytree(tiny_fp16, tmp_path_factory.mktemp("sealed") / "tiny"))
    seal_as_is(folder)
    return folder


@cache
def resident(folder: Path, device: str = "cpu") -> Any:
    """One that offloads nothing and decodes with diffusers' own VAE, to compare with; one a session."""
    return load_tiny(folder, "resident", device=device)


def load_tiny(folder: Path, memory: Any, *, device: str | None = "cpu", weights: Any = "resident") -> Any:
    """With the VAE in float32: on a CPU that is several times quicker."""
    return load(folder, device=device, weights=weights, memory=memory, dtype={"vae": "float32"})


def clip(pipe: Any, prompt: Any = "a cat", seed: int = 0, **arguments: Any) -> torch.Tensor:
    """A small one, as a tensor."""
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipe(prompt, generator=generator, **{"output_type": "pt", **size, **arguments}).frames
    assert isinstance(result, torch.Tensor)
    return result


SHORT: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 1}
"""For an even smaller one, where what happens to the parts is under test."""


@cache
def wanted(folder: Path, prompt: str = "a cat", seed: int = 0, **arguments: Any) -> torch.Tensor:
    """The clip that diffusers' own pipeline makes."""
    return clip(resident(folder), prompt, seed, **arguments)


def away(pipe: Any) -> set[str]:
    """The components without weights; those that have some have all."""
    found = set()
    for name in MODELS:
        sizes = {parameter.numel() > 0 for parameter in getattr(pipe, name).parameters()}
        assert len(sizes) == 1, f"{name} is half there"
        found |= set() if sizes.pop() else {name}
    return found


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wanstore-")]


def open_files(folder: Path) -> list[str]:
    """What this process has open below the folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except OSError:  # the one that listed them
            continue
    return [path for path in found if path.startswith(str(folder))]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever happened: no thread of its own."""
    yield
    assert not own_threads()


# --- the clips


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_under_each_plan_clips_are_bit_for_bit_the_resident_ones(sealed: Path, plan: Any) -> None:
    """The first, the second with another prompt, and the first again."""
    pipe = load_tiny(sealed, plan)
    for prompt, seed in (("a cat", 0), ("a dog in the sun", 1), ("a cat", 0)):
        assert torch.equal(clip(pipe, prompt, seed), wanted(sealed, prompt, seed))
        assert pipe.memory_plan == (OFFLOADED if plan == "offload" else plan)
        assert not open_files(sealed)


@pytest.mark.parametrize("plan", [OFFLOADED, ALL, MemoryPlan(("vae",))], ids=str)
def test_what_is_offloaded_is_there_for_its_stage_only(sealed: Path, plan: MemoryPlan) -> None:
    """While denoising, while decoding, and at rest, when the text encoder waits for the next prompt."""
    pipe = load_tiny(sealed, plan)
    seen = {}

    def denoised(*_: Any) -> dict[str, Any]:
        seen["denoising"] = away(pipe)
        return {}

    def decoded(*_: Any) -> None:
        seen["decoding"] = away(pipe)

    pipe.vae.decoder.conv_in.register_forward_hook(decoded)
    clip(pipe, callback_on_step_end=denoised, **SHORT)
    offloaded = set(plan.offloaded)
    assert seen == {"denoising": offloaded - {"transformer"}, "decoding": offloaded - {"vae"}}
    assert away(pipe) == offloaded - {"text_encoder"}


def test_what_comes_back_has_every_bit_and_its_tie(sealed: Path) -> None:
    """Weights, dtypes and buffers, and the text encoder's embedding once."""
    pipe, whole = load_tiny(sealed, ALL), resident(sealed)
    clip(pipe, **SHORT)
    assert away(pipe) == {"transformer", "vae"}
    pipe._schedule.offloader.bring_back(MODELS)
    for name in MODELS:
        held, other = getattr(pipe, name), getattr(whole, name)
        assert list(held.state_dict()) == list(other.state_dict())
        for key, tensor in other.state_dict().items():
            assert held.state_dict()[key].dtype == tensor.dtype and torch.equal(held.state_dict()[key], tensor), key
        grads = [parameter.requires_grad for parameter in held.parameters()]
        assert grads == [parameter.requires_grad for parameter in other.parameters()]
    assert pipe.text_encoder.encoder.embed_tokens.weight is pipe.text_encoder.shared.weight


# --- prompts


@pytest.fixture
def counted(sealed: Path) -> tuple[Any, list[int]]:
    """A pipeline, and a list that grows with each run of its text encoder."""
    pipe: Any = load_tiny(sealed, ALL)
    runs: list[int] = []
    pipe.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    return pipe, runs


def test_a_known_prompt_is_not_encoded_again(counted: tuple[Any, list[int]], sealed: Path) -> None:
    """Nor is the negative one, which is the same for all."""
    pipe, runs = counted
    for seed, prompt, expected in ((0, "a cat", 2), (1, "a cat", 2), (0, "a dog", 3), (0, "a cat", 3)):
        made = clip(pipe, prompt, seed, **SHORT)
        assert len(runs) == expected
        assert torch.equal(made, wanted(sealed, prompt, seed, **SHORT))


def test_a_known_prompt_of_another_length_is_another(counted: tuple[Any, list[int]]) -> None:
    """Its embeddings are of another size."""
    pipe, runs = counted
    for length in (16, 24):
        clip(pipe, max_sequence_length=length, **{**SHORT, "guidance_scale": 1.0})
    assert len(runs) == 2


def test_the_embeddings_of_sixteen_prompts_are_kept(counted: tuple[Any, list[int]]) -> None:
    """The one that was not used for the longest goes first."""
    pipe, runs = counted
    for number in range(16):
        pipe.encode_prompt(f"a cat, {number}", do_classifier_free_guidance=False)
    pipe.encode_prompt("a cat, 0", do_classifier_free_guidance=False)
    assert len(runs) == 16
    pipe.encode_prompt("a cat, 16", do_classifier_free_guidance=False)
    assert len(pipe._prompts) == 16
    pipe.encode_prompt("a cat, 0", do_classifier_free_guidance=False)
    assert len(runs) == 17
    pipe.encode_prompt("a cat, 1", do_classifier_free_guidance=False)
    assert len(runs) == 18


def test_kept_embeddings_hold_no_weights(sealed: Path) -> None:
    """Also where nobody switched gradients off: a graph behind them would keep the text encoder in memory."""
    pipe = load_tiny(sealed, "offload")
    assert torch.is_grad_enabled()
    embeddings, _ = pipe.encode_prompt("a cat")
    assert not embeddings.requires_grad
    assert all(not kept.requires_grad for kept in pipe._prompts.values())


@pytest.mark.parametrize("plan", [OFFLOADED, ALL], ids=str)
def test_prompts_come_in_all_of_diffusers_ways(sealed: Path, plan: MemoryPlan) -> None:
    """As lists, several clips of one, embedded before, and without guidance."""
    pipes = [load_tiny(sealed, plan), resident(sealed)]
    ways: list[dict[str, Any]] = [
        {"prompt": ["a cat", "a dog"]},
        {"prompt": "a cat", "num_videos_per_prompt": 2},
        {"prompt": "a cat", "negative_prompt": "blurred", "output_type": "latent"},
        {"prompt": "a cat", "guidance_scale": 1.0},
    ]
    for way in ways:
        made, expected = (clip(pipe, **SHORT, **way) for pipe in pipes)
        assert made.shape == expected.shape and torch.equal(made, expected), way
    made, expected = (_embedded_before(pipe) for pipe in pipes)
    assert torch.equal(made, expected)


def _embedded_before(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        ours, negative = pipe.encode_prompt("a cat", max_sequence_length=16)
    return clip(pipe, None, prompt_embeds=ours, negative_prompt_embeds=negative, **SHORT)


@pytest.mark.parametrize("plan", [OFFLOADED, ALL], ids=str)
def test_inference_mode_leaves_nothing_that_another_clip_stumbles_over(sealed: Path, plan: MemoryPlan) -> None:
    """What comes back in it is used outside of it afterwards."""
    pipe = load_tiny(sealed, plan)
    with torch.inference_mode():
        assert torch.equal(clip(pipe, **SHORT), wanted(sealed, **SHORT))
    for prompt in ("a cat", "a dog"):
        assert torch.equal(clip(pipe, prompt, **SHORT), wanted(sealed, prompt, **SHORT))


# --- parts by themselves


def test_encoding_and_decoding_work_by_themselves(sealed: Path) -> None:
    """In any order, and each brings what it needs."""
    pipe, whole = load_tiny(sealed, ALL), resident(sealed)
    latents = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(2):
            made, expected = pipe.vae.decode(latents), whole.vae.decode(latents)
            assert torch.equal(made.sample, expected.sample)
            assert away(pipe) == {"text_encoder", "transformer"}
            ours, theirs = pipe.encode_prompt("a cat"), whole.encode_prompt("a cat")
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert torch.equal(clip(pipe, **SHORT), wanted(sealed, **SHORT))


def test_whole_weights_are_saved_whatever_is_away(sealed: Path, tmp_path: Path) -> None:
    """diffusers' own loader reads them: every bit, under diffusers' own class names."""
    pipe = load_tiny(sealed, ALL)
    clip(pipe, **SHORT)
    pipe.save_pretrained(tmp_path / "saved")
    saved: Any = diffusers.WanPipeline.from_pretrained(str(tmp_path / "saved"), dtype=torch.float16)
    for name in MODELS:
        expected = getattr(resident(sealed), name)
        assert type(getattr(saved, name)) is type(expected)
        for key, tensor in expected.state_dict().items():
            assert torch.equal(getattr(saved, name).state_dict()[key], tensor), key
    assert torch.equal(clip(pipe, **SHORT), wanted(sealed, **SHORT))


@pytest.mark.parametrize("memory", [ALL, "auto", "resident"], ids=str)
def test_two_threads_with_one_pipeline_both_get_their_clips(sealed: Path, memory: Any) -> None:
    """In every mode one waits for the other: they share the scheduler, and what is offloaded."""
    pipe = load_tiny(sealed, memory)
    tasks = [("a cat", 0), ("a dog in the sun", 1)]
    made: dict[int, Any] = {}

    def make(prompt: str, seed: int) -> None:
        try:
            made[seed] = [clip(pipe, prompt, seed, **SHORT) for _ in range(2)]
        except Exception as error:
            made[seed] = error

    threads = [threading.Thread(target=make, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt, seed in tasks:
        assert isinstance(made[seed], list), made[seed]
        assert all(torch.equal(one, wanted(sealed, prompt, seed, **SHORT)) for one in made[seed])


# --- what goes wrong


@pytest.mark.parametrize("plan", [OFFLOADED, ALL, MemoryPlan(MODELS, from_host=True)], ids=str)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("phase", ["text_encoding", "denoising", "decoding"])
def test_after_an_error_in_mid_clip_the_next_clip_is_right(
    sealed: Path, plan: MemoryPlan, error: type[BaseException], phase: str
) -> None:
    """Whatever was there or away; no thread runs on and no file stays open."""
    pipe = load_tiny(sealed, plan)
    clip(pipe, **SHORT)

    def fail(*_: Any) -> Any:
        raise error("on purpose")

    broken = {"text_encoding": pipe.text_encoder, "denoising": pipe.transformer, "decoding": pipe.vae.decoder.conv_out}[
        phase
    ]
    hook = broken.register_forward_pre_hook(fail)
    if phase == "decoding":  # which calls the convolution's method, not the module
        hook.remove()
        hook = pipe.vae.decoder.norm_out.register_forward_pre_hook(fail)
    with pytest.raises(error, match="on purpose"):
        clip(pipe, "a dog", **SHORT)
    hook.remove()
    assert not own_threads()
    assert not open_files(sealed)
    assert torch.equal(clip(pipe, "a dog", **SHORT), wanted(sealed, "a dog", **SHORT))


def test_after_an_error_between_two_steps_the_next_clip_is_right(sealed: Path) -> None:
    """From the caller's own callback."""
    pipe = load_tiny(sealed, ALL)

    def fail(_: Any, step: int, *__: Any) -> Any:
        raise ValueError(f"after step {step}")

    with pytest.raises(ValueError, match="after step 0"):
        clip(pipe, callback_on_step_end=fail)
    assert not open_files(sealed)
    assert torch.equal(clip(pipe), wanted(sealed))


def _gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _replaced(folder: Path) -> None:
    _gone(folder)
    seal_as_is(make_tiny_wan(folder, dtype="float16", seed=5))


@pytest.mark.parametrize(("change", "error"), [(_gone, NotFoundError), (_replaced, ChangedError)])
@pytest.mark.parametrize("plan", [OFFLOADED, MemoryPlan(("text_encoder", "transformer"))], ids=str)
def test_a_folder_that_changed_costs_no_finished_clip(
    tiny_sealed: Path, plan: MemoryPlan, change: Callable[[Path], None], error: type[Exception]
) -> None:
    """It is returned; the next one, which needs the folder, says what is wrong, and the one after it works again."""
    pipe, expected = load_tiny(tiny_sealed, plan), clip(resident(tiny_sealed), **SHORT)
    other = clip(resident(tiny_sealed), "a dog", **SHORT)

    def on_step_end(*_: Any) -> dict[str, Any]:
        change(tiny_sealed)
        return {}

    assert torch.equal(clip(pipe, callback_on_step_end=on_step_end, **SHORT), expected)
    for _ in range(2):
        with pytest.raises(error, match="prepared from"):
            clip(pipe, "a dog", **SHORT)
        assert not open_files(tiny_sealed)
    shutil.rmtree(tiny_sealed, ignore_errors=True)
    tiny_sealed.with_name("elsewhere").rename(tiny_sealed)
    assert torch.equal(clip(pipe, "a dog", **SHORT), other)
    assert not open_files(tiny_sealed)


def test_an_interrupted_return_outside_a_clip_leaves_no_file_open(
    tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two components are on their way when the first one fails: the second one is let go of as well."""
    pipe = load_tiny(tiny_sealed, ALL)
    clip(pipe, **SHORT)
    offloader = pipe._schedule.offloader
    with monkeypatch.context() as patched:
        patched.setattr(offloader, "_finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            offloader.bring_back(MODELS)
    assert not own_threads()
    assert not open_files(tiny_sealed)
    assert torch.equal(clip(pipe, **SHORT), clip(resident(tiny_sealed), **SHORT))


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_from_host_memory_the_folder_is_not_needed_again(tiny_sealed: Path) -> None:
    """Once each part was put there."""
    expected = clip(resident(tiny_sealed), "a dog", **SHORT)
    pipe = load_tiny(tiny_sealed, MemoryPlan(MODELS, from_host=True))
    clip(pipe, **SHORT)
    shutil.rmtree(tiny_sealed)
    assert torch.equal(clip(pipe, "a dog", **SHORT), expected)


# --- which pipelines offload


def test_another_word_for_memory_is_refused(sealed: Path) -> None:
    """Before anything is read, deferred or not."""
    for weights in ("resident", "deferred"):
        with pytest.raises(NotSupportedError, match=r"nonsense.*resident"):
            load(sealed, weights=weights, memory="nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", ["resident", "auto"])
def test_a_pipeline_that_need_not_share_has_no_plan_and_diffusers_own_vae(sealed: Path, memory: Any) -> None:
    """Asked for, or on a CPU, whose memory is not counted."""
    pipe = load_tiny(sealed, memory)
    assert pipe.memory_plan is None
    assert type(pipe.vae) is diffusers.AutoencoderKLWan


def test_a_deferred_pipeline_offloads_once_it_is_active(sealed: Path) -> None:
    """Before, it is a skeleton of diffusers' own models; being activated twice changes nothing."""
    pipe = load_tiny(sealed, "offload", weights="deferred", device=None)
    assert pipe.memory_plan is None and type(pipe.vae) is diffusers.AutoencoderKLWan
    for _ in range(2):
        activate(pipe, "cpu")
        assert torch.equal(clip(pipe, **SHORT), wanted(sealed, **SHORT))
        assert pipe.memory_plan == OFFLOADED


# --- a device too small for all weights at once


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for each of the components, but not for all at a time."""
    allocate = transfer._allocate

    def allocate_less(layout: Any, device: torch.device) -> list[torch.Tensor]:
        if layout.size_bytes > 4_000_000:
            raise torch.OutOfMemoryError("no room")
        return allocate(layout, device)

    monkeypatch.setattr(transfer, "_allocate", allocate_less)


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("weights", ["resident", "deferred"])
def test_where_all_weights_have_no_room_the_text_encoder_comes_first(sealed: Path, weights: Any) -> None:
    """The others come for their phases, on the pipeline's own device."""
    pipe = load_tiny(sealed, ALL, weights=weights)
    if weights == "deferred":
        activate(pipe, "cpu")
    assert away(pipe) == {"transformer", "vae"}
    assert pipe.device == torch.device("cpu")
    pipe.encode_prompt("a cat", max_sequence_length=16)  # by itself, before there was a clip
    assert away(pipe) == {"text_encoder", "vae"}
    for prompt in ("a cat", "a dog"):
        assert torch.equal(clip(pipe, prompt, **SHORT), wanted(sealed, prompt, **SHORT))


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("memory", ["resident", "auto"])
def test_what_offloads_nothing_needs_room_for_all(sealed: Path, memory: Any) -> None:
    """On a CPU `auto` phases nothing: half a pipeline would be of no use."""
    with pytest.raises(DeviceMemoryError, match="has no room"):
        load_tiny(sealed, memory)
    pipe = load_tiny(sealed, memory, weights="deferred")
    with pytest.raises(DeviceMemoryError, match="has no room"):
        activate(pipe, "cpu")
    assert all(parameter.is_meta for parameter in pipe.text_encoder.parameters())


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_on_a_gpu_clips_are_bit_for_bit_the_resident_ones(sealed: Path, plan: Any) -> None:
    """In one tile; this frame is so small that each of two holds it whole."""
    expected = clip(resident(sealed, "cuda"))
    pipe = load_tiny(sealed, plan, device="cuda")
    for _ in range(2):
        assert torch.equal(clip(pipe), expected)


@pytest.mark.gpu
def test_on_a_gpu_the_budget_chooses_the_plan_of_each_clip(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ample to small and back; no clip changes by it. Its largest phase is the text encoder's own, here."""

    expected = clip(resident(sealed, "cuda"))
    pipe = load_tiny(sealed, "auto", device="cuda")
    estimate, size = pipe._schedule.estimate, ClipSize(48, 32, 5)
    for plan in (MemoryPlan(), ALL, MemoryPlan()):
        budget = int(estimate.peak(plan, size) / 0.8) + 1
        monkeypatch.setattr(schedules, "budget_bytes", lambda _, given=budget: given)
        assert torch.equal(clip(pipe), expected)
        assert pipe.memory_plan == plan
    monkeypatch.setattr(schedules, "budget_bytes", lambda _: 1000)
    with pytest.raises(DeviceMemoryError, match="under the smallest plan"):
        clip(pipe)


@pytest.mark.gpu
def test_on_a_gpu_what_is_away_takes_no_memory(sealed: Path) -> None:
    """While denoising, less is allocated by the weights that are away."""
    allocated = {}
    for plan in (MemoryPlan(), ALL):
        gc.collect()
        before = torch.cuda.memory_allocated()
        pipe = load_tiny(sealed, plan, device="cuda")

        def on_step_end(*_: Any, plan: MemoryPlan = plan, before: int = before) -> dict[str, Any]:
            allocated[plan] = torch.cuda.memory_allocated() - before
            return {}

        clip(pipe, callback_on_step_end=on_step_end, **SHORT)
        weights = pipe._schedule.offloader.weight_bytes
        del pipe
    assert allocated[ALL] < allocated[MemoryPlan()] - 0.9 * (weights["text_encoder"] + weights["vae"])
