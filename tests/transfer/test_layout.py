"""The layout puts every byte of every tensor in one place, and cuts the way there into chunks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wanstore._formats._safetensors import ITEM_BYTES, Tensor
from wanstore._formats._safetensors import lay_out_file as lay_out_stored
from wanstore.transfer._layout import CHUNK_BYTES, BufferLayout, lay_out_buffers, lay_out_files

KINDS = st.sampled_from(["F16", "F32", "BF16", "F64", "I64", "BOOL"])
SHAPES = st.lists(st.integers(0, 300), max_size=3).map(tuple)


def in_a_file(sizes: Sequence[tuple[str, tuple[int, ...]]], header_bytes: int = 8) -> list[Tensor]:
    """Tensors one behind the other, as a safetensors file has them; names say which stay wide."""
    tensors, position = [], header_bytes
    for number, (dtype, shape) in enumerate(sizes):
        count = 1
        for length in shape:
            count *= length
        stop = position + count * ITEM_BYTES[dtype]
        tensors.append(Tensor(f"{'wide' if number % 3 == 0 else 'slim'}.{number}", dtype, shape, position, stop))
        position = stop
    return tensors


def is_wide(name: str) -> bool:
    return name.startswith("wide")


def moved(layout: BufferLayout, file: int) -> dict[int, tuple[int, int]]:
    """Where each byte of the source goes: buffer and byte of the stored dtype."""
    places = {}
    for chunk in layout.chunks:
        if chunk.file != file:
            continue
        for part in chunk.parts:
            item = ITEM_BYTES[layout.buffers[part.buffer].stored]
            for offset in range(part.stop - part.start):
                assert part.start + offset not in places, "moved twice"
                places[part.start + offset] = (part.buffer, part.element * item + offset)
    return places


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KINDS, SHAPES), max_size=12), st.integers(8, 40))
@example([("I64", ()), ("I64", (0,)), ("I64", ())], 8)  # an empty tensor moves the next one on, and not in the file
def test_every_byte_goes_to_its_tensors_place_once(sizes: list[tuple[str, tuple[int, ...]]], header: int) -> None:
    """Whatever the dtypes, sizes and alignment in the file; no two tensors overlap."""
    tensors = [t for t in in_a_file(sizes, header) if t.size_bytes < 20_000]
    tensors = in_a_file([(t.dtype, t.shape) for t in tensors], header)
    layout = lay_out_files([("a/", tensors, is_wide)])
    places = moved(layout, 0)
    assert len(places) == sum(tensor.size_bytes for tensor in tensors)
    taken: set[tuple[int, int]] = set()
    for tensor in tensors:
        place = layout.places[f"a/{tensor.name}"]
        item = ITEM_BYTES[tensor.dtype]
        for offset in range(tensor.size_bytes):
            assert places[tensor.start + offset] == (place.buffer, place.start * item + offset)
        own = {(place.buffer, element) for element in range(place.start, place.start + place.elements)}
        assert not own & taken
        taken |= own
        assert place.start + place.elements <= layout.buffers[place.buffer].elements


@given(st.lists(st.tuples(KINDS, SHAPES), max_size=12))
def test_floating_point_becomes_half_or_stays_wide(sizes: list[tuple[str, tuple[int, ...]]]) -> None:
    """Integers are left alone; every tensor starts at a multiple of 256 bytes."""
    tensors = in_a_file(sizes)
    layout = lay_out_files([("", tensors, is_wide)])
    for tensor in tensors:
        place = layout.places[tensor.name]
        buffer = layout.buffers[place.buffer]
        wanted = ("F32" if is_wide(tensor.name) else "F16") if "F" in tensor.dtype else tensor.dtype
        assert (buffer.stored, buffer.final) == (tensor.dtype, wanted)
        assert place.start * ITEM_BYTES[buffer.final] % 256 == 0


@given(st.lists(st.tuples(KINDS, st.tuples(st.integers(0, 9_000_000))), max_size=6))
def test_pieces_are_bounded_and_end_between_elements(sizes: list[tuple[str, tuple[int, ...]]]) -> None:
    """They follow one another without a gap, so that a disk is read from front to back."""
    tensors = in_a_file(sizes)
    layout = lay_out_files([("", tensors, is_wide)])
    position = 8
    for chunk in layout.chunks:
        assert chunk.start == position
        assert 0 < chunk.stop - chunk.start <= CHUNK_BYTES
        for part in chunk.parts:
            assert part.start == position
            assert (part.stop - part.start) % ITEM_BYTES[layout.buffers[part.buffer].stored] == 0
            position = part.stop
    assert position == tensors[-1].stop if tensors else position == 8


def test_a_stored_file_takes_one_buffer_and_one_for_what_is_widened() -> None:
    """Neighbours of one kind are moved together: a few chunks, not one for each tensor."""
    stored = lay_out_stored([(f"slim.{number}", "F16", (1000, 128)) for number in range(100)])
    layout = lay_out_files([("", stored.tensors, is_wide)])
    assert len(layout.buffers) == 1
    assert all(len(chunk.parts) == 1 for chunk in layout.chunks)
    assert layout.chunks[0].start % 4096 == 0
    mixed = lay_out_stored([("slim.0", "F16", (128,)), ("wide.0", "F16", (128,)), ("slim.1", "F16", (128,))])
    assert [(b.final, b.elements) for b in lay_out_files([("", mixed.tensors, is_wide)]).buffers] == [
        ("F16", 256), ("F32", 128)
    ]  # fmt: skip


def test_files_have_buffers_of_their_own() -> None:
    """So that a component's memory can be given back whole."""
    tensors = in_a_file([("F16", (8,))])
    layout = lay_out_files([("a/", tensors, is_wide), ("b/", tensors, is_wide)])
    assert [layout.places[f"{prefix}/wide.0"].buffer for prefix in "ab"] == [0, 1]
    assert layout.size_bytes == 2 * 8 * 4


@pytest.mark.parametrize("sizes", [[], [0], [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 3]])
def test_buffers_are_copied_as_they_are(sizes: list[int]) -> None:
    """One for one, in chunks."""
    layout = lay_out_buffers(sizes)
    assert [buffer.size_bytes for buffer in layout.buffers] == sizes
    for number, size in enumerate(sizes):
        assert sum(chunk.stop - chunk.start for chunk in layout.chunks if chunk.file == number) == size
