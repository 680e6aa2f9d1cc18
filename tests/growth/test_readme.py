"""The page for people who carry on: what it prints is what its code prints."""

import doctest
from pathlib import Path

import torch

from n2n_cli import growth
from n2n_cli.growth.groups.operations import OPERATIONS


def test_the_page_runs(monkeypatch):
    monkeypatch.setattr(OPERATIONS, "rows", dict(OPERATIONS.rows))
    page = Path(growth.__file__).with_name("README.md")
    with torch.random.fork_rng():
        failed, tried = doctest.testfile(
            str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE, encoding="utf-8"
        )
    assert tried > 50 and not failed
