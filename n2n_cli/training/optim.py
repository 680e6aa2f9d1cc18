"""Optimizers and learning-rate schedules.

SGD, Adam and AdamW are PyTorch's. RMSProp is TensorFlow's, the one the Inception recipes were tuned with
(``torch.optim.RMSprop`` is another algorithm, see `TFRMSprop`). Schedules are one pure function of the
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli import growth
from n2n_cli.errors import N2NError, suggest
from n2n_cli.growth.optimizer import Equivariant, Rates, rates_of
from n2n_cli.training.shard import is_split, scattered

OPTIMIZERS = ("sgd", "rmsprop", "adam", "adamw")
EMBEDDINGS = ("pos_embedding", "position_embedding", "pos_embed", "relative_position_bias_table")
"""Names of position embeddings in torchvision and timm."""
SCHEDULES = ("constant", "step", "exponential", "cosine")


class TFRMSprop(torch.optim.Optimizer):
    """RMSProp with TensorFlow's semantics (Inception's recipe; PAPER.md, end of section 5).

    ::

        ms  <- decay * ms + (1 - decay) * g^2            ms starts at one
        mom <- momentum * mom + lr * g / sqrt(ms + eps)  eps inside the root; lr enters the buffer
        w   <- w - mom

    ``torch.optim.RMSprop`` starts ``ms`` at zero, adds eps outside the root and multiplies the buffer by
    the current rate, so a decayed rate there also scales down steps already taken. Weight decay is added to
    ``g``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = dict(lr=lr, decay=decay, momentum=momentum, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["mean_square"] = torch.ones_like(p)
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            grads = [p.grad for p in params]
            squares = [self.state[p]["mean_square"] for p in params]
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1.0 - group["decay"])
            root = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(root)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, grads, root, value=group["lr"])
            torch._foreach_sub_(params, buffers)
        return loss


