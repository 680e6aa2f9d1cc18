"""Optimizer state travels: what a teacher's optimizer has learnt about its gradients, for its student's.

A weight of the student is ``W' = W[idx] / r_in`` and its gradient ``G' = G[idx] / r_out``: ``r_in`` is the number of
copies of what the entry reads (the product over the axes that it consumes), ``r_out`` of what it produces.

`carry` maps the state naturally: averages of gradients ``/ r_out``, of their squares ``/ r_out^2``. No map alone makes
the student's next step its teacher's: a weight of SGD must move by ``r_out / r_in`` times its gradient; one of Adam or
RMSProp, which divide the size of the gradient away, by ``1 / r_in`` times what they make of it.

`equivariant` is exact for every optimizer that treats each entry by itself: for the length of a step it gives the
optimizer ``V = r_in W' = W[idx]`` and its gradient ``r_out G' = G[idx]``, the teacher's own. So the state is copied as
it is, ``V`` makes the teacher's step with all that belongs to it (momentum, eps, every kind of weight decay), and
``W' = V / r_in`` moves by ``1 / r_in`` of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from n2n_cli.growth.build.maps import AxisMap
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.report import Growth

State = dict[str, dict[str, Any]]
"""The optimizer's state of every parameter, by the parameter's name."""
Rates = dict[str, tuple[Tensor, Tensor]]
"""Replication rates ``(r_out, r_in)`` of every parameter that grew, in a shape that broadcasts to the parameter's."""

POWERS = {
    "momentum_buffer": 1,  # of SGD; RMSProp's is a sum of updates, see `_power`
    "exp_avg": 1,
    "grad_avg": 1,
    "exp_inf": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "mean_square": 2,
    "sum": 2,
}
"""By which power of the gradient a state goes."""
NOT_ENTRYWISE = ("LBFGS", "Muon", "Adafactor", "SparseAdam")


def carry(old: Optimizer, teacher: nn.Module, new: Optimizer, growth: Growth) -> None:
    """Give ``new``, the student's optimizer, the state of ``old``, the teacher's, rescaled as the gradients are.

    Momentum ``/ r_out``, squared averages ``/ r_out^2``, RMSProp's momentum buffer and step counters as they are. New
    layers, fresh units, and tensors whose units hold parts or means of the teacher's, start fresh.
    Learning rates and weight decays stay those of ``new``.

    Args:
        old: the teacher's optimizer; it is not modified.
        teacher: the network whose parameters ``old`` holds.
        new: the student's optimizer, of the same class; its state is replaced.
        growth: what `widen` or `deepen` returned.

    Raises:
        GrowthError: a state whose size is unknown, or not that of its parameter; optimizers of two kinds; random
            weights.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> old = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    >>> net(torch.ones(1, 3)).sum().backward(); old.step()
    >>> grown = growth.widen(net, torch.ones(2, 3), 2.0)
    >>> new = torch.optim.SGD(grown.student.parameters(), 0.01, momentum=0.9)
    >>> growth.carry(old, net, new, grown)
    >>> new.state[grown.student[0].weight]["momentum_buffer"].shape
    torch.Size([8, 3])
    """
    _check(old, new, growth)
    load_state(new, growth.student, carried(named_state(old, teacher), growth, rates_of(old)))


def _check(old: Optimizer, new: Optimizer, growth: Growth) -> None:
    if not isinstance(growth, Growth):
        raise GrowthError(f"growth is of type {type(growth).__name__}: expected what `widen` or `deepen` returned")
    op = growth.recipe.get("op")
    if op not in ("wider", "deeper", "continue"):
        raise GrowthError(f"{op}: weights that are random have no teacher's optimizer state")
    if type(old) is not type(new):
        raise GrowthError(f"the teacher's optimizer is {type(old).__name__}, the student's {type(new).__name__}")


