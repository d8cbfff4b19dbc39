"""Files that `torch.save` wrote: where tensors lie is known from the two ends, and is what torch itself finds."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conversion.original.layout import SMALL, T5_FILE, VAE_FILE, state_dict, write_true_original
from wanstore._formats._safetensors import HeaderError
from wanstore.conversion.folder import FolderSource
from wanstore.conversion.original._archive import END_BYTES, Archive, check_records, read_archive


def read(path: Path) -> Archive:
    """As a source does: from the ends of the file."""
    source = FolderSource(path.parent)
    return read_archive(source.head(path.name, END_BYTES), source.tail(path.name, END_BYTES), source.files[path.name])


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def assert_as_torch_finds_them(path: Path) -> None:
    """Every tensor lies just where `torch.load` maps it."""
    archive = read(path)
    check_records(path, archive)
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert {tensor.name for tensor in archive.tensors} == mapped.keys()
    begins = {mapped[tensor.name].data_ptr() - tensor.start for tensor in archive.tensors if tensor.elements}
    assert len(begins) == 1
    assert all(tensor.size_bytes == mapped[tensor.name].nbytes for tensor in archive.tensors)


FLAT = torch.randn(1000)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.randn(3), "b": torch.randn(70, 90), "c": torch.randn(2, 2).to(torch.bfloat16)},
        {f"t{n}": torch.randn(n + 1) for n in range(300)},
        {"a": FLAT[:300].view(3, 100), "b": FLAT[300:301], "c": FLAT[400:1000].view(1, 600, 1)},
        {"a": torch.randn(4, 1, 3).transpose(0, 1)},
        {
            "none": torch.zeros(0, 4),
            "a": torch.randn(2).double(),
            "b": torch.randn(2).half(),
            "scalar": torch.tensor(1.0),
        },
    ],
    ids=["small and large", "many", "parts of one storage", "a transposed dimension of one", "empty and scalar"],
)
def test_tensors_lie_where_torch_finds_them(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Each alone in its storage, or beside others in one."""
    assert_as_torch_finds_them(saved(tmp_path / "x.pth", state_dict(tensors)))


def test_tensors_of_the_true_size_lie_where_torch_finds_them(tmp_path: Path, tiny_fp32: Path) -> None:
    """Also beyond four gigabytes, where the archive is written in another way."""
    folder = write_true_original(tmp_path / "true", SMALL, 1, tiny_fp32 / "tokenizer")
    for file, count in ((T5_FILE, 242), (VAE_FILE, 194)):
        assert_as_torch_finds_them(folder / file)
        assert len(read(folder / file).tensors) == count
    assert (folder / T5_FILE).stat().st_size > 1 << 33


