"""The examples in the docstrings run."""

import doctest

import pytest
import torch

from n2n_cli.growth import deeper, wider


@pytest.mark.parametrize("module", [wider, deeper])
def test_examples(module):
    torch.manual_seed(0)
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert tried and not failed
