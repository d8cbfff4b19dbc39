"""The pickle of a state dict is read, never unpickled: whatever it asks for is refused, and nothing happens."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conversion.original.layout import state_dict
from wanstore._formats._safetensors import HeaderError
from wanstore.conversion.original._state_dict import Storage, View, read_state_dict


def pickled(value: Any) -> bytes:
    """The pickle in the archive that `torch.save` makes of the value."""
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


TENSORS = {"a": torch.zeros(2, 3), "b.weight": torch.zeros(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("wrap", [dict, OrderedDict, state_dict], ids=["dict", "ordered", "state dict of a module"])
@pytest.mark.parametrize("kind", [lambda tensor: tensor, torch.nn.Parameter], ids=["tensors", "parameters"])
def test_a_dict_of_tensors_is_read(wrap: Any, kind: Any) -> None:
    """Names, dtypes, shapes, strides and storages, in whatever dict they come."""
    views = read_state_dict(pickled(wrap({name: kind(tensor) for name, tensor in TENSORS.items()})))
    assert views == {
        "a": View(Storage("F32", "0", 6), 0, (2, 3), (3, 1)),
        "b.weight": View(Storage("BF16", "1", 4), 0, (4,), (1,)),
    }


def test_more_tensors_than_a_narrow_memo_numbers_are_read() -> None:
    """The instructions change after 256 values, and for large numbers."""
    flat = torch.zeros(100_000)
    views = read_state_dict(pickled({f"t{n}": flat[n * 70 : n * 70 + 70] for n in range(1000)}))
    assert len(views) == 1000 and views["t999"] == View(Storage("F32", "0", 100_000), 69_930, (70,), (1,))


class Calls:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "value", "key", "attribute"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, protocol: int, place: str) -> None:
    """It is refused, wherever the call is hidden."""
    folder = tmp_path / "made"
    hidden: Any = Calls(folder)
    if place == "value":
        hidden = {"a": hidden}
    elif place == "key":
        hidden = {hidden: 1}
    elif place == "attribute":
        hidden = state_dict({})
        hidden._metadata["x"] = Calls(folder)
    with pytest.raises(HeaderError):
        read_state_dict(pickle.dumps(hidden, protocol))
    assert not folder.exists()


HOSTILE = {
    "a call": (b"\x80\x02cos\nmkdir\nX\x10\x00\x00\x00made-by-a-pickle\x85R.", "asks for 'os.mkdir'"),
    "a call by INST": (b"\x80\x02(X\x10\x00\x00\x00made-by-a-pickleios\nmkdir\n.", "the instruction INST"),
    "a call by OBJ": (b"\x80\x02(cos\nmkdir\nX\x10\x00\x00\x00made-by-a-pickleo.", "asks for 'os.mkdir'"),
    "a stacked name": (b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93.", "the instruction SHORT_BINUNICODE"),
    "an extension": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "an allowed name of another module": (b"\x80\x02ctorch.os\nFloatStorage\n.", "asks for 'torch.os.FloatStorage'"),
    "a new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
    "a dict with arguments": (b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.", "malformed"),
    "a storage that is called": (b"\x80\x02ctorch\nFloatStorage\n)R.", "malformed"),
    "a tensor of nothing": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR.", "in another way"),
    "a persistent id that is no storage": (b"\x80\x02X\x01\x00\x00\x00aQ.", "malformed"),
    "a persistent id in text": (b"\x80\x02Pos\n.", "the instruction PERSID"),
    "a number": (b"\x80\x02K\x01.", "not a dict of tensors"),
    "an empty dict": (b"\x80\x02}.", "not a dict of tensors"),
    "a value that is no tensor": (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "its value 'a' is not a tensor"),
    "a dict in the dict": (b"\x80\x02}X\x01\x00\x00\x00a}s.", "its value 'a' is not a tensor"),
    "a dict that holds itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "its value 'a' is not a tensor"),
    "a name twice": (b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x01u.", "'a' is there twice"),
    "a name that is a number": (b"\x80\x02}K\x01K\x01s.", "keys that are not text"),
    "a name without a value": (b"\x80\x02}(X\x01\x00\x00\x00au.", "malformed"),
    "an item for a tuple": (b"\x80\x02)X\x01\x00\x00\x00aK\x01s.", "malformed"),
    "too little on the stack": (b"\x80\x02R.", "malformed"),
    "a mark that is not there": (b"\x80\x02t.", "malformed"),
    "a value that was not numbered": (b"\x80\x02h\x07.", "malformed"),
    "no end": (b"\x80\x02}", "malformed"),
    "nothing": (b"", "malformed"),
    "text that ends too early": (b"\x80\x02X\xff\xff\xff\x7fa.", "malformed"),
    "no pickle": (b"hello", "malformed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_whatever_else_a_pickle_says_is_refused(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[case]
    with pytest.raises(HeaderError, match=message):
        read_state_dict(content)
    assert list(tmp_path.iterdir()) == []


def test_tuples_in_tuples_take_no_time() -> None:
    """Two references at each of ten thousand levels: who looked into them would never end."""
    nested = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 10_000
    for end in (b".", b"K\x01s.", b"}h\x00K\x01s.", b"}X\x01\x00\x00\x00ah\x00s."):
        with pytest.raises(HeaderError):
            read_state_dict(nested + end)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_damaged_pickle_is_read_or_refused() -> None:
    """Whatever bytes are changed, removed or doubled; no other error comes of it."""
    whole, chosen, refused = pickled(state_dict(TENSORS)), random.Random(0), 0
    for _ in range(5000):
        damaged = bytearray(whole)
        for _ in range(chosen.randint(1, 4)):
            at = chosen.randrange(len(damaged))
            damaged[at : at + chosen.randint(0, 3)] = chosen.choice((b"", b"R", b"s", bytes([chosen.randrange(256)])))
        try:
            assert all(isinstance(view, View) for view in read_state_dict(bytes(damaged)).values())
        except HeaderError:
            refused += 1
    assert refused > 1000