def repacked(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> None:
    """The archive written anew by `change`, record by record."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            change(new, info, old.read(info))


def compress(new: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> None:
    new.writestr(info.filename, content, zipfile.ZIP_DEFLATED)


def misplace(new: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> None:
    new.writestr(info.filename, content)


def big_endian(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"little", b"big   "))


def rename(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


WHOLE = {"a": torch.randn(100_000), "b": torch.randn(7)}
SHARED = torch.randn(10, 10)
REFUSED: dict[str, tuple[Any, Callable[[Path], object], str]] = {
    "transposed": ({"a": SHARED.t()}, lambda _: None, "a is not contiguous"),
    "every second": ({"a": FLAT[::2]}, lambda _: None, "a is not contiguous"),
    "expanded": ({"a": torch.zeros(1).expand(8)}, lambda _: None, "a is not contiguous"),
    "one tensor under two names": ({"a": SHARED, "b": SHARED}, lambda _: None, "shares its bytes with"),
    "overlapping": ({"a": FLAT[:6], "b": FLAT[5:9]}, lambda _: None, "b shares its bytes with a"),
    "integers": ({"a": torch.zeros(2, dtype=torch.int64)}, lambda _: None, r"asks for 'torch\.LongStorage'"),
    "a sparse tensor": ({"a": torch.eye(3).to_sparse()}, lambda _: None, "its pickle asks for"),
    "eight bits": ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, lambda _: None, "its pickle asks for"),
    "a module": (torch.nn.Linear(2, 2), lambda _: None, "its pickle asks for"),
    "a list": ([torch.zeros(2)], lambda _: None, "its pickle has the instruction EMPTY_LIST"),
    "nested": ({"state_dict": WHOLE}, lambda _: None, "'state_dict' is not a tensor"),
    "with a number": ({**WHOLE, "epoch": 3}, lambda _: None, "'epoch' is not a tensor"),
    "compressed": (WHOLE, lambda path: repacked(path, compress), "is compressed"),
    "written by another tool": (WHOLE, lambda path: repacked(path, misplace), "is not where torch.save puts it"),
    "big-endian": (WHOLE, big_endian, "little-endian|not as torch.save"),
    "without a pickle": (WHOLE, rename(b"/data.pkl", b"/data.pkx"), "it has no data.pkl"),
    "without a storage": (WHOLE, rename(b"/data/0", b"/data/9"), "a has no record of 100000 numbers"),
    "a storage twice": (WHOLE, rename(b"/data/1", b"/data/0"), "is there twice"),
    "half of it": (WHOLE, cut(0.5), "truncated"),
    "all but the end": (WHOLE, cut(0.9999), "truncated"),
    "its first bytes": (WHOLE, cut(0.00001), "truncated"),
    "empty": (WHOLE, cut(0), "it is no zip archive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_file_of_plain_tensors_is_refused(tmp_path: Path, case: str) -> None:
    """With the tensor, or the record, that is to blame."""
    value, damage, message = REFUSED[case]
    path = saved(tmp_path / "x.pth", value)
    damage(path)
    with pytest.raises(HeaderError, match=message):
        read(path)


def test_the_format_before_zip_archives_is_refused(tmp_path: Path) -> None:
    """It cannot be mapped, and nothing in it says where tensors are."""
    path = saved(tmp_path / "x.pth", WHOLE, _use_new_zipfile_serialization=False)
    with pytest.raises(HeaderError, match=r"as torch\.save writes since torch 1\.6"):
        read(path)


def test_names_that_do_not_fit_into_an_end_are_refused(tmp_path: Path) -> None:
    """Nothing between the ends is read for a plan."""
    path = saved(tmp_path / "x.pth", {f"t{n:04}" * 20: FLAT[n : n + 1] for n in range(1000)})
    whole = path.read_bytes()
    assert len(whole) < END_BYTES
    with pytest.raises(HeaderError, match="it has more than weights and their names"):
        read_archive(whole[:50_000], whole[-50_000:], len(whole))


@pytest.mark.parametrize(
    ("at", "change"), [(0, b"PK\1\2"), (26, struct.pack("<H", 3)), (28, struct.pack("<H", 7)), (30, b"y")]
)
def test_a_record_that_is_elsewhere_than_its_directory_says_is_found(tmp_path: Path, at: int, change: bytes) -> None:
    """The whole file has the last word: what begins each record is compared with what the ends let expect."""
    path = saved(tmp_path / "x.pth", WHOLE)
    archive = read(path)
    check_records(path, archive)
    place = archive.records[0].header + at
    with path.open("r+b") as file:
        file.seek(place)
        file.write(change)
    with pytest.raises(HeaderError, match="is not where its directory says"):
        check_records(path, archive)


def test_damaged_ends_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever bytes are changed, removed or doubled; what is read lies within the file and overlaps nothing."""
    whole = saved(tmp_path / "x.pth", state_dict({"a": torch.randn(5), "b": torch.randn(3, 4)})).read_bytes()
    chosen, refused = random.Random(0), 0
    for _ in range(5000):
        damaged = bytearray(whole)
        for _ in range(chosen.randint(1, 4)):
            at = chosen.randrange(len(damaged))
            damaged[at : at + chosen.randint(0, 2)] = bytes(chosen.choices((0, 1, 80, 255), k=chosen.randint(0, 2)))
        try:
            archive = read_archive(bytes(damaged), bytes(damaged), len(damaged))
        except HeaderError:
            refused += 1
        else:
            assert all(0 <= tensor.start <= tensor.stop <= len(damaged) for tensor in archive.tensors)
    assert refused > 500


def test_what_is_read_of_each_end_suffices_for_the_published_files(tmp_path: Path, tiny_fp32: Path) -> None:
    """Four times over."""
    folder = write_true_original(tmp_path / "true", SMALL, 1, tiny_fp32 / "tokenizer")
    for file in (T5_FILE, VAE_FILE):
        with zipfile.ZipFile(folder / file) as archive:
            pickle = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
            directory = (folder / file).stat().st_size - archive.start_dir
        assert max(pickle.file_size, directory) * 4 < END_BYTES
