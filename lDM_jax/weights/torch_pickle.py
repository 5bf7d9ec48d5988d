"""Reading a pickle without running it: what torch files need, and nothing else.

A pickle is a program for a stack machine that may call anything. `interpret` follows
its opcodes, as the standard library's `pickletools` decodes them, but imports nothing
and calls nothing: plain containers and values become themselves, tensors become
`Tensor` descriptions, and everything else an inert `Opaque` that only has a name. The
names of all globals are reported; `suspicious` tells which of them no checkpoint needs.

Work is linear in the length of the pickle: no opcode copies a container twice, and
nothing is hashed or shown but strings. Of a dict only the entries with names are kept.
"""

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple


class BrokenPickle(ValueError):
    """Bytes that are no whole pickle, or do what no torch file does."""


@dataclass(frozen=True)
class Opaque:
    """Something that was not made: an object of another class, a function, a type."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Where numbers lie: kind names an element type of `torch_file.KINDS`."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides in elements. Nothing is checked yet."""

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Pickled(NamedTuple):
    """The value of a pickle; all storages by key and all globals that it mentions."""

    value: Any
    storages: dict[str, Storage]
    globals: frozenset[str]


# Packages whose names occur in honest checkpoints. None is imported, none called.
PACKAGES = {"torch", "collections", "pytorch_lightning", "lightning", "omegaconf"}
PACKAGES |= {"lightning_fabric", "lightning_utilities"}
TYPES = "bool bytearray bytes complex dict float frozenset int list object set slice"
OTHERS = """numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.dtype
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy.ndarray
    argparse.Namespace _codecs.encode typing.Any copyreg._reconstructor
    copy_reg._reconstructor pathlib.Path pathlib.PosixPath pathlib.PurePosixPath"""
BENIGN = set(OTHERS.split())
for _name in (*TYPES.split(), "str", "tuple"):
    BENIGN |= {f"builtins.{_name}", f"__builtin__.{_name}"}


def suspicious(names: Iterable[str]) -> list[str]:
    """The names outside `PACKAGES` and `BENIGN`, sorted."""
    return sorted(
        name for name in set(names) - BENIGN if name.partition(".")[0] not in PACKAGES
    )


MARK = Opaque("mark")
NUMBERS = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
STRINGS = """STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE
    BINUNICODE8 BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8"""
VALUES = {*NUMBERS.split(), *STRINGS.split()}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
NOTHING = ("PROTO", "FRAME")
# The Warning: strings of protocol 0 with escapes that Python is about to give up.
FAILURES = (ValueError, IndexError, KeyError, TypeError, OverflowError, Warning)


def interpret(stream: BinaryIO) -> Pickled:
    """The pickle at the stream's position, which moves behind it, or BrokenPickle."""
    machine = _Machine()
    try:
        for opcode, arg, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                value = machine.stack.pop()
                return Pickled(value, machine.storages, frozenset(machine.globals))
            machine.do(opcode.name, arg)
    except BrokenPickle:
        raise
    except FAILURES as error:
        raise BrokenPickle(f"{type(error).__name__}: {error}") from None
    raise BrokenPickle("it does not end")