def equivariant(old: Optimizer | None, teacher: nn.Module, new: Optimizer, growth: Growth) -> Equivariant:
    """Make ``new``, the student's optimizer, take the steps of ``old``, the teacher's, exactly (without noise).

    The state is copied and `Equivariant` hooks ``new``. Exact for SGD, RMSProp, Adam, AdamW and every other that treats
    each entry by itself, at any learning rate; not with clipping by the global norm of the gradients, which counts
    copies.

    Args:
        old: the teacher's optimizer; it is not modified. None: the state starts fresh.
        teacher: the network whose parameters ``old`` holds.
        new: the student's optimizer, of the same class; its state is replaced.
        growth: what `widen` or `deepen` returned.

    Returns:
        Equivariant: the hooks on ``new``; ``.remove()`` takes them off, ``.rates`` goes into a checkpoint.

    Raises:
        GrowthError: units of the student are no copies of its teacher's; the optimizer mixes entries, is of another
            class than the teacher's, or has such hooks already; or the weights are random (`random_pad`,
            `random_init`).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> grown = growth.widen(net, torch.ones(2, 3), 1.5)
    >>> old, new = (torch.optim.Adam(model.parameters()) for model in (net, grown.student))
    >>> hooks = growth.equivariant(old, net, new, grown)
    >>> for model, optimizer in ((net, old), (grown.student, new)):
    ...     for step in range(10):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(1, 3)).square().sum().backward()
    ...         optimizer.step()
    >>> growth.function_gap(net, grown.student, torch.ones(2, 3)) < 1e-5
    True
    """
    _check(old or new, new, growth)
    both = rates(growth, rates_of(old) if old is not None else None)
    if old is not None:
        load_state(new, growth.student, copied(named_state(old, teacher), growth))
    return Equivariant(new, growth.student.named_parameters(), both)


