"""``n2n inspect``: its tables, its JSON, its picture and its mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from n2n_cli import cli, growth, models
from n2n_cli.commands import picture, tables
from n2n_cli.growth.survey import survey
from n2n_cli.models import describe


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["inspect", *words]) == 0
    return capfd.readouterr().out


def plain(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capfd, *words, "--json"))
    return found


def test_everything_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, "resnet18", "num_classes=10").splitlines()
    assert lines[0] == "resnet18"
    assert lines[1] == "11,181,642 parameters, 1,813,566,464 MACs an image of 224 x 224"
    assert lines[2] == "lineage: built resnet18(10 classes, width=1)"
    heads = [line for line in lines if re.match(r"layer  |group  |\d+ groups|identity layers", line)]
    assert [head.split()[0] for head in heads] == ["layer", "13", "group", "identity"]
    groups = lines[lines.index(heads[2]) + 1 :]
    first = "1 64 conv1, layer1.0.conv2, layer1.1.conv2 layer1.0.conv1, layer1.1.conv1 +2 any factor"
    assert " ".join(groups[0].split()) == first
    assert groups[12].split() == ["13", "10", "fc", "-", "fixed", "(a)"]
    assert groups[13] == "  (a) the network's output"
    assert "identity layers fit behind 9 of 21 layers (--op deeper)" in lines
    assert max(map(len, lines)) <= 120 and not list(Path().iterdir())


def test_long_tables_are_cut_and_say_so(capfd: pytest.CaptureFixture[str]) -> None:
    out = told(capfd, "inception_bn_tiny", "--rows", "5", "--show", "layers")
    assert "... 26 more (--rows null shows all, --json too)" in out
    assert "inception.3b" not in out and "group" not in out
    assert "\nfc " in told(capfd, "inception_bn_tiny", "--rows", "null", "--show", "layers")


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    found = plain(capfd, "inception_bn_tiny")
    assert found.keys() == {
        *("target", "image_size", "parameters", "macs", "layers", "lineage", "groups", "sites", "plan")
    }
    assert found["plan"] is None and found["image_size"] == 32
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    group = found["groups"][2]
    assert group.keys() == {
        *("number", "units", "grown", "positions", "produced_by", "read_by", "axes", "tied", "moved", "fixed"),
        *("together", "growing", "start", "copied"),
    }
    assert (group["number"], group["units"], group["grown"], group["positions"]) == (3, 16, 16, 1)
    assert group["produced_by"] == ["stem.conv3.conv"] and group["growing"] == "any factor"
    assert len(group["read_by"]) == 4 and ["stem.conv3.conv.weight", 0] in group["axes"]
    last = found["groups"][-1]
    assert last["fixed"] == {"kind": "output", "operation": "", "module": "", "text": "the network's output"}
    assert found["sites"][0].keys() >= {"layer", "module", "activation", "refusal"}


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        (["--factor", "1.5"], 1.5),
        (['op.layers={"stem.*": 2.0, "inception.3b.branches.3x3.conv1.conv": 48}'], None),
    ],
)
def test_a_dry_run_tells_what_growing_does(
    words: list[str], plan: float | None, capfd: pytest.CaptureFixture[str]
) -> None:
    found = plain(capfd, "inception_bn_tiny", "--op", "wider", *words)["plan"]
    net = models.build("inception_bn_tiny", stem="small")
    layers = {"stem.*": 2.0, "inception.3b.branches.3x3.conv1.conv": 48}
    student = growth.widen(net, torch.randn(2, 3, 32, 32), plan or layers).student
    assert found["parameters"] == {
        "before": describe.count_parameters(net),
        "after": describe.count_parameters(student),
    }
    assert found["macs"] == {"before": describe.macs(net, 32), "after": describe.macs(student, 32)}
    assert found["dry_run"] is True and found["op"]["name"] == "wider" and found["behind"] is None
    assert not list(Path().iterdir())


def test_dry_runs_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    out = told(capfd, "resnet18", "--op", "wider", "--factor", "1.5")
    assert "64 -> 96" in out and "dry run of wider by 1.5: nothing is written, no proof is run" in out
    assert re.search(r"parameters +11,689,512 -> +25,901,896  \(2\.22 times\)", out)
    out = told(capfd, "resnet18", "--op", "deeper", "--sites", "layer1.*")
    assert "dry run of deeper behind layer1.*" in out and "new layers behind 2: layer1.0.bn1, layer1.1.bn1" in out


def test_dry_runs_show_which_groups_take_which_way(capfd: pytest.CaptureFixture[str]) -> None:
    out = told(capfd, "resnet18", "--op", "wider", "--factor", "1.5", "op.new=fresh")
    assert len(re.findall(r"any factor, fresh$", out, re.M)) == 12 and "copies" not in out
    words = ("vit_b_32", "--op", "wider", "--factor", "2", "op.new=paired")
    rows = plain(capfd, *words)["groups"]
    assert {row["start"] for row in rows} == {"paired", "unequal copies", None}
    assert all((row["copied"] is None) == (row["start"] != "unequal copies") for row in rows)
    assert "copies: groups 1: a mean over its units" in told(capfd, *words)


def test_deeper_of_our_families_is_their_constructors(capfd: pytest.CaptureFixture[str]) -> None:
    found = plain(capfd, "inception_rect_tiny", "--op", "deeper")["plan"]
    deeper = models.build("inception_rect_tiny", stem="small", extra_pairs=2)
    assert found["parameters"]["after"] == describe.count_parameters(deeper)
    assert found["macs"]["after"] == describe.macs(deeper, 32) and found["behind"]


def test_wider_without_an_amount_is_the_standard_network(capfd: pytest.CaptureFixture[str]) -> None:
    found = plain(capfd, "inception_bn_tiny", "--width", "0.5", "--op", "random_pad")["plan"]
    assert found["parameters"]["after"] == describe.count_parameters(models.build("inception_bn_tiny", stem="small"))


def test_the_largest_network_needs_no_weights(capfd: pytest.CaptureFixture[str]) -> None:
    """645 million parameters, 2.6 GB: the constructor looks at its own numbers, but not at weights."""
    from n2n_cli.commands.inspect import _build

    net = _build({"name": "regnet_y_128gf", "num_classes": 1000, "width": 1.0})
    assert describe.count_parameters(net) == 644_812_894 and all(p.is_meta for p in net.parameters())


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_picture(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("inception_bn_tiny", "--op", "wider", "--factor", "1.5", "--picture", name)
    assert f"picture: {name}" in told(capfd, *words)
    first = Path(name).read_bytes()
    assert first.startswith(b"<?xml" if name == "a.svg" else b"\x89PNG")
    if name == "a.svg":
        told(capfd, *words)
        assert Path(name).read_bytes() == first


def test_lanes_do_not_overlap_and_neighbours_differ() -> None:
    with torch.device("meta"):
        net = models.build("inception_bn")
    found = survey(net, torch.zeros(1, 3, 224, 224))
    lanes = picture.lanes(found)
    assert lanes.keys() == {group.number for group in found.groups}
    for a in lanes.values():
        for b in lanes.values():
            both = a is not b and a.first <= b.last and b.first <= a.last
            assert not (both and a.column == b.column)
            assert not (both and abs(a.column - b.column) == 1 and a.colour == b.colour)
    assert max(lane.column for lane in lanes.values()) < 12


def test_text_stays_inside_the_picture() -> None:
    net = models.build("inception_bn_tiny", stem="small")
    figure = picture.draw(survey(net, torch.zeros(1, 3, 32, 32), 2.0), "a title of many words " * 20)
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text


def test_stages() -> None:
    assert picture.stages(["conv1", "layer1.0.conv1", "fc"]) == ["conv1", "layer1", "fc"]
    names = [f"encoder.layers.{i}.mlp" for i in range(30)]
    assert picture.stages(names)[3] == "encoder.layers.3"


def test_names_are_shortened_to_the_width() -> None:
    names = [f"layer{i}" for i in range(30)]
    assert tables._names(names, 24) == "layer0, layer1 +28"
    assert tables._names(["a" * 60], 20) == "..." + "a" * 11


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--op wder", "unknown op 'wder' (did you mean 'wider'?)"),
        ("--op wider", "op: give op.factor=1.5 or op.layers={PATTERN: FACTOR}"),
        ("--factor 2", "'op.factor' does not go with the chosen op"),
        ("--op wider --factor 0.5", "op.factor: expected a number, 1 or more, or null, got 0.5"),
        ("--op wider op.factor=2 op.layers={conv1:2}", "op.factor and op.layers: give one of them"),
        ("--op wider op.layers={layr1.*:2.0}", "no layer matches 'layr1.*' (did you mean 'layer"),
        ("--op wider op.layers={fc:2.0}", "layer 'fc' cannot be widened: the network's output"),
        ("--op wider --pairs 2", "'op.pairs' does not go with the chosen op"),
        ("--op deeper --sites conv9", "no layer matches 'conv9' (did you mean 'conv1'?)"),
        ("--op deeper --sites fc", "no identity layer fits behind 'fc': "),
        ("--show layer", "show[0]: expected layers | groups | sites, got 'layer' (did you mean 'layers'?)"),
        ("--rows 0", "rows: expected a whole number, 1 or more, or null, got 0"),
        ("--picture a.gif", "picture: expected a file name that ends in .svg or .png, or null, got 'a.gif'"),
        ("--picture no/a.svg", "picture: no such folder: no"),
    ],
)
def test_mistakes(words: str, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "resnet18", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"n2n: error: {line}") and err.count("\n") == 1 and out == ""
    assert not list(Path().iterdir())
