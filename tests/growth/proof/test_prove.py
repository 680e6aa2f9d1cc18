"""The proof in fp64: what it lets pass, and what it refuses."""

import pytest
from nets import images, perturb, resnet18

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.build.weights import grown_weights


def test_a_failed_proof_refuses_and_names_the_place(monkeypatch):
    def forgetful(*args, **kwargs):
        state = grown_weights(*args, **kwargs)
        state["layer2.0.conv2.weight"] *= 1.1
        return state

    monkeypatch.setattr("n2n_cli.growth.build.students.grown_weights", forgetful)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode"):
        growth.widen(perturb(resnet18()), images(64, 2), 1.5)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode .* first at conv2d at layer2.0.conv2"):
        growth.widen(perturb(resnet18()).double(), images(64, 2).double(), 1.5)
