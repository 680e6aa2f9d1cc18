"""Networks by name: our two Inception families, every classification model of torchvision, and its ViT in smaller.

Functions of the user's are apart, in `n2n_cli.models.custom`: nothing here imports by name.
Importing this package does not import torch; calling `build` or `names` does.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from n2n_cli.errors import N2NError, suggest
from n2n_cli.models.names import FAMILY_KWARGS, OURS, PAIRS_AT, SMALL_VITS, STEMS, WIDTH_MULT

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OURS", "build", "names"]


def names() -> list[str]:
    """All names that `build` knows: ours first, then torchvision's classification builders, and `SMALL_VITS`."""
    import torchvision

    return [*OURS, *torchvision.models.list_models(module=torchvision.models), *SMALL_VITS]


def build(name: str, num_classes: int = 1000, width: float = 1.0, **kwargs: Any) -> nn.Module:
    """A randomly initialized network from images ``[N, 3, H, W]`` to logits ``[N, num_classes]``.

    ``width`` multiplies the channels of our families' modules, each count rounded by itself; torchvision's
    builders take it where they have a ``width_mult``. Ours also take

    * ``extra_pairs``: vertical-horizontal pairs added everywhere one stands (0 here; 2 and 4 in the paper)
    * ``pairs_at``: ``"branch"``, behind the pair (or last 3x3) inside a branch, or ``"concat"``, behind the
      module
    * ``stem``: ``"imagenet"`` for 224 px, ``"small"`` for 32 px
    * ``dropout``: probability before the classifier

    torchvision's builders get ``kwargs`` as they are, never weights; `SMALL_VITS` are its ``VisionTransformer``, and
    ``kwargs`` go over their sizes. Random numbers come from torch's global
    generator. Raises `N2NError` for an unknown name or argument and for values out of range.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise N2NError(f"model {name}: num_classes must be a whole number >= 1, not {num_classes!r}")
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise N2NError(f"model {name}: width must be a positive number, not {width!r}")
    if name in OURS:
        _check_family(name, kwargs)
        from n2n_cli.models.inception import inception

        if not width <= 1000:
            raise N2NError(f"model.width: {width:g} times the channels is too wide, expected 1000 at most")
        return inception(name, num_classes, float(width), **kwargs)
    known = names()
    if name not in known:
        ours = ", ".join(OURS)
        raise N2NError(f"unknown model '{name}'{suggest(name, known)}; ours are {ours}, others torchvision's")
    return _torchvision(name, num_classes, width, kwargs)


def _check_family(name: str, kwargs: dict[str, Any]) -> None:
    for key, value in kwargs.items():
        if key not in FAMILY_KWARGS:
            raise N2NError(
                f"model {name} has no argument '{key}'{suggest(key, FAMILY_KWARGS)}; it takes "
                + ", ".join(FAMILY_KWARGS)
            )
        choices = {"stem": STEMS, "pairs_at": PAIRS_AT}.get(key)
        if choices and value not in choices:
            near = suggest(str(value), choices)
            raise N2NError(f"model {name}: {key} must be {' or '.join(choices)}, not {value!r}{near}")
        if key == "extra_pairs" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise N2NError(f"model {name}: extra_pairs must be a whole number >= 0, not {value!r}")
        if key == "dropout" and (not isinstance(value, int | float) or not 0 <= value < 1):
            raise N2NError(f"model {name}: dropout must be in [0, 1), not {value!r}")


def _torchvision(name: str, num_classes: int, width: float, kwargs: dict[str, Any]) -> nn.Module:
    import torchvision

    for key in ("weights", "pretrained", "progress", "num_classes"):
        if key in kwargs:
            raise N2NError(f"model {name} takes no '{key}' here: networks start from random or grown weights")
    if width != 1.0:
        if name not in WIDTH_MULT:
            raise N2NError(
                f"model {name} has no width multiplier (width {width:g}); use its own arguments in kwargs, "
                "or another member of its family"
            )
        kwargs = {"width_mult": float(width), **kwargs}
    if name in ("googlenet", "inception_v3"):
        # Says which initialization is meant (torchvision warns otherwise): the paper's truncated normal.
        kwargs = {"init_weights": True, **kwargs}
    made: dict[str, Any] = {"image_size": 224, **SMALL_VITS.get(name, {}), **kwargs}
    try:
        model: nn.Module = (
            torchvision.models.VisionTransformer(num_classes=num_classes, **made)
            if name in SMALL_VITS
            else torchvision.models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
        )
    except (TypeError, ValueError, NotImplementedError, KeyError, AttributeError, AssertionError) as error:
        if not kwargs:
            raise
        arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        reason = " ".join(str(error).split())
        raise N2NError(f"model {name} does not build with {arguments}: {reason}") from error
    _refuse_swallowed(name, model, kwargs)
    return model


def _refuse_swallowed(name: str, model: nn.Module, kwargs: dict[str, Any]) -> None:
    """ConvNeXt and MobileNetV3 take any argument and ignore what they do not know; a typo must not pass."""
    parameters = inspect.signature(type(model)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = {parameter.name for parameter in parameters}
        if name.startswith("mobilenet_v3"):
            known |= {"width_mult", "reduced_tail", "dilated"}
        for key in kwargs:
            if key not in known:
                raise N2NError(f"model {name} has no argument '{key}'{suggest(key, known)}")
