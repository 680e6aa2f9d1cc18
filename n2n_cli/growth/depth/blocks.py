"""New blocks of a deeper constructor that add nothing at first: ``x + B(x)`` where the last factor of ``B`` is zero.

Two parts. `Blocks` reads from a recorded pass where a block's branch ``B`` joins the stream ``x``, and which parameters
close it. `align` and `new_blocks` tell which tensor of a deeper student is which of the teacher's, where numbered
layers have moved up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.trace.record import Op, Recording


class _Open(Exception):
    """A branch that no parameter closes, and why."""


def _moves(op: Op) -> bool:
    """Whether the result of an operation holds its first argument, entries dropped at random left aside."""
    row = OPERATIONS.of(op)
    return row.moves or row.is_dropout


def under(path: str, blocks: Iterable[str]) -> bool:
    """Whether a module stands in one of the blocks, or is one."""
    return any(path == block or path.startswith(f"{block}.") for block in blocks)


class Blocks:
    """What a recorded pass of a student tells about its new blocks.

    ``blocks``: the paths of the new blocks; ``new``: the names of the parameters that the teacher lacks.
    """

    def __init__(self, recording: Recording, blocks: Collection[str], new: Collection[str]) -> None:
        self.ops, self.names = recording.ops, recording.tensors
        self.blocks, self.new = blocks, new

    def closing(self, block: str) -> tuple[list[str], set[str]]:
        """Parameters that, when zero, make ``block`` add nothing; and the blocks that make up its branch.

        The sum may stand in the block (a stage may hold several), or behind it.

        Returns:
            tuple[list[str], set[str]]: names of parameters, and paths of blocks, of which ``block`` is one; both are
            empty where no sum joins a branch to what enters the block.

        Raises:
            GrowthError: a branch has no such parameters; names the block and the operation in the way.
        """
        # ``entering``: the first tensor that the block reads and did not make. ``stream``: every tensor that is this
        # one, moved or passed through an idempotent activation, or a sum of it with branches. A sum of a stream tensor
        # and any other is a branch: `_joined` names the parameters that make that other tensor zero.
        inside = [i for i, op in enumerate(self.ops) if under(op.path, [block])]
        made, entering = set(self.names), None
        for i in inside:
            entering = entering or next(([t] for t in self.ops[i].tensors() if id(t) not in made), None)
            made.update(id(t) for t in self.ops[i].outputs)
        if not entering:
            return [], set()
        stream, found, last = {id(entering[0])}, [], inside[0]
        try:
            for i in inside:
                op = self.ops[i]
                names = self._joined(i, stream)
                if names is not None:
                    found += names
                    stream.add(id(op.outputs[0]))
                elif (_moves(op) or OPERATIONS.of(op).idempotent) and id(op.args[0]) in stream:
                    stream.update(id(t) for t in op.outputs)
                elif any(id(t) in stream for t in op.outputs):  # overwritten by something else
                    stream -= {id(t) for t in op.outputs}
                last = i
            if found:
                return found, {block}
            return self._behind(last, stream, block)
        except _Open as error:
            raise GrowthError(f"the new block '{block}' cannot start as nothing: {error}") from error

    def _behind(self, at: int, stream: set[int], block: str) -> tuple[list[str], set[str]]:
        """`closing` where the sum is the caller's: what leaves operation ``at``, the block's last, is followed through
        other new blocks to where it is added.
        """
        covered = {block}
        while True:
            made = {id(t) for t in self.ops[at].outputs}
            readers = [i for i in range(at + 1, len(self.ops)) if any(id(t) in made for t in self.ops[i].tensors())]
            if not readers:
                return [], set()
            names = self._joined(readers[0], stream)
            if names is not None:
                return names, covered
            op = self.ops[readers[0]]
            through = {b for b in self.blocks if under(op.path, [b])}
            if len(readers) > 1 or not (through or OPERATIONS.of(op).zero in ("first", "any")):
                return [], set()
            covered |= through
            at = readers[0]

    def _joined(self, at: int, stream: set[int]) -> list[str] | None:
        """If operation ``at`` adds a branch to the stream: the parameters that close the branch; else None.

        ``stream``: the ``id`` of every tensor that holds what enters the block, with the sums so far.
        """
        op, signs = self.ops[at], OPERATIONS.of(self.ops[at]).signs
        if not signs or len(op.args) < 2:
            return None
        a, b = op.args[:2]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or (id(a) in stream) == (id(b) in stream):
            return None
        if signs[1] < 0 and id(b) in stream:  # a zero branch would leave the stream negated
            return None
        return self._zeros(b if id(a) in stream else a, at)

    def _zeros(self, tensor: Any, before: int) -> list[str]:
        """Parameters that, when zero, make ``tensor`` zero, as it is before operation ``before``, and let it learn."""
        if not isinstance(tensor, Tensor):
            raise _Open("a number is added")
        name = self._parameter(tensor, before)
        if name is not None:
            return [self._owned(name)]
        at = next((i for i in range(before - 1, -1, -1) if any(t is tensor for t in self.ops[i].outputs)), None)
        if at is None:
            raise _Open("what it adds is not its own")
        op, row = self.ops[at], OPERATIONS.of(self.ops[at])
        if row.zero == "always":
            return []
        if row.zero == "first":
            return self._zeros(op.args[0], at)
        if row.zero == "all":
            parts = op.args[0] if isinstance(op.args[0], list | tuple) else [op.args[i] for i in row.terms]  # or cat
            return [name for part in parts for name in self._zeros(part, at)]
        if row.zero == "any":
            return self._factor(op, at)
        if row.weight is not None:
            weight, bias = op.arg(row.weight, "weight"), op.arg(row.bias, "bias") if row.bias is not None else None
            names = [self._parameter(t, at) for t in (weight, bias) if t is not None]
            if weight is None:
                raise _Open(f"{op} ends its branch and has no scale")
            if None in names:
                raise _Open(f"{op} ends its branch with a weight that is computed")
            return [self._owned(name) for name in names if name is not None]
        if row.idempotent:
            raise _Open(f"{op} ends its branch, and behind it a zero would never learn")
        raise _Open(f"{op} ends its branch, and no parameter behind it can be zero")

    def _factor(self, op: Op, at: int) -> list[str]:
        """A product is zero where one factor is: a parameter of its own first, else what either is made of."""
        factors = [op.args[i] for i in OPERATIONS.of(op).terms if isinstance(op.args[i], Tensor)]
        reason = _Open(f"{op} ends its branch")
        for tensor in sorted(factors, key=lambda t: self._parameter(t, at) is None):
            try:
                return self._zeros(tensor, at)
            except _Open as error:
                reason = error
        raise reason

    def _parameter(self, tensor: Tensor, before: int) -> str | None:
        """The name of the parameter that ``tensor`` is, or is a view of, before operation ``before``; else None."""
        for op in reversed(self.ops[:before]):
            if id(tensor) in self.names:
                break
            if any(t is tensor for t in op.outputs):
                if not _moves(op) or not isinstance(op.args[0], Tensor):
                    return None
                tensor = op.args[0]
        return self.names.get(id(tensor))

    def _owned(self, name: str) -> str:
        """The name itself, if the teacher has no such parameter: what is the teacher's cannot be zero."""
        if name not in self.new:
            raise _Open(f"'{name}', which ends its branch, is the teacher's")
        return name


