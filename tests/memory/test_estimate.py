"""The plan of a clip's memory: the quickest that fits, by numbers of the published 1.3B."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wanstore.errors import DeviceMemoryError, NotSupportedError
from wanstore.memory._estimate import GIB, MemoryEstimate, choose_plan, weight_bytes
from wanstore.memory._plan import PHASES, TILES, MemoryPlan, check_memory
from wanstore.presets import ClipSize

ALL = tuple(PHASES.values())
WEIGHTS = {"transformer": 2_844_255_200, "text_encoder": 13_370_000_000, "vae": 253_785_062}
CONFIGS = {
    "transformer": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
    "text_encoder": {"num_heads": 64, "d_ff": 10240},
    "vae": {"base_dim": 96},
}
ESTIMATE = MemoryEstimate.of(WEIGHTS, CONFIGS)
PRESETS = {
    "480p/3s": ClipSize(832, 480, 49),
    "480p/5s": ClipSize(832, 480, 81),
    "720p/5s": ClipSize(1280, 720, 81),
    "720p/10s": ClipSize(1280, 720, 161),
}
plans = st.builds(
    MemoryPlan, st.sets(st.sampled_from(ALL)).map(lambda names: tuple(sorted(names))), st.sampled_from(TILES)
)
clips = st.builds(
    ClipSize,
    st.integers(4, 120).map(lambda count: 16 * count),
    st.integers(4, 120).map(lambda count: 16 * count),
    st.integers(0, 60).map(lambda count: 4 * count + 1),
    st.integers(1, 3),
)


# --- plans and clips


@pytest.mark.parametrize("arguments", [(("tokenizer",),), (("vae", "decoder"),), ((), 3), ((), 0), ((), 16)])
def test_a_plan_that_cannot_be_is_refused(arguments: tuple) -> None:
    """With what there is to choose from."""
    with pytest.raises(NotSupportedError, match=r"text_encoder, transformer, vae.*1, 2, 4, 8 tiles"):
        MemoryPlan(*arguments)


def test_a_offloaded_component_is_present_in_its_own_stage_only() -> None:
    """The others are there in each."""
    plan = MemoryPlan(("text_encoder", "vae"))
    assert plan.present("text_encoding") == ("text_encoder", "transformer")
    assert plan.present("denoising") == ("transformer",)
    assert plan.present("decoding") == ("transformer", "vae")
    assert all(MemoryPlan().present(phase) == ALL for phase in PHASES)


def test_a_plan_says_what_it_is() -> None:
    """In a line."""
    assert str(MemoryPlan()) == "all resident"
    assert str(MemoryPlan(("text_encoder", "vae"), 4, from_host=True)) == (
        "text_encoder and vae offloaded, from host memory, decoded in 4 tiles"
    )


@pytest.mark.parametrize("asked", ["", "Auto", None, 3, ("text_encoder",), {"offload": ["vae"]}])
def test_memory_is_one_of_three_words_or_a_plan(asked: object) -> None:
    """Nothing else, hashable or not."""
    for known in ("auto", "resident", "offload", MemoryPlan(tiles=2)):
        check_memory(known)
    with pytest.raises(NotSupportedError, match="Choose auto, resident, offload or a MemoryPlan"):
        check_memory(asked)


def test_a_clip_counts_its_latent_frames_and_tokens() -> None:
    """As the transformer of the 1.3B sees 480p: 21 × 30 × 52."""
    clip = PRESETS["480p/5s"]
    assert (clip.latent_frames, clip.tokens) == (21, 32_760)
    assert ClipSize(832, 480, 1).latent_frames == 1
    assert str(clip) == "A clip of 832×480 and 81 frames"
    assert str(ClipSize(832, 480, 81, 2)).startswith("2 clips of")


def test_weights_are_counted_as_they_are_on_the_device() -> None:
    """In float16, or float32 where that is what they become, whatever a file has them in."""
    assert weight_bytes({"wide": 5, "narrow": 21}, lambda name: name == "wide") == 5 * 4 + 21 * 2


# --- what is needed


@given(plans, clips, st.sampled_from(["width", "height", "frames", "batch"]))
@example(MemoryPlan(tiles=4), ClipSize(544, 272, 1), "height")  # where another way to cut it becomes the better one
def test_a_larger_clip_needs_no_less(plan: MemoryPlan, clip: ClipSize, larger: str) -> None:
    """In each direction, and in every phase."""
    step = {"width": 16, "height": 16, "frames": 4, "batch": 1}[larger]
    grown = ESTIMATE.peaks(plan, attrs.evolve(clip, **{larger: getattr(clip, larger) + step}))
    assert all(grown[phase] >= peak for phase, peak in ESTIMATE.peaks(plan, clip).items())


@given(plans, clips)
def test_streaming_and_float16_need_no_more(plan: MemoryPlan, clip: ClipSize) -> None:
    """Than all resident, and than float32."""
    wide = MemoryEstimate.of(WEIGHTS, CONFIGS, wide=ALL)
    assert ESTIMATE.peak(plan, clip) <= ESTIMATE.peak(MemoryPlan((), plan.tiles), clip)
    assert ESTIMATE.peak(plan, clip) <= wide.peak(plan, clip)


# --- the choice


@pytest.mark.parametrize("name", PRESETS)
def test_with_ample_memory_all_stay(name: str) -> None:
    """On 80 GB nothing makes room."""
    assert choose_plan(ESTIMATE, PRESETS[name], 79 * GIB) == MemoryPlan()


def test_with_less_and_less_memory_the_text_encoder_makes_room_then_all_then_tiles() -> None:
    """Quickest first."""
    found: list[MemoryPlan] = []
    for gibibytes in range(80, 3, -1):
        try:
            plan = choose_plan(ESTIMATE, ClipSize(1920, 1088, 81), gibibytes * GIB)
        except DeviceMemoryError:
            break
        found += [] if plan in found else [plan]
    assert found[:3] == [MemoryPlan(), MemoryPlan(("text_encoder",)), MemoryPlan(ALL)]
    assert all(plan.tiles > 1 for plan in found[3:])
    assert found[-1] == MemoryPlan(ALL, 2), "in two, the text encoder is the largest"


def test_a_plan_that_leaves_a_fifth_free_is_preferred() -> None:
    """To one that is quicker, and leaves less; but that one is better than none."""
    clip = PRESETS["480p/5s"]
    resident = ESTIMATE.peak(MemoryPlan(), clip)
    assert choose_plan(ESTIMATE, clip, int(resident / 0.8) + 1) == MemoryPlan()
    assert choose_plan(ESTIMATE, clip, int(resident / 0.8) - 1) == MemoryPlan(("text_encoder",))
    smallest = min(ESTIMATE.peak(MemoryPlan(ALL, tiles), clip) for tiles in TILES)
    assert ESTIMATE.peak(choose_plan(ESTIMATE, clip, int(smallest / 0.9)), clip) <= 0.95 * smallest / 0.9


@given(clips, st.integers(1, 200 * GIB))
def test_what_is_chosen_fits(clip: ClipSize, budget: int) -> None:
    """Or no plan does."""
    try:
        plan = choose_plan(ESTIMATE, clip, budget)
    except DeviceMemoryError:
        assert all(ESTIMATE.peak(MemoryPlan(ALL, tiles), clip) > 0.95 * budget for tiles in TILES)
    else:
        assert ESTIMATE.peak(plan, clip) <= 0.95 * budget


@given(clips, st.integers(14 * GIB, 200 * GIB))
def test_with_more_memory_no_plan_is_lost(clip: ClipSize, budget: int) -> None:
    """What fits in little fits in more."""
    assume(ESTIMATE.peak(MemoryPlan(ALL, 8), clip) <= 0.95 * budget)
    choose_plan(ESTIMATE, clip, budget)
    choose_plan(ESTIMATE, clip, 2 * budget)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_a_plan_in_22_gib(name: str) -> None:
    """What a card of 24 GB has free."""
    assert "text_encoder" in choose_plan(ESTIMATE, PRESETS[name], 22 * GIB).offloaded


@pytest.mark.parametrize("name", ["480p/3s", "480p/5s"])
def test_480p_has_a_plan_in_16_gib(name: str) -> None:
    """It is the text encoder's 12.5 GiB that have to fit."""
    assert choose_plan(ESTIMATE, PRESETS[name], 16 * GIB).offloaded == ALL


def test_where_none_fits_the_error_says_what_would_help() -> None:
    """The smallest plan, the phase that is too large in it, what it needs and what there is."""
    with pytest.raises(DeviceMemoryError) as caught:
        choose_plan(ESTIMATE, ClipSize(1280, 720, 641), 16 * GIB)
    message = str(caught.value)
    assert "1280×720 and 641 frames" in message and "16.0 are free" in message
    assert "GiB in denoising under the smallest plan (text_encoder and transformer and vae offloaded" in message
    assert "make the clip smaller" in message
    with pytest.raises(DeviceMemoryError, match=r"in text encoding .*take a larger one") as caught:
        choose_plan(ESTIMATE, PRESETS["480p/3s"], 12 * GIB)
    assert "smaller" not in str(caught.value).replace("smallest", "")
