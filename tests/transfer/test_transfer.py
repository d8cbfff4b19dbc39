"""A transfer brings every byte to its place, or ends in a clear error with nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wanstore._formats._safetensors import lay_out_file
from wanstore.errors import DamagedError, DeviceError, NotSupportedError
from wanstore.transfer import _layout as layouts
from wanstore.transfer import _read_queue as reads_module
from wanstore.transfer import _readers as readers
from wanstore.transfer import _registered as registered
from wanstore.transfer import _to_cuda as to_cuda
from wanstore.transfer import _transfer as transfers
from wanstore.transfer._chunk_queue import ChunkQueue
from wanstore.transfer._cuda_driver import CudaDriver, call_for_each
from wanstore.transfer._layout import BufferLayout, lay_out_buffers, lay_out_files
from wanstore.transfer._read_queue import ThreadReadQueue
from wanstore.transfer._readers import FileReader, MemoryReader, Reader, StreamReader
from wanstore.transfer._to_host import move_to_host
from wanstore.transfer._transfer import Transfer
from wanstore.transfer._weight_file import WeightFile, open_weight_file

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def is_wide(name: str) -> bool:
    return name.startswith("wide")


def read(file: WeightFile, device: str = "cpu", advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """All of a file's tensors."""
    layout = lay_out_files([("", file.tensors, is_wide)])
    with Transfer(FileReader([file]), layout, device, advance) as transfer:
        return transfer.tensors()


