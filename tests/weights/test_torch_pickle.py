"""Pickles inside torch files: read in every protocol, and no file can do harm.

Hostile files are built here, and a control shows that the standard library would run
what they ask for.
"""

import pickle
import struct

import pytest

from lDM_jax.weights import torch_file
from lDM_jax.weights.torch_pickle import BrokenPickle, interpret, suspicious
from tests.torch_files import (
    FOLDER,
    STOP,
    WRITERS,
    call,
    one_entry,
    refusal,
    tensor,
    value,
    write_plain,
    write_stacked,
    write_zip,
)

HIDING = {
    "alone": lambda evil: b"\x80\x02" + evil + STOP,
    "beside a state dict": lambda evil: (
        b"\x80\x02}" + value("a") + tensor() + b"s" + evil + b"0" + STOP
    ),
    "as an entry of it": lambda evil: (
        b"\x80\x02}" + value("a") + tensor() + b"s" + value("b") + evil + b"s" + STOP
    ),
    "in the hyper-parameters": lambda evil: (
        b"\x80\x02}"
        + (value("state_dict") + b"}" + value("a") + tensor() + b"ss")
        + (value("hyper_parameters") + b"]" + evil + b"as" + STOP)
    ),
    "as the state of a tensor": lambda evil: (
        b"\x80\x02}" + value("a") + tensor() + evil + b"bs" + STOP
    ),
}


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("place", HIDING)
@pytest.mark.parametrize("function", ["os.system", "builtins.exec", "posix.system"])
def test_hostile_pickles_are_refused_and_not_executed(
    container, place, function, tmp_path
):
    marker = tmp_path / "executed"
    command = f"touch {marker}"
    if function.endswith("exec"):
        command = f"open({str(marker)!r}, 'w').close()"
    evil = call(function, command)
    pickle.loads(b"\x80\x02" + evil + STOP)  # the control: this does run it
    assert marker.exists()
    marker.unlink()
    path = WRITERS[container](tmp_path / "model.ckpt", HIDING[place](evil))
    assert refusal(path) == (
        f"asks to call {function}: no checkpoint needs that. Nothing was executed"
    )
    assert not marker.exists()


@pytest.mark.parametrize("position", range(5))
def test_no_pickle_of_the_older_format_is_executed(position, tmp_path):
    marker = tmp_path / "executed"
    evil = b"\x80\x02" + call("os.system", f"touch {marker}") + STOP
    head = [torch_file.MAGIC, torch_file.PROTOCOL, {}, None, ["0"]]
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts[3] = one_entry()
    parts[position] = evil
    numbers = struct.pack("<q4f", 4, 1, 2, 3, 4)
    path = write_plain(tmp_path / "model.pth", b"".join(parts) + numbers)
    assert "os.system" in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_is_read_alike(protocol, tmp_path):
    """What pickle writes comes back; what it would call is named and not called."""
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    plain = {"a": [1, -2, 2**70, 0.5, None, True, "é", b"x", (1, (2,), ()), {"b": []}]}
    plain |= {"long": "x" * 300, "many": list(range(300)), "bytes": b"y" * 300}
    path = write_plain(tmp_path / "p", pickle.dumps(plain, protocol))
    with path.open("rb") as file:
        found = interpret(file)
    if protocol > 2:  # before, bytes are a call of _codecs.encode
        assert found.value == plain and not found.globals
    assert found.value["many"] == plain["many"] and not suspicious(found.globals)
    write_plain(path, pickle.dumps({"a": Evil()}, protocol))
    with path.open("rb") as file:
        names = interpret(file).globals
    assert suspicious(names) in (["io.open"], ["_io.open"])
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02Pabc\n.",  # PERSID, protocol 0
        b"\x80\x02].",  # whole, but an empty list
        b"\x80\x020.",
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01K\x01R.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02X\xff\xff\xff\x7fabc",
        b"\x80\x02\x8b\xff\xff\xff\x7f",
        b"\x80\x02",
        b"\x80\x02(((",
        b"\x80\x02t.",
    ],
)
def test_broken_pickles_are_one_line(content, tmp_path):
    for write in (write_zip, write_stacked):
        refusal(write(tmp_path / "model", content))


def test_work_stays_linear(tmp_path):
    """Nested tuples, as keys and as values, and nested lists: no hash, no recursion."""
    doubling = b")" + b"2\x86" * 60  # t = (t, t), sixty times
    for content in (
        b"\x80\x02}" + doubling + b"K\x01s" + STOP,
        b"\x80\x02}" + value("a") + doubling + b"s" + STOP,
        b"\x80\x02ctorch\nFloatStorage\n" + doubling + b"R" + STOP,
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + STOP,
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + STOP,
    ):
        refusal(write_zip(tmp_path / "model.pt", content))


def test_names_in_messages_are_printable(tmp_path):
    content = b"\x80\x04" + value("a\x1b[2J\n") + value("b") + b"\x93" + STOP
    assert "a\\x1b[2J .b" in refusal(write_zip(tmp_path / "model.pt", content))


def test_broken_pickle_is_a_value_error():
    """Bytes of another format, of which some look like strings with odd escapes."""
    with (
        (FOLDER / "entries.npz").open("rb") as file,
        pytest.raises(BrokenPickle),
    ):
        interpret(file)