class Equivariant:
    """Hooks that make each step of ``optimizer`` act on the teacher's weights ``r_in W'`` and gradients ``r_out G'``.

    To be made once the parameters are where they are trained. Gradients stay scaled after a step. ``rates`` are plain
    tensors, to be kept in a checkpoint: with them, the same hooks are put on the optimizer of a resumed run.

    Raises:
        GrowthError: the optimizer mixes entries, has such hooks already, or holds other parameters.
    """

    def __init__(
        self, optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]], rates: Rates
    ) -> None:
        if type(optimizer).__name__ in NOT_ENTRYWISE:
            raise GrowthError(
                f"{type(optimizer).__name__} mixes the entries of a tensor: use `carry`, or start with fresh state"
            )
        if optimizer in _HOOKED:
            raise GrowthError("this optimizer has the rates of a growth already")
        parameters = dict(named_parameters)
        if strangers := [name for name in rates if name not in parameters]:
            raise GrowthError(
                f"there is no parameter '{strangers[0]}' (give the names of the student itself, unwrapped)"
            )
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        given = [(parameters[name], r) for name, r in rates.items() if id(parameters[name]) in mine]
        if rates and not given:
            raise GrowthError("this optimizer holds none of the student's parameters that grew")
        for name, pair in rates.items():
            if len(pair) != 2 or any(
                torch.broadcast_shapes(r.shape, parameters[name].shape) != parameters[name].shape for r in pair
            ):
                raise GrowthError(f"the rates of {name} are not two, of its shape")
        self.rates = rates
        self._outward = [(p, r.to(p.device, p.dtype)) for p, (r, _) in given if bool((r != 1).any())]
        self._inward = [(p, r.to(p.device, p.dtype)) for p, (_, r) in given if bool((r != 1).any())]
        self._inside: list[tuple[nn.Parameter, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        _HOOKED[optimizer] = self

    def remove(self) -> None:
        """Take the hooks off; the state in the optimizer stays that of the teacher's gradients."""
        for handle in self._handles:
            handle.remove()
        for optimizer in [o for o, hooks in _HOOKED.items() if hooks is self]:
            del _HOOKED[optimizer]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("closure") is not None or any(arg is not None for arg in args[1:]):
            raise GrowthError("step(closure) would run the network on scaled weights: call backward before step()")
        for p, r_out in self._outward:
            if p.grad is not None:
                p.grad.mul_(r_out)
        self._inside = [(p, r_in) for p, r_in in self._inward if p.grad is not None]
        for p, r_in in self._inside:
            p.mul_(r_in)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for p, r_in in self._inside:
            p.div_(r_in)
        self._inside = []


_HOOKED: WeakKeyDictionary[Optimizer, Equivariant] = WeakKeyDictionary()


def rates_of(optimizer: Optimizer) -> Rates | None:
    """The rates that hooks on ``optimizer`` hold; None without."""
    hooks = _HOOKED.get(optimizer)
    return hooks.rates if hooks is not None else None


def rates(growth: Growth, before: Rates | None = None) -> Rates:
    """``(r_out, r_in)`` of every parameter of ``growth.student`` that grew; ``before``: those its teacher had already.

    Raises:
        GrowthError: units of the student are no copies of its teacher's, or ``x.max(dim)`` runs over copies.
    """
    if not growth.exact_optimizer or not all(map(_plain, growth.maps.values())):
        raise GrowthError(
            "equivariant: some units of the student are no copies of its teacher's, or `max` gives only one copy "
            "their gradient: use `carry`, or start with fresh state"
        )
    return _rates(growth, before or {})


def carried(state: State, growth: Growth, before: Rates | None = None) -> State:
    """The teacher's ``state`` by name, as the student's natural one; ``before``: the rates the teacher trained with.

    Raises:
        GrowthError: see `carry`.
    """
    both = _rates(growth, before or {})
    out: State = {}
    for name, entries in copied(state, growth).items():
        r_out = both[name][0] if name in both else None
        out[name] = {}
        for key, value in entries.items():
            power = _power(key, entries) if isinstance(value, Tensor) and value.ndim else 0
            scale = r_out.to(value.device, value.dtype) ** power if power and r_out is not None else None
            out[name][key] = value if scale is None else value / scale
    return out


def copied(state: State, growth: Growth) -> State:
    """The teacher's ``state`` by name, re-indexed for the student; nothing for tensors whose units are no copies."""
    shapes = {name: p.shape for name, p in growth.student.named_parameters()}
    out: State = {}
    for old, entries in state.items():
        name = growth.renamed.get(old, old)
        if name not in shapes:
            raise GrowthError(f"the student has no parameter '{name}' to take the optimizer's state of")
        maps = growth.maps.get(old, [])
        if not all(m is None or m.copies_alone for m in maps):
            continue
        out[name] = {}
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.ndim:
                value = _index(value, maps) if not maps or value.ndim == len(maps) else value
                value = _empty_where_fresh(value, maps)
                if value.shape != shapes[name]:
                    raise GrowthError(f"the optimizer's '{key}' of '{name}' is not one number for each of its entries")
            out[name][key] = value.clone() if isinstance(value, Tensor) else value
    return out


def named_state(optimizer: Optimizer, model: nn.Module) -> State:
    """What ``optimizer`` holds for the parameters of ``model``, by name."""
    found = {name: optimizer.state.get(p) for name, p in model.named_parameters()}
    return {name: dict(entries) for name, entries in found.items() if entries}


@torch.no_grad()
def load_state(optimizer: Optimizer, model: nn.Module, state: State) -> None:
    """Put ``state``, by the names of ``model``'s parameters, into ``optimizer``; others there start fresh."""
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if name in state and id(p) in mine:
            optimizer.state[p] = {  # in the memory format of p: fused optimizers look at nothing else
                key: torch.empty_like(p).copy_(value) if isinstance(value, Tensor) and value.ndim else value
                for key, value in state[name].items()
            }


def _power(key: str, entries: Mapping[str, Any]) -> int:
    if key not in POWERS:
        raise GrowthError(
            f"carry does not know how the optimizer's '{key}' scales: use `equivariant`, or start with fresh state"
        )
    # RMSProp's buffer sums what is left of gradients once their size is divided away.
    return 0 if key == "momentum_buffer" and {"square_avg", "mean_square"} & entries.keys() else POWERS[key]


def _plain(maps: Iterable[AxisMap | None]) -> bool:
    """Whether every axis that grew consists of copies that hold what the teacher's units do."""
    return all(m is None or m.exact for m in maps)


def _rates(growth: Growth, before: Rates) -> Rates:
    parameters = {name for name, _ in growth.student.named_parameters()}
    out: Rates = {}
    for old in dict.fromkeys([*growth.maps, *before]):
        name, maps = growth.renamed.get(old, old), growth.maps.get(old, [])
        if name not in parameters or not all(m is None or m.copies_alone for m in maps):
            continue
        one = torch.ones([1] * len(maps), dtype=torch.long)
        r_out, r_in = (
            _index(r, [m if n > 1 else None for m, n in zip(maps, r.shape, strict=False)])
            for r in before.get(old, (one, one))
        )
        for dim, axis in enumerate(maps):
            if axis is None:
                continue
            r = axis.parts().cpu().view([-1 if d == dim else 1 for d in range(len(maps))])
            r_out, r_in = (r_out, r_in * r) if (old, dim) in growth.consumed else (r_out * r, r_in)
        if bool((r_out != 1).any()) or bool((r_in != 1).any()):
            out[name] = (r_out, r_in)
    return out


def _empty_where_fresh(state: Tensor, maps: list[AxisMap | None]) -> Tensor:
    """State of 0 for the entries of fresh units and for those that read them."""
    for dim, axis in enumerate(maps):
        if axis is not None and axis.fresh is not None and state.ndim == len(maps):
            state = state.index_fill(dim, axis.fresh.nonzero().flatten().to(state.device), 0.0)
    return state


def _index(tensor: Tensor, maps: Iterable[AxisMap | None]) -> Tensor:
    for dim, axis in enumerate(maps):
        if axis is not None:
            tensor = tensor.index_select(dim, axis.index.to(tensor.device))
    return tensor