class _Machine:
    """The stack, the memo, and the storages and globals seen so far."""

    def __init__(self):
        self.stack, self.memo = [], {}
        self.storages, self.globals = {}, set()

    def do(self, name: str, arg: Any) -> None:
        """One opcode, by its name in `pickletools`."""
        stack = self.stack
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name in GETS:
            stack.append(self.memo[arg])
        elif name in PUTS:
            self.memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name not in NOTHING:
            action = getattr(self, f"on_{name.lower()}", None)
            if action is None:
                raise BrokenPickle(f"opcode {name} has no place in a torch file")
            action(arg)

    def marked(self) -> list:
        """Pop everything above the topmost mark, and the mark."""
        stack, items = self.stack, []
        while (item := stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def on_mark(self, _) -> None:
        self.stack.append(MARK)

    def on_pop(self, _) -> None:
        self.stack.pop()

    on_build = on_pop

    def on_pop_mark(self, _) -> None:
        self.marked()

    def on_dup(self, _) -> None:
        self.stack.append(self.stack[-1])

    def on_list(self, _) -> None:
        self.stack.append(self.marked())

    on_frozenset = on_list

    def on_tuple(self, _) -> None:
        self.stack.append(tuple(self.marked()))

    def on_dict(self, _) -> None:
        items = self.marked()
        self.stack.append({})
        self._set(items)

    def on_append(self, _) -> None:
        self._extend([self.stack.pop()])

    def on_appends(self, _) -> None:
        self._extend(self.marked())

    on_additems = on_appends

    def _extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def on_setitem(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def on_setitems(self, _) -> None:
        self._set(self.marked())

    def _set(self, items: list) -> None:
        """Fill the dict on the stack with the items that have names."""
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update((key, value) for key, value in pairs if type(key) is str)

    def on_global(self, arg: str) -> None:
        self._global(arg.replace(" ", "."))

    def on_stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module}.{name}" if type(name) is type(module) is str else "")

    def _global(self, name: str) -> None:
        if not name:
            raise BrokenPickle("a global without a name")
        self.globals.add(name)
        self.stack.append(Opaque(name))

    def on_inst(self, arg: str) -> None:
        arguments = tuple(self.marked())
        self._global(arg.replace(" ", "."))
        self.stack.append(arguments)
        self.on_reduce(None)

    def on_obj(self, _) -> None:
        function, *arguments = self.marked()
        self.stack.append(_call(function, tuple(arguments)))

    def on_reduce(self, _) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_call(function, arguments))

    on_newobj = on_reduce

    def on_newobj_ex(self, _) -> None:
        self.stack.pop()
        self.on_reduce(None)

    def on_binpersid(self, _) -> None:
        value = _storage(self.stack.pop())
        if isinstance(value, Storage):
            self.storages[value.key] = value
        self.stack.append(value)


def _storage(reference: Any) -> Storage | Opaque:
    """torch's persistent ids: ("storage", type, key, device, numel [, view])."""
    if not isinstance(reference, tuple) or reference[:1] != ("storage",):
        return Opaque("persistent id")
    kind, key, _, numel, *view = reference[1:]
    if not isinstance(kind, Opaque) or type(key) is not str or any(view):
        raise BrokenPickle("a storage that is none of torch's")
    return Storage(kind.name.rpartition(".")[2], key, numel)


def _call(function: Any, arguments: Any) -> Any:
    """What a call would have returned, for the few that tensors need; else Opaque."""
    if not isinstance(function, Opaque) or not isinstance(arguments, tuple):
        raise BrokenPickle("a call of something that is no function")
    name = function.name
    if name == "collections.OrderedDict":
        return _ordered(arguments)
    if name.startswith(("torch._utils._rebuild_param", "torch.Size")) and arguments:
        return arguments[0]
    if name.startswith("torch._utils._rebuild_tensor") and len(arguments) >= 4:
        storage, offset, shape, strides, *rest = arguments
        if isinstance(storage, Storage):
            # Version 3 names the element type beside an untyped storage.
            dtype = rest[2] if name.endswith("_v3") and len(rest) > 2 else None
            kind = dtype.name if isinstance(dtype, Opaque) else storage.kind
            kind = kind.rpartition(".")[2]
            return Tensor(storage, kind, offset, _sides(shape), _sides(strides))
    return Opaque(name)


def _sides(value: Any) -> tuple:
    if not isinstance(value, tuple | list) or len(value) > 64:
        raise BrokenPickle("a tensor whose shape is none")
    return tuple(value)


def _ordered(arguments: tuple) -> dict:
    """An OrderedDict of pairs; the list of pairs is emptied, so read only once."""
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list):
        raise BrokenPickle("an OrderedDict of something that is no list")
    entries = {key: value for key, value in pairs if isinstance(key, str)}
    pairs.clear()
    return entries
