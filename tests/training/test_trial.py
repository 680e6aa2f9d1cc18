"""One step on a copy before a run: what a network cannot compute in is given up, and said."""

import pytest
import torch
from torch import nn

from n2n_cli.errors import N2NError
from n2n_cli.training.options import FitOptions
from n2n_cli.training.sync_bn import synchronised
from n2n_cli.training.trial import settled

CPU = torch.device("cpu")


class Viewed(nn.Module):
    """Half of all tutorials: ``view`` before a linear layer, which NHWC activations do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4 * 64, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().view(x.size(0), -1))


class OnlyFloats(nn.Module):
    """Code that minds bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        x = self.conv(x)
        if x.dtype != torch.float32:
            raise TypeError(f"no kernel for {x.dtype}")
        return x.mean((2, 3))


class Both(Viewed):
    def forward(self, x):
        x = super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("no autocast")
        return x


def options(**given):
    return FitOptions(1.0, 8, 0.1, **given)


def settle(net, **given):
    return settled(net, options(**given), image_size=8, device=CPU)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), OnlyFloats])
def test_what_works_is_left_as_it_is(make):
    assert settle(make()) == (options(), [])


def test_a_view_gives_up_channels_last():
    net = Viewed()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    found, said = settle(net)
    assert found == options(channels_last=False)
    assert len(said) == 1 and said[0].startswith("training.channels_last=auto: off: RuntimeError: view size")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.fixture
def _bf16(monkeypatch):
    monkeypatch.setattr("n2n_cli.training.precision._cpu_has_bf16", lambda: True)
    monkeypatch.setattr("n2n_cli.training.precision.BF16_FROM", 0)


@pytest.mark.usefixtures("_bf16")
def test_code_that_minds_bf16_gives_up_autocast():
    found, said = settle(OnlyFloats())
    assert found == options(precision="fp32") and said == [
        "training.precision=auto: fp32: TypeError: no kernel for torch.bfloat16"
    ]


@pytest.mark.usefixtures("_bf16")
def test_both_are_given_up_where_either_fails():
    found, said = settle(Both())
    assert found == options(precision="fp32", channels_last=False) and len(said) == 2


def test_what_was_asked_for_by_name_is_not_given_up():
    with pytest.raises(N2NError, match=r"takes a step only without training\.channels_last=True"):
        settle(Viewed(), channels_last=True)


def test_a_network_that_takes_no_step_is_refused_in_one_line():
    with pytest.raises(N2NError, match="Sequential cannot be trained on 8 x 8 images: RuntimeError") as caught:
        settle(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_compile_is_trained_without(monkeypatch):
    def refuses(net):
        raise RuntimeError("unsupported")

    monkeypatch.setattr(torch, "compile", refuses)
    found, said = settle(OnlyFloats(), compile=True)
    assert found == options() and said == ["training.compile=true: off: RuntimeError: unsupported"]


def test_one_image_at_a_time_is_tried_before_anything_is_written():
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    options = FitOptions(1.0, 8, 0.1, accumulate=4)
    assert settled(net, options, image_size=8, device=CPU)[1] == []
    with pytest.raises(N2NError, match=r"on 8 x 8 images by one image at a time \(batch_size, devices and accumulate"):
        settled(net, options, image_size=8, device=CPU, devices=2)


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: an activation within."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_batch_norm_of_its_own_kind_is_not_synchronised():
    """Only the batch norm of it would be, without a word."""
    net = Viewed()
    net.norm = NormAct(4)
    line = r"^training.sync_bn: 'norm' \(NormAct\) computes its own batch norm; take training.sync_bn=false$"
    with pytest.raises(N2NError, match=line):
        settled(net, options(), image_size=8, device=CPU, devices=2)
    with pytest.raises(N2NError, match=line), synchronised(net):
        pass
    settled(net, options(sync_bn=False), image_size=8, device=CPU, devices=2)
    settle(net)  # one device synchronises nothing
    settled(Viewed(), options(), image_size=8, device=CPU, devices=2)


def test_nothing_is_exchanged_in_eval_mode(monkeypatch):
    """Ranks evaluate different numbers of batches: one would wait for ever."""

    def asked(mine):
        raise RuntimeError("the other ranks are asked")

    monkeypatch.setattr("n2n_cli.training.sync_bn._gather", asked)
    x = torch.randn(3, 4, 2, 2)
    net = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4)).eval()
    with synchronised(net):
        for layer in net:
            torch.testing.assert_close(layer(input=x), type(layer).forward(layer, x))
        with pytest.raises(RuntimeError, match="the other ranks are asked"):
            net.train()(x)
    assert not any("forward" in vars(layer) for layer in net)
