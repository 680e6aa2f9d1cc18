"""The student's weights: U[o, c] = W[g_out(o), g_in(c)] / r_in(c), and the noise on copies."""

import copy

import torch
from nets import Masked, inferred, same_state, state_of
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth.build.maps import all_maps
from n2n_cli.growth.build.starts import RandomEntries
from n2n_cli.growth.build.weights import grow_tensor, grown_weights, weights_in_double
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.sizes.draw import draw


class MaskedProduct(Masked):
    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


def test_noise_is_for_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(MaskedProduct(3, 8, 3), nn.ReLU(), MaskedProduct(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    student = growth.widen(model, torch.randn(2, 3, 8, 8), 1.5, noise=0.1).student
    assert set(student[0].mask.unique().tolist()) == {0.0, 1.0} and student[0].weight.shape[0] == 12


def grown(net, x, factor, seed=0):
    """The maps of a network's wider student, and all that made them."""
    structure = inferred(net, x)
    sizes = {group: int(group.n * factor) for group in structure.groups() if not group.fixed}
    remappings = draw(structure, sizes, seed)
    return structure, remappings, all_maps(structure, remappings)


def two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


X = torch.randn(6, 3).double()


def test_every_entry_is_the_papers_formula():
    """U[o, c] = W[g_out(o), g_in(c)] / r_in(c), entry by entry; a bias has no incoming axis and is copied."""
    net = two()
    structure, remappings, maps = grown(net, X, 2.5)
    state = grown_weights(net, structure, remappings, maps)
    out, into = maps["2.weight"]
    assert state["2.weight"].shape == (12, 10) and into.copies.max() > 1
    for o in range(12):
        for c in range(10):
            wanted = net[2].weight[out.index[o], into.index[c]].item() / into.copies[c].item()
            assert abs(state["2.weight"][o, c].item() - wanted) <= 1e-15
        assert state["2.bias"][o] == net[2].bias[out.index[o]]


def test_weights_of_copies_sum_to_the_teachers():
    net = two()
    structure, remappings, maps = grown(net, X, 2.5)
    state = grown_weights(net, structure, remappings, maps)
    out, into = maps["2.weight"]
    summed = torch.zeros(12, 4).double().index_add_(1, into.index, state["2.weight"])
    torch.testing.assert_close(summed, net[2].weight[out.index], rtol=1e-14, atol=1e-15)


def test_nothing_is_shared_with_the_teacher_and_nothing_of_it_changes():
    net = two()
    before = state_of(net)
    state = grown_weights(net, *grown(net, X, 1.0))
    assert same_state(state_of(net), before) and same_state(state, before)
    assert not {t.data_ptr() for t in state.values()} & {t.data_ptr() for t in net.state_dict().values()}


def test_the_first_axis_can_be_multiplied_by_numbers_of_its_own():
    net = two()
    structure, _, maps = grown(net, X, 2.0)
    numbers = torch.arange(1.0, 11.0).double()
    plain = grow_tensor("2.weight", net[2].weight.detach(), structure, maps["2.weight"])
    special = grow_tensor("2.weight", net[2].weight.detach(), structure, maps["2.weight"], {"2.weight": numbers})
    torch.testing.assert_close(special, plain * numbers[:, None], rtol=1e-15, atol=0)


def test_a_unit_that_holds_a_multiple_is_read_by_its_share():
    """The product over a group stays what it is where holds times share sum to 1 for each of the teacher's units."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)).double()
    structure = inferred(net, X)
    (group,) = [group for group in structure.groups() if not group.fixed]
    holds, share = torch.tensor([[1.0, 1.0, 3.0], [0.4, 1.0, 0.2]], dtype=torch.float64)
    remappings = {group: Remapping(torch.tensor([0, 1, 0]), torch.tensor([2, 1, 2]), holds, share)}
    state = grown_weights(net, structure, remappings, all_maps(structure, remappings))
    assert torch.equal(state["0.weight"][2], 3 * net[0].weight[0])
    ours = (X @ state["0.weight"].t() + state["0.bias"]) @ state["1.weight"].t() + state["1.bias"]
    torch.testing.assert_close(ours, net(X), rtol=1e-13, atol=1e-14)


def test_a_mean_stands_where_a_unit_is_no_copy():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)).double()
    structure = inferred(net, X)
    (group,) = [group for group in structure.groups() if not group.fixed]
    share = torch.tensor([1.0, 1.0, 0.0]).double()
    remappings = {group: Remapping(torch.tensor([0, 1, 0]), torch.ones(3).long(), None, share, mean=True)}
    state = grown_weights(net, structure, remappings, all_maps(structure, remappings))
    torch.testing.assert_close(state["0.weight"][2], net[0].weight.mean(0), rtol=1e-15, atol=1e-15)
    assert torch.equal(state["1.weight"][:, 2], torch.zeros(4).double())


def test_weights_in_double_are_those_of_a_network_in_double():
    net = two().float()
    structure, remappings, maps = grown(net, X.float(), 2.0)
    wanted = grown_weights(copy.deepcopy(net).double(), structure, remappings, maps)
    made = weights_in_double(net, structure, remappings, maps, RandomEntries(maps, structure.consumed))
    assert made.keys() == wanted.keys() and same_state({name: make() for name, make in made.items()}, wanted)
    assert made["0.weight"]() is not made["0.weight"]() and {p.dtype for p in net.parameters()} == {torch.float32}


def test_noise_has_its_size_and_sparesfirst_copies_and_what_is_only_read():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 2))
    structure, remappings, maps = grown(net, torch.randn(2, 50), 2.0)
    plain, noisy, again, other = (
        grown_weights(net, structure, remappings, maps, noise=noise, seed=seed)
        for noise, seed in ((0.0, 0), (0.2, 0), (0.2, 0), (0.2, 1))
    )
    assert same_state(noisy, again) and not same_state(noisy, other)
    for name in ("0.weight", "2.weight"):
        first, difference = maps[name][0].first, noisy[name] - plain[name]
        assert not difference[first].any()
        assert 0.19 < difference[~first].std() / plain[name].std(correction=0) < 0.21
    assert all(torch.equal(noisy[name], plain[name]) for name in ("0.bias", "2.bias", "4.weight", "4.bias"))