def expected(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if is_wide(name) else torch.float16)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Of every kind, scalars and empty ones too."""
    return {
        "ids": torch.arange(5), "flag": torch.tensor(True), "none": torch.zeros(0, 3), "wide.x": torch.ones(300).half(),
        "one": torch.tensor(1.5, dtype=torch.float64), "w": torch.randn(70, 3).bfloat16(),
        "wide.large": torch.randn(900, 700).half(), "large": torch.randn(500, 900), "half": torch.randn(333, 77).half(),
    }  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 KiB: small files take many, so that slots are used again and tensors are cut."""
    monkeypatch.setattr(layouts, "CHUNK_BYTES", 64 << 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_every_tensor_arrives_cast_as_asked(tmp_path: Path, tensors: dict[str, torch.Tensor], device: str) -> None:
    """Floating-point ones to float16 or float32, on the spot that their kernels like; integers as they are."""
    save_file(tensors, tmp_path / "x.safetensors")
    with open_weight_file(tmp_path / "x.safetensors") as file:
        moved = read(file, device)
    assert moved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        wanted = expected(name, tensor)
        assert (moved[name].dtype, moved[name].shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(moved[name].cpu(), wanted), name
        assert not moved[name].numel() or moved[name].data_ptr() % 64 == 0


def test_progress_hears_of_every_byte(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Once."""
    save_file(tensors, tmp_path / "x.safetensors")
    heard: list[int] = []
    with open_weight_file(tmp_path / "x.safetensors") as file:
        read(file, advance=heard.append)
        assert sum(heard) == file.size_bytes


# --- the way to a GPU, with the host's memory in the GPU's place


class HostStream:
    """A stream on which everything is done at once."""

    cuda_stream = 7

    def synchronize(self) -> None: ...


class HostAsGpu:
    """The driver's calls, done at once and in memory. The real ones run under `-m gpu`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.pinned: dict[int, int] = {}
        self.can_register = False
        self.refused_from = 1 << 30
        """The number of the window from which on none is registered."""
        self.registered_ever = 0
        self.events: dict[int, bool] = {}
        self.numbers = itertools.count(1)
        self.pinned_ever = self.waited = 0
        self.answers = itertools.cycle([True, False, False])  # a device is not always done when it is asked

    def make_stream(self) -> HostStream:
        return HostStream()

    def pin(self, address: int, size: int) -> None:
        self.pinned[address] = size
        self.pinned_ever += 1

    def register(self, address: int, size: int) -> bool:
        if self.registered_ever >= self.refused_from:
            return False
        self.pinned[address] = size
        self.registered_ever += 1
        return True

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def unpin_all(self, addresses: list[int]) -> None:
        call_for_each(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.unpin), addresses)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert any(start <= source and source + size <= start + length for start, length in self.pinned.items())
        ctypes.memmove(target, source, size)

    def make_event(self) -> int:
        event = next(self.numbers)
        self.events[event] = False
        return event

    def drop_event(self, event: int) -> None:
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self.events[event] = True

    def has_come(self, event: int) -> bool:
        assert self.events[event], "it asks for what was never copied"
        return next(self.answers)

    def wait(self, event: int) -> None:
        assert self.events[event], "it waits for what was never copied"
        self.waited += 1


@pytest.fixture
def host_as_gpu(monkeypatch: pytest.MonkeyPatch) -> HostAsGpu:
    """A driver whose device is this process's own memory."""
    driver = HostAsGpu()
    monkeypatch.setattr(to_cuda, "CudaDriver", lambda device: driver)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return driver


@pytest.fixture(params=["by the C library", "by Python"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read."""
    if request.param == "by Python":
        monkeypatch.setattr(to_cuda, "open_read_queue", ThreadReadQueue)
    elif sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("needs glibc")


def through_the_ring(
    file: WeightFile, queue: ChunkQueue | None = None, reader: Reader | None = None
) -> tuple[BufferLayout, list[torch.Tensor]]:
    """Move a file as to a GPU."""
    layout = lay_out_files([("", file.tensors, is_wide)])
    reader = reader or FileReader([file])
    reader.look(layout.chunks)
    kinds = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}
    buffers = [torch.empty(buffer.elements, dtype=kinds[buffer.final]) for buffer in layout.buffers]
    try:
        with to_cuda.move_to_cuda(reader, layout, buffers, queue or ChunkQueue(layout.chunks)):
            pass
    finally:
        reader.close()
    return layout, buffers


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("call", "left"), [("drop_event", 1), ("make_event", 0)])
def test_a_driver_that_fails_at_an_event_leaves_no_pin_and_no_other_event(
    tmp_path: Path, host_as_gpu: HostAsGpu, monkeypatch: pytest.MonkeyPatch, call: str, left: int
) -> None:
    """What is freed while it is pinned is the device's all the same."""
    save_file({"a": torch.ones(300_000)}, tmp_path / "x.safetensors")
    real, calls = getattr(host_as_gpu, call), itertools.count()

    def fail(*arguments: int) -> Any:
        if next(calls) == 3:
            raise DeviceError("cuda:0 failed: CUDA_ERROR_DEVICE_UNAVAILABLE")
        return real(*arguments)

    monkeypatch.setattr(host_as_gpu, call, fail)
    with open_weight_file(tmp_path / "x.safetensors") as file, pytest.raises(DeviceError):
        through_the_ring(file)
    assert host_as_gpu.pinned == {} and len(host_as_gpu.events) == left


@pytest.mark.usefixtures("small_chunks", "reads")
@pytest.mark.parametrize("uncached", [False, True])
def test_the_ring_carries_every_byte_and_is_let_go(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    host_as_gpu: HostAsGpu,
    monkeypatch: pytest.MonkeyPatch,
    uncached: bool,
) -> None:
    """Read through page cache or past it; few slots carry many chunks, and are waited for when all are under way."""
    monkeypatch.setattr(to_cuda, "SLOTS", 3)
    if uncached:
        monkeypatch.setattr(readers, "cached_spans", lambda _, spans: [False] * len(spans))
    save_file(tensors, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        layout, buffers = through_the_ring(file)
    assert len(layout.chunks) > 20
    assert (host_as_gpu.pinned, host_as_gpu.events, host_as_gpu.pinned_ever) == ({}, {}, 1)
    assert host_as_gpu.waited
    for name, place in layout.places.items():
        moved = buffers[place.buffer][place.start : place.start + place.elements].view(place.shape)
        assert torch.equal(moved, expected(name, tensors[name])), name


class Source:
    """Files' bytes, from elsewhere than the files."""

    def __init__(self, data: bytes) -> None:
        self.data, self.stopped = data, False

    def read(self, file: Path, start: int, stop: int) -> memoryview:
        return memoryview(self.data)[start:stop]

    def check(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_streamed_takes_the_ring(
    tmp_path: Path, host_as_gpu: HostAsGpu, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The file has nothing but its header. If the device fails, whoever reads is told to end."""
    values = torch.randn(300_000).half()
    path = tmp_path / "x.safetensors"
    save_file({"slim": values}, path)
    source = Source(path.read_bytes())
    with path.open("rb+") as file:
        file.truncate(len(source.data) - 600_000)
        file.truncate(len(source.data))
    if fails:
        monkeypatch.setattr(host_as_gpu, "copy", lambda *_: (_ for _ in ()).throw(DeviceError("cuda:0 failed")))
    with nothing_left(), open_weight_file(path) as opened:
        if fails:
            with pytest.raises(DeviceError, match="cuda:0 failed"):
                through_the_ring(opened, reader=StreamReader([opened], source))
            assert source.stopped
        else:
            _, (buffer,) = through_the_ring(opened, reader=StreamReader([opened], source))
            assert torch.equal(buffer, values)
    assert (host_as_gpu.pinned, host_as_gpu.events) == ({}, {})


@pytest.mark.usefixtures("small_chunks", "reads")
def test_the_ring_is_let_go_when_reading_fails(tmp_path: Path, host_as_gpu: HostAsGpu) -> None:
    """Memory stays pinned no longer than it is used, and nothing reads into it any more."""
    save_file({"a": torch.zeros(300_000), "b": torch.zeros(300_000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        os.truncate(file.path, 1_500_000)
        with pytest.raises(DamagedError, match="tensor b is cut off"):
            through_the_ring(file)
    assert (host_as_gpu.pinned, host_as_gpu.events) == ({}, {})


@pytest.mark.usefixtures("small_chunks", "reads")
def test_a_gpu_that_fails_in_mid_transfer_leaves_nothing_behind(
    tmp_path: Path, host_as_gpu: HostAsGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is unpinned, reads under way are waited for, and the next transfer works."""
    save_file({"a": torch.ones(300_000)}, tmp_path / "x.safetensors")
    copies = itertools.count()

    def fail_once(target: int, source: int, size: int, stream: int) -> None:
        if next(copies) == 5:
            raise DeviceError("cuda:0 failed: cuMemcpyHtoDAsync gave CUDA_ERROR_DEVICE_UNAVAILABLE")
        ctypes.memmove(target, source, size)

    monkeypatch.setattr(host_as_gpu, "copy", fail_once)
    with open_weight_file(tmp_path / "x.safetensors") as file:
        with nothing_left(), pytest.raises(DeviceError, match="DEVICE_UNAVAILABLE"):
            through_the_ring(file)
        assert (host_as_gpu.pinned, host_as_gpu.events) == ({}, {})
        _, (buffer,) = through_the_ring(file)
    assert (buffer == 1).all()


@pytest.mark.usefixtures("small_chunks", "host_as_gpu")
@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
def test_reads_that_the_c_library_refuses_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a limit on how many may be under way."""

    class Refusing:
        def __init__(self, library: Any) -> None:
            self._library, self._asked = library, itertools.count()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._library, name)

        def aio_read(self, request: Any) -> int:
            return -1 if next(self._asked) % 3 else int(self._library.aio_read(request))

    quick, slow = reads_module._glibc()
    monkeypatch.setattr(reads_module, "_glibc", lambda: (Refusing(quick), slow))
    values = torch.randn(300_000).half()
    save_file({"slim": values}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        _, (buffer,) = through_the_ring(file)
    assert torch.equal(buffer, values)


@pytest.mark.usefixtures("small_chunks", "reads", "host_as_gpu")
def test_stopped_work_ends_with_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No new chunk begins."""
    save_file({"a": torch.zeros(3_000_000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        done: list[int] = []
        queue = ChunkQueue(lay_out_files([("", file.tensors, is_wide)]).chunks)

        def stop(chunk: layouts.Chunk) -> None:
            done.append(chunk.stop - chunk.start)
            queue.stop()

        monkeypatch.setattr(queue, "done", stop)
        through_the_ring(file, queue)
        assert 0 < sum(done) < file.size_bytes


# --- straight from page cache


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, host_as_gpu: HostAsGpu) -> HostAsGpu:
    """A driver that registers what is mapped, in windows of two small chunks."""
    monkeypatch.setattr(registered, "WINDOW_BYTES", 128 << 10)
    host_as_gpu.can_register = True
    return host_as_gpu


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in page cache")


@needs_linux
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("refused_from", [1 << 30, 0, 3])
def test_what_is_in_page_cache_goes_straight_to_the_gpu_as_far_as_it_is_let(
    tmp_path: Path, tensors: dict[str, torch.Tensor], windows: HostAsGpu, refused_from: int
) -> None:
    """The rest goes through the ring. Nothing stays registered or mapped."""
    windows.refused_from = refused_from
    save_file(tensors, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        layout, buffers = through_the_ring(file)
    assert windows.registered_ever == min(refused_from, -(-(tmp_path / "x.safetensors").stat().st_size // (128 << 10)))
    assert windows.pinned_ever == (refused_from < 1 << 30), "the ring is pinned only if it is needed"
    assert (windows.pinned, windows.events) == ({}, {}) and not is_mapped(tmp_path / "x.safetensors")
    for name, place in layout.places.items():
        moved = buffers[place.buffer][place.start : place.start + place.elements].view(place.shape)
        assert torch.equal(moved, expected(name, tensors[name])), name


@needs_linux
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cached", [[True, False], [False, False]])
def test_what_is_not_all_in_page_cache_goes_through_the_ring(
    tmp_path: Path, windows: HostAsGpu, monkeypatch: pytest.MonkeyPatch, cached: list[bool]
) -> None:
    """Its pages would be read one by one."""
    answers = itertools.cycle(cached)
    monkeypatch.setattr(readers, "cached_spans", lambda _, spans: [next(answers) for _ in spans])
    save_file({"a": torch.ones(300_000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        _, (buffer,) = through_the_ring(file)
    assert (buffer == 1).all() and (windows.registered_ever, windows.pinned_ever) == (0, 1)


@needs_linux
@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_shrinks_while_it_is_registered_is_named(
    tmp_path: Path, windows: HostAsGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody copies what is not there: whoever reads it by the ring says so."""
    monkeypatch.setattr(readers, "cached_spans", lambda _, spans: [True] * len(spans))
    save_file({"a": torch.zeros(300_000), "b": torch.zeros(300_000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        os.truncate(file.path, 1_500_000)
        with pytest.raises(DamagedError, match="tensor b is cut off"):
            through_the_ring(file)
    assert (windows.pinned, windows.events) == ({}, {}) and windows.registered_ever > 0


@needs_linux
@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_across_two_windows_is_not_copied_from_either(
    tmp_path: Path, windows: HostAsGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a file whose header is of an odd size: the driver would refuse a copy from two registrations."""
    monkeypatch.setattr(registered, "WINDOW_BYTES", 96 << 10)
    save_file({"a": torch.ones(300_000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        _, (buffer,) = through_the_ring(file)
    assert (buffer == 1).all() and windows.registered_ever == 0


@needs_linux
@pytest.mark.usefixtures("small_chunks")
def test_a_gpu_that_fails_in_the_middle_of_a_window_leaves_nothing_behind(
    tmp_path: Path, windows: HostAsGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing registered, nothing mapped."""
    save_file({"a": torch.ones(300_000)}, tmp_path / "x.safetensors")
    copies = itertools.count()

    def fail(target: int, source: int, size: int, stream: int) -> None:
        if next(copies) == 5:
            raise DeviceError("cuda:0 failed: cuMemcpyHtoDAsync gave CUDA_ERROR_DEVICE_UNAVAILABLE")

    monkeypatch.setattr(windows, "copy", fail)
    with (
        nothing_left(),
        open_weight_file(tmp_path / "x.safetensors") as file,
        pytest.raises(DeviceError, match="DEVICE_UNAVAILABLE"),
    ):
        through_the_ring(file)
    assert (windows.pinned, windows.events) == ({}, {}) and not is_mapped(tmp_path / "x.safetensors")


@pytest.mark.gpu
def test_a_real_gpu_takes_either_way(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits; the record says which it was."""
    save_file({**tensors, "long": torch.randn(40 << 20).half()}, tmp_path / "x.safetensors")
    ways = []
    for straight in (True, False):
        monkeypatch.setattr(CudaDriver, "can_register", straight)
        with open_weight_file(tmp_path / "x.safetensors") as file:
            layout = lay_out_files([("", file.tensors, is_wide)])
            with Transfer(FileReader([file]), layout, "cuda") as transfer:
                moved = {name: tensor.cpu() for name, tensor in transfer.tensors().items()}
            ways.append(transfer.record.way)
        for name, tensor in tensors.items():
            assert torch.equal(moved[name], expected(name, tensor)), name
    assert ways == ["registered page cache", "pinned memory"]


# --- past the page cache


@pytest.mark.parametrize("header_bytes", [4096, 4100])
def test_pieces_that_are_not_cached_are_read_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header_bytes: int
) -> None:
    """In whole pages, also where a chunk begins and ends between them; the file's end is no multiple of a page."""
    monkeypatch.setattr(readers, "cached_spans", lambda _, spans: [False] * len(spans))
    content = os.urandom(header_bytes + 50_001)
    path = tmp_path / "x"
    path.write_bytes(content)
    with path.open("rb") as opened:
        file = WeightFile(path, lay_out_file([("a", "U8", (50_001,))]).tensors, opened.fileno(), 0)
        reader = FileReader([file])
        parts = (layouts.Part(header_bytes, header_bytes + 50_001, 0, 0),)
        reader.look([chunk := layouts.Chunk(0, parts)])
        slot = memoryview(bytearray(50_001 + 2 * 4096))
        first = reader.fill(chunk, slot)
        reader.close()
    assert first == header_bytes % 4096 or first == 0
    assert slot[first : first + 50_001] == content[header_bytes:]


def test_a_file_that_took_the_path_meanwhile_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it once more, to read past the cache, could mix two files."""
    monkeypatch.setattr(readers, "cached_spans", lambda _, spans: [False] * len(spans))
    save_file({"a": torch.ones(5000).half()}, tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(5000).half()}, tmp_path / "y.safetensors")
    with open_weight_file(tmp_path / "x.safetensors") as file:
        (tmp_path / "y.safetensors").rename(tmp_path / "x.safetensors")
        layout = lay_out_files([("", file.tensors, is_wide)])
        reader = FileReader([file])
        reader.look(layout.chunks)
        slot = memoryview(bytearray(readers.slot_bytes(layout)))
        first = reader.fill(layout.chunks[0], slot)
        reader.close()
    assert slot[first : first + 10_000] == torch.ones(5000).half().numpy().tobytes()


# --- memory as the origin


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_memory_is_copied_buffer_by_buffer(device: str) -> None:
    """Of any size, also none."""
    arrays = [torch.randint(0, 255, (size,), dtype=torch.uint8) for size in (0, 1, 70_001, layouts.CHUNK_BYTES + 5)]
    reader = MemoryReader([array.numpy() for array in arrays])
    with Transfer(reader, lay_out_buffers([len(array) for array in arrays]), device) as transfer:
        assert all(torch.equal(b.cpu(), array) for b, array in zip(transfer.buffers(), arrays, strict=True))


# --- faults


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Threads and descriptors are as many after the block as before."""
    before = threading.active_count(), open_files()
    yield
    assert (threading.active_count(), open_files()) == before


def open_files() -> int:
    """Of this process; 0 where that can't be told."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_file_that_shrinks_after_its_header_is_named(tmp_path: Path, device: str) -> None:
    """The tensor where it ends is named; nothing is filled up with zeros."""
    save_file({"a": torch.zeros(5000), "b": torch.zeros(5000)}, tmp_path / "x.safetensors")
    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        os.truncate(file.path, file.tensors[-1].start + 1)
        with pytest.raises(DamagedError, match="tensor b is cut off"):
            read(file, device)


def test_a_file_that_is_written_to_meanwhile_is_named(tmp_path: Path) -> None:
    """What was read may be half old and half new."""
    save_file({"a": torch.zeros(5000)}, tmp_path / "x.safetensors")
    with open_weight_file(tmp_path / "x.safetensors") as file:
        with file.path.open("r+b") as writer:
            writer.seek(-100, os.SEEK_END)
            writer.write(b"\xff" * 10)
        os.utime(file.path, ns=(0, file.modified_ns + 1))
        with pytest.raises(DamagedError, match="written to while it was read"):
            read(file)


def test_a_read_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in mid-file: file, tensor and what the kernel said."""
    save_file({"a": torch.zeros(5000)}, tmp_path / "x.safetensors")

    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with nothing_left(), open_weight_file(tmp_path / "x.safetensors") as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DamagedError, match=r"x\.safetensors: tensor a cannot be read \(Input/output error\)"):
            read(file)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_too_little_memory_is_told_with_how_much_it_takes(device: str) -> None:
    """And nothing of what was allocated stays."""
    with nothing_left(), pytest.raises(DeviceError, match=r"no room for 1125899\.9 GB"):
        layout = lay_out_buffers([1 << 20])
        huge = layouts.BufferLayout(
            (*layout.buffers, layouts.Buffer("U8", "U8", 1 << 50)), {}, layout.chunks, layout.chunk_bytes
        )
        with Transfer(MemoryReader([]), huge, device) as transfer:
            transfer.buffers()


def test_an_unknown_device_is_told_where_the_result_is_asked_for() -> None:
    """Not in a thread that nobody hears."""
    with Transfer(MemoryReader([]), lay_out_buffers([]), "toaster") as transfer, pytest.raises(NotSupportedError):
        transfer.buffers()


def test_a_kept_error_keeps_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may hold it and load again: the buffers must be gone by then."""
    save_file({"a": torch.zeros(5000)}, tmp_path / "x.safetensors")
    seen: list[weakref.ref[torch.Tensor]] = []
    with open_weight_file(tmp_path / "x.safetensors") as file:
        layout = lay_out_files([("", file.tensors, is_wide)])
        os.truncate(file.path, file.tensors[-1].start + 1)

        def watched(reader: Any, layout: BufferLayout, buffers: list[torch.Tensor], queue: ChunkQueue) -> Any:
            seen.extend(weakref.ref(buffer) for buffer in buffers)
            return move_to_host(reader, layout, buffers, queue)

        monkeypatch.setattr(transfers, "move_to_host", watched)
        with Transfer(FileReader([file]), layout, "cpu") as transfer, pytest.raises(DamagedError) as caught:
            transfer.buffers()
        gc.disable()  # not by chance
        try:
            assert seen
            assert all(reference() is None for reference in seen)
        finally:
            gc.enable()
        assert caught.type is DamagedError


def test_leaving_early_stops_the_threads(tmp_path: Path) -> None:
    """As on Ctrl-C: what is under way ends, nothing new begins."""
    arrays = [torch.zeros(1 << 20, dtype=torch.uint8).numpy()] * 200
    done: list[int] = []
    transfer = Transfer(MemoryReader(arrays), lay_out_buffers([1 << 20] * 200), "cpu", done.append)
    with nothing_left(), pytest.raises(KeyboardInterrupt), transfer:
        raise KeyboardInterrupt
    assert len(done) < 200


INTERRUPTED = """
import sys, threading, time
from pathlib import Path
from wanstore.loading._load import load_folder as load
class Slow:
    def start(self, *_): print("starting", flush=True)
    def advance(self, *_): print("moving", flush=True), time.sleep(0.2)
    def finish(self, *_): ...
    def message(self, *_): ...
from wanstore.transfer import _layout as layout
layout.CHUNK_BYTES = 64 << 10
try:
    load(Path(sys.argv[1]), device="cpu", sealed=False, progress=Slow())
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("interrupted", left, flush=True)
"""


@pytest.mark.parametrize("moment", ["starting", "moving"])
def test_ctrl_c_ends_a_load_and_its_threads(tiny_copy: Path, moment: str) -> None:
    """When the transfer begins, and while it goes on beside the imports."""
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_copy)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while process.stdout.readline() != f"{moment}\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "interrupted []"


def test_an_error_without_a_word_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not get lost on its way out of the thread: the buffers would pass for filled."""

    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(transfers, "_allocate", fail)
    transfer = Transfer(MemoryReader([]), lay_out_buffers([5]), "cpu")
    with transfer, pytest.raises(DeviceError, match="RuntimeError"):
        transfer.buffers()
