"""The examples in the docstrings run, and every function that growth offers has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.groups.operations import OPERATIONS

MODULES = [
    module
    for info in pkgutil.walk_packages(growth.__path__, "n2n_cli.growth.")
    if ">>> " in inspect.getsource(module := importlib.import_module(info.name))
]
OFFERED = [name for name in growth.__all__ if inspect.isfunction(getattr(growth, name))]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module, monkeypatch):
    monkeypatch.setattr(OPERATIONS, "rows", dict(OPERATIONS.rows))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        failed, tried = doctest.testmod(
            module, extraglobs={"torch": torch, "nn": nn, "growth": growth}, optionflags=doctest.NORMALIZE_WHITESPACE
        )
    assert tried and not failed


@pytest.mark.parametrize("name", OFFERED)
def test_what_growth_offers_is_explained(name):
    function = getattr(growth, name)
    text = inspect.getdoc(function) or ""
    arguments = inspect.signature(function).parameters
    told = text.partition("Args:")[2].partition("Raises:")[0]
    assert "Raises:" in text and ">>> " in text and ("Returns:" in text) == (name not in ("carry", "register"))
    assert [argument for argument in arguments if f"{argument}:" not in told and f"{argument}," not in told] == []