# --- which tensor is which ---------------------------------------------------------------------------------


def align(teacher: nn.Module, student: nn.Module) -> dict[str, str]:
    """Every tensor of the teacher's ``state_dict`` -> its name in a deeper student.

    The same names, if they all fit. Else modules are matched from the top: children by name; numbered children (of
    Sequential and ModuleList) in order, each with the first that has its class and shapes, so that layers put in
    between only move the later ones up.

    Raises:
        GrowthError: a tensor has no place in the student; names the first.

    >>> teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> student = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> align(teacher, student)["2.weight"]
    '4.weight'
    """
    theirs, ours = _tensors(teacher), _tensors(student)
    if all(name in ours and ours[name].shape == tensor.shape for name, tensor in theirs.items()):
        return {name: name for name in theirs}
    paths: dict[str, str] = {}
    if _embed(teacher, student, "", "", paths):
        found = {name: paths[name] for name in theirs if name in paths}
        if len(found) == len(theirs) and len(set(found.values())) == len(found):
            return found
    for name, tensor in theirs.items():
        if name not in ours:
            raise GrowthError(f"the student lacks the teacher's '{name}'{suggest(name, ours)}")
        if ours[name].shape != tensor.shape:
            raise GrowthError(
                f"'{name}' is {list(tensor.shape)} in the teacher and {list(ours[name].shape)} in the student: "
                "deepen adds layers and changes no width, widen them first"
            )
    raise GrowthError("the student does not hold the teacher's layers in their order")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _embed(teacher: nn.Module, student: nn.Module, at: str, to: str, paths: dict[str, str]) -> bool:
    """Whether the student's module at path ``to`` holds the layers of the teacher's at path ``at``.

    If it does, ``paths`` gets the names of the tensors, as `align` returns them. Paths end with a dot, or are empty.
    """
    own, has = ({**module._parameters, **module._buffers} for module in (teacher, student))
    if {k: None if t is None else t.shape for k, t in own.items()} != {
        k: None if t is None else t.shape for k, t in has.items()
    }:
        return False
    if own and not teacher._modules and teacher.extra_repr() != student.extra_repr():
        return False
    found = {at + key: to + key for key, tensor in own.items() if tensor is not None}
    names = list(student._modules)
    numbered = all(name.isdigit() for name in [*teacher._modules, *names])
    for name, child in teacher._modules.items():
        if child is None:
            continue
        for other in list(names) if numbered else [name]:
            place, inner = student._modules.get(other), dict[str, str]()
            if numbered:
                names.remove(other)
            if place is None or (numbered and type(place) is not type(child)):
                continue
            if _embed(child, place, f"{at}{name}.", f"{to}{other}.", inner):
                found |= inner
                break
        else:
            if numbered or any(True for _ in child.parameters()):
                return False
    paths |= found
    return True


def new_blocks(student: nn.Module, new: Iterable[str], taken: Collection[str]) -> list[str]:
    """The largest modules of the student that hold only ``new`` tensors, in the order of its ``state_dict``.

    ``taken``: the names of all its other tensors, which are the teacher's.

    Raises:
        GrowthError: a new tensor stands in a layer that the teacher has too.
    """
    # every module on the path to a tensor of the teacher's; containers are never blocks themselves
    held = {name[:i] for name in taken for i, c in enumerate(name) if c == "."}
    held |= {name for name, module in student.named_modules() if isinstance(module, nn.ModuleList | nn.ModuleDict)}
    found: dict[str, None] = {}
    for name in new:
        parts = name.split(".")
        paths = (".".join(parts[:n]) for n in range(1, len(parts)))
        block = next((path for path in paths if path not in held), None)
        if block is None:
            raise GrowthError(
                f"the student's '{name}' is new in a layer that the teacher has: deepen adds whole layers"
            )
        found[block] = None
    return list(found)
