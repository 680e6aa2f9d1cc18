"""A network that a function of the user's builds, named ``package.module:function`` on the command line.

The one place of the project that imports code by name. What is imported here runs, so a name may come from the words
of the very command that a person typed, never from a file: ``app`` refuses a config with a name that was not typed,
and ``lineage.build`` calls `build` only for names that it is handed as typed. Importing this module imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2n_cli.errors import N2NError, suggest

if TYPE_CHECKING:
    from torch import nn

_SPEC = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_spec(name: object) -> bool:
    """Whether this reads as ``package.module:function``."""
    return isinstance(name, str) and _SPEC.fullmatch(name) is not None


def check_spec(name: str) -> None:
    """Raises N2NError for a name that is meant as ``package.module:function`` but is not written so."""
    if is_spec(name):
        return
    if ":" in name:
        path = re.sub(r"\.py$", "", name.rpartition(":")[0]).strip("./").replace("/", ".")
        meant = f"{path}:{name.rpartition(':')[2]}"
    elif "." in name:
        meant = ":".join(re.sub(r"\.py$", "", name).rpartition(".")[::2])
    else:
        return
    near = f" (did you mean '{meant}'?)" if is_spec(meant) else ""
    raise N2NError(f"unknown model '{name}': a function of yours is written package.module:function{near}")


def find(spec: str) -> Callable[..., Any]:
    """The function of a spec that the user typed. Imports its module, also from the current folder.

    Raises:
        N2NError: no such module or function, or the module raised while it was imported.
    """
    module_name, _, name = spec.partition(":")
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise N2NError(f"model {spec}: {top} is a module of Python's own, and builds no networks")
    here = os.getcwd()
    if sys.path[:1] not in ([here], [""]):  # as ``python -m`` does; later imports of the user's code need it too
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    import torch
    from torch import nn

    try:
        with torch.random.fork_rng(devices=[]):  # a seed that is set must hold until the function is called
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise N2NError(f"model {spec}: no module '{missing}'{_near_module(missing, here)}") from error
        raise N2NError(f"model {spec}: importing {module_name} raised {told(error)}") from error
    found = getattr(module, name, None)
    if found is None:
        functions = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise N2NError(f"model {spec}: no function '{name}' in {module_name}{suggest(name, functions)}")
    if isinstance(found, nn.Module) or not callable(found):
        raise N2NError(f"model {spec}: this is a {type(found).__name__}, not a function that returns a network")
    return found


def check(spec: str, **kwargs: Any) -> None:
    """What can be said before the function is called: it is there and takes ``kwargs``. Raises N2NError."""
    _arguments(find(spec), spec, 1, kwargs)


def build(spec: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """The network of a function that the user typed, called with ``num_classes`` (if it takes it) and ``kwargs``.

    Raises:
        N2NError: as `find`, or the function takes other arguments, raises, or returns no ``nn.Module``.
    """
    from torch import nn

    if not isinstance(num_classes, int) or num_classes < 1:
        raise N2NError(f"model {spec}: num_classes must be a whole number >= 1, not {num_classes!r}")
    function = find(spec)
    arguments = _arguments(function, spec, num_classes, kwargs)
    try:
        model = function(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise N2NError(f"model {spec}: called with ({given}), it raised {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise N2NError(f"model {spec}: it returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def run_once(model: nn.Module, shape: Sequence[int]) -> None:
    """Give lazy layers (``nn.LazyLinear``) their shapes, by a pass over zeros of ``shape`` [N, C, H, W].

    Raises:
        N2NError: the network does not run on them.
    """
    import torch

    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():  # in inference mode the new parameters could not be trained
            model.eval()(torch.zeros(*shape))
    except Exception as error:  # code of the user's
        raise N2NError(f"{type(model).__name__}: on images {list(shape)}, it raised {told(error)}") from error
    finally:
        for module in training:
            module.training = True


def is_lazy(model: nn.Module) -> bool:
    """Whether some parameter has no shape before the network has run once."""
    from torch.nn.parameter import is_lazy

    return any(is_lazy(parameter) for parameter in model.parameters())


def _arguments(function: Callable[..., Any], spec: str, num_classes: int, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one written in C
        return {"num_classes": num_classes, **kwargs}
    parameters = signature.parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    known = [one.name for one in named]
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    arguments = {"num_classes": num_classes, **kwargs} if any_name or "num_classes" in known else dict(kwargs)
    for key in kwargs:
        if not any_name and key not in known:
            takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
            raise N2NError(f"model {spec}: no argument '{key}'{suggest(key, known)}{takes}")
    for one in named:
        if one.default is one.empty and one.name not in arguments:
            raise N2NError(f"model {spec}: '{one.name}' needs a value: model.kwargs.{one.name}=VALUE")
    return arguments


def _near_module(missing: str, here: str) -> str:
    """The module beside ``missing`` with the nearest name, or where it was looked for."""
    parent, _, name = missing.rpartition(".")
    folders = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else [here]
    names = {found.name for found in pkgutil.iter_modules(folders)}
    names |= {path.parent.name for folder in folders for path in Path(folder).glob("*/*.py")}
    before = f"{parent}." if parent else ""
    near = suggest(f"{before}{name}", [f"{before}{other}" for other in sorted(names)])
    return near or f" in {parent or 'the current folder, PYTHONPATH or what is installed'}"


def told(error: BaseException) -> str:
    """An exception in one line, with the user's line of code that it came from."""
    text = " ".join(str(error).split())
    others = ("importlib", "site-packages", str(Path(__file__).parents[1]))
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(place in frame.filename for place in others)]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{where}"