STATE: dict[type[torch.optim.Optimizer], set[str]] = {
    TFRMSprop: {"mean_square", "momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},  # and AdamW, which is one of its classes
    torch.optim.SGD: {"momentum_buffer"},
}
"""What each optimizer keeps for a parameter: tensors of its shape, and ``step``, a tensor of one number."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with ``weight_decay``, and without what the field leaves out: biases and the parameters of norms, other
    vectors (a class token, a layer scale), position embeddings, and those of the network's ``no_weight_decay()``.
    """
    named = getattr(model, "no_weight_decay", None)
    left_out = set(named() or ()) if callable(named) else set()
    params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = {name for name, p in params if name in left_out or _is_no_weight(name, p)}
    groups = [
        {"params": [p for name, p in params if name not in plain], "weight_decay": weight_decay},
        {"params": [p for name, p in params if name in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_no_weight(name: str, p: nn.Parameter) -> bool:
    """Of a parameter alone: whether weight decay leaves it out, as in torchvision's and timm's recipes."""
    last = name.rpartition(".")[2]
    vector = p.ndim <= 1 or (not last.startswith("weight") and sum(size > 1 for size in p.shape) <= 1)
    return vector or last in EMBEDDINGS


def build_optimizer(
    model: nn.Module,
    *,
    name: str = "sgd",
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decay: float = 0.9,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer ``name`` over ``model``'s trainable parameters; no weight decay on BN and biases.

    Args:
        name: ``sgd``, ``rmsprop`` (TensorFlow's semantics), ``adam`` or ``adamw`` (weight decay apart from the
            gradient).
        lr: rate of the first step; the loop sets every step's rate from `lr_at`.
        momentum: of SGD and RMSProp; the others ignore it.
        nesterov: of SGD with momentum; the others ignore it.
        decay: of RMSProp's mean square; the others ignore it.
        betas: of Adam's and AdamW's averages of the gradient and of its square; the others ignore them.
        eps: inside RMSProp's root, beside Adam's; SGD ignores it.

    Raises:
        N2NError: unknown name; nothing to train.
    """
    if name not in OPTIMIZERS:
        raise N2NError(f"optim.name={name!r}: expected one of {', '.join(OPTIMIZERS)}{suggest(name, OPTIMIZERS)}")
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise N2NError("the model has no trainable parameters")
    if name == "rmsprop":
        return TFRMSprop(groups, lr, decay=decay, momentum=momentum, eps=eps)
    if name in ("adam", "adamw"):
        kind: type[torch.optim.Adam] = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        # A step of Inception-BN and of a small ViT takes 0.3 to 0.4 of foreach's time so (experiments/benchmarks).
        fused = all(_lies_plain(p) for group in groups for p in group["params"])
        optimizer = kind(groups, lr, (betas[0], betas[1]), eps, fused=fused, foreach=not fused)
        if fused:
            optimizer.register_step_pre_hook(_lay_gradients)
        return optimizer
    # Not fused, which takes 0.6 to 0.9 of the time: its momentum starts from memory as it lies where fp16 leaves out
    # the first step, and it cannot go on from a state that some parameters lack, as those of grown networks do.
    return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, foreach=True)


def _lies_plain(p: nn.Parameter) -> bool:
    """Whether the fused form can take ``p``: real numbers on a CPU, without gaps, so that its state lies as it does."""
    return p.device.type == "cpu" and p.is_floating_point() and not is_split(p) and _laid_like(p, p) is p


def _laid_like(p: Tensor, value: Tensor) -> Tensor:
    """``value`` in the memory format of ``p``: the fused form walks through memory, whatever the strides say. Split if
    ``p`` is."""
    if is_split(p):
        return scattered(value, p)
    if value.stride() == torch.empty_like(p, device="meta").stride():
        return value
    return torch.empty_like(p, dtype=value.dtype).copy_(value)


def _lay_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():  # a hook of the network's own made it
                p.grad = _laid_like(p, p.grad)


def restored(
    model: nn.Module, state: dict[str, Any], rates: Rates | None = None, **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of ``model`` with the state that a checkpoint holds.

    Args:
        state: the optimizer's state dict.
        rates: the checkpoint's rate for each entry (op.optimizer=equivariant); None or empty: one rate for all.
        options: of `build_optimizer`.

    Raises:
        N2NError: the state is that of another optimizer or network.
    """
    optimizer = build_optimizer(model, **options)
    load_state(optimizer, state)
    if rates:
        Equivariant(optimizer, model.named_parameters(), rates)
    return optimizer


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give ``optimizer`` what a checkpoint holds of its parameters; rate, decay and momentum stay its own.

    Args:
        state: the state dict of an optimizer of the same class and network.

    Raises:
        N2NError: the state is that of another optimizer or network.
    """
    groups = optimizer.state_dict()["param_groups"]
    try:
        # Not by groups: those of a guide's heads were one.
        theirs, ours = ([n for one in some for n in one["params"]] for some in (state["param_groups"], groups))
        if theirs != ours:
            raise ValueError("it is of other parameters")
        keys = next(keys for kind, keys in STATE.items() if isinstance(optimizer, kind))
        if any(kept and kept.keys() != keys for kept in state["state"].values()):
            raise ValueError("it is of another optimizer")
        parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
        laid: dict[int, dict[str, Tensor]] = {}
        for number, kept in state["state"].items():
            parameter, laid[number] = parameters[number], {}
            for key, value in kept.items():
                if not isinstance(value, Tensor) or value.shape != (() if key == "step" else parameter.shape):
                    raise ValueError("it is of a network of other shapes")
                laid[number][key] = value if key == "step" else _laid_like(parameter, value)  # grown ones lie otherwise
        optimizer.load_state_dict({"state": laid, "param_groups": groups})
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise N2NError(f"the optimizer's state does not fit: {' '.join(str(error).split())[:200]}") from error


def travelled(
    how: str, old: torch.optim.Optimizer, teacher: nn.Module, grown: growth.Growth, **options: Any
) -> tuple[dict[str, Any], Rates]:
    """The teacher's optimizer state as the student's.

    Args:
        how: ``carry`` or ``equivariant``, see `n2n_cli.growth.optimizer`.
        old: the optimizer of ``teacher``, with its state.
        grown: the growth that made the student of ``teacher``.
        options: of `build_optimizer`, for the student's optimizer.

    Returns:
        The state dict of the student's optimizer, and its rate for each entry (empty for ``carry``).
    """
    new = build_optimizer(grown.student, **options)
    {"carry": growth.carry, "equivariant": growth.equivariant}[how](old, teacher, new, grown)
    return new.state_dict(), rates_of(new) or {}


def lr_at(
    step: int,
    *,
    base_lr: float,
    name: str = "cosine",
    total_steps: int,
    warmup_steps: int = 0,
    step_steps: int = 0,
    factor: float = 0.1,
) -> float:
    """Learning rate of optimizer step ``step`` (0-based: ``lr_at(0)`` is the rate of the first update).

    - ``constant``: ``base_lr``
    - ``step``: times ``factor`` after every ``step_steps`` steps
    - ``exponential``: ``factor ** (step / step_steps)``, the smooth form of the same
    - ``cosine``: from ``base_lr`` after the warm-up down to 0 at ``total_steps``

    The first ``warmup_steps`` updates rise linearly: ``(step + 1) / warmup_steps`` of what the schedule says.

    Raises:
        N2NError: unknown name, or ``step`` and ``exponential`` without ``step_steps``.
    """
    if name not in SCHEDULES:
        raise N2NError(
            f"optim.schedule.name={name!r}: expected one of {', '.join(SCHEDULES)}{suggest(name, SCHEDULES)}"
        )
    if name in ("step", "exponential") and step_steps <= 0:
        raise N2NError(f"optim.schedule.name={name} needs optim.schedule.step_epochs above 0")
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    scale = 1.0
    if name == "step":
        scale = factor ** (step // step_steps)
    elif name == "exponential":
        scale = factor ** (step / step_steps)
    elif name == "cosine":
        done = min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))
        scale = 0.5 * (1.0 + math.cos(math.pi * done))
    return base_lr * warmup * scale
