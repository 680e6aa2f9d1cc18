"""Functions of the user's by name: what they may be, what is refused, and that a lineage alone imports nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from n2n_cli import lineage
from n2n_cli.errors import N2NError
from n2n_cli.models import custom

NETS = """
from torch import nn
from . import nets as itself

WIDTH = 3
ready = nn.Linear(3, 2)

class Net(nn.Module):
    def __init__(self, num_classes, width=8, *, bias=True):
        super().__init__()
        self.fc = nn.Linear(width, num_classes, bias)

def plain():
    return nn.Linear(1, 1)

def anything(**kwargs):
    return nn.Linear(kwargs["num_classes"], kwargs["width"])

def needs(num_classes, depth):
    return nn.Identity()

def number(num_classes):
    return 3

def raises(num_classes):
    raise KeyError("two\\nlines")

def leaves(num_classes):
    raise SystemExit(3)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a package ``mine_a`` in it; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine_a").mkdir()
    for name, text in {
        "__init__": "",
        "nets": NETS,
        "effect": "open('imported', 'w')\ndef net(num_classes): open('called', 'w')",
        "broken": "x = 1\ny = undefined",
        "wants": "import no_such_library",
        "cut": "def f(:",
    }.items():
        (tmp_path / "mine_a" / f"{name}.py").write_text(text)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine_a"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["a:b", "a.b:c", "a_1.b2:C3", "ä.b:c"])
def test_specs(name: str) -> None:
    assert custom.is_spec(name)


@pytest.mark.parametrize(
    "name", ["", "a", "a.b", "a:", ":b", "a:b:c", "a.:b", "a b:c", "1a:b", "a:b.c", "a/b:c", "a:b\n", 3]
)
def test_no_specs(name: object) -> None:
    assert not custom.is_spec(name)


def test_a_function_is_called_with_what_it_takes() -> None:
    net = custom.build("mine_a.nets:Net", 5, width=7, bias=False)
    assert type(net).__name__ == "Net" and net.fc.weight.shape == (5, 7)
    assert isinstance(custom.build("mine_a.nets:plain", 5), nn.Linear)
    assert custom.build("mine_a.nets:anything", 5, width=2).in_features == 5


@pytest.mark.parametrize(
    ("spec", "kwargs", "line"),
    [
        ("mine_b.nets:Net", {}, r"no module 'mine_b' \(did you mean 'mine_a'\?\)"),
        ("mine_a.netz:Net", {}, r"no module 'mine_a.netz' \(did you mean 'mine_a.nets'\?\)"),
        ("mine_a.nets.x:Net", {}, r"no module 'mine_a.nets.x' in mine_a.nets"),
        (
            "nothing_like_it:Net",
            {},
            r"no module 'nothing_like_it' in the current folder, PYTHONPATH or what is installed",
        ),
        ("mine_a.nets:Nett", {}, r"no function 'Nett' in mine_a.nets \(did you mean 'Net'\?\)"),
        ("mine_a.nets:WIDTH", {}, "this is a int, not a function"),
        ("mine_a.nets:ready", {}, "this is a Linear, not a function"),
        ("mine_a.broken:f", {}, r"importing mine_a.broken raised NameError: .*undefined.* \(broken.py, line 2\)"),
        ("mine_a.wants:f", {}, r"importing mine_a.wants raised ModuleNotFoundError: .*\(wants.py, line 1\)"),
        ("mine_a.cut:f", {}, r"importing mine_a.cut raised SyntaxError: .*\(cut.py, line 1\)"),
        ("os:system", {"command": "touch imported"}, "os is a module of Python's own"),
        (
            "mine_a.nets:Net",
            {"widht": 3},
            r"no argument 'widht' \(did you mean 'width'\?\); it takes num_classes, width, b",
        ),
        ("mine_a.nets:plain", {"width": 3}, "no argument 'width'; it takes none"),
        ("mine_a.nets:needs", {}, "'depth' needs a value: model.kwargs.depth=VALUE"),
        ("mine_a.nets:number", {}, "it returned int, expected a torch.nn.Module"),
        (
            "mine_a.nets:raises",
            {},
            r"called with \(num_classes=5\), it raised KeyError: 'two.*lines' \(nets.py, line 26\)",
        ),
        ("mine_a.nets:leaves", {}, r"it raised SystemExit: 3 \(nets.py, line 29\)"),
    ],
)
def test_one_line_for_what_is_wrong(spec: str, kwargs: dict[str, Any], line: str) -> None:
    with pytest.raises(N2NError, match=rf"^model {spec}: .*{line}") as error:
        custom.build(spec, 5, **kwargs)
    assert "\n" not in str(error.value)
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("name", "near"),
    [("a.b.c", "a.b:c"), ("a/b.py:c", "a.b:c"), ("./a/b:c", "a.b:c"), ("a:b:c", None), ("a b:c", None)],
)
def test_names_that_are_meant_so(name: str, near: str | None) -> None:
    with pytest.raises(N2NError, match=r"package\.module:function") as error:
        custom.check_spec(name)
    assert (f"(did you mean '{near}'?)" in str(error.value)) == (near is not None)


# --- a lineage names code ------------------------------------------------------------------------------------

EFFECT = "mine_a.effect:net"


def test_the_control_a_typed_function_is_imported_and_called() -> None:
    with pytest.raises(N2NError, match="it returned NoneType"):
        lineage.build(lineage.start(EFFECT, 5), [EFFECT])
    assert Path("imported").exists() and Path("called").exists()


@pytest.mark.parametrize("typed", [[], ["mine_a.nets:Net"], ["mine_a.effect:other"], ["mine_a.effect"]])
@pytest.mark.parametrize("last", ["build", "to"])
def test_a_lineage_alone_imports_nothing(typed: list[str], last: str) -> None:
    steps = lineage.start(EFFECT if last == "build" else "resnet18", 5, width=2)
    if last == "to":
        steps = lineage.grow(steps, {"op": "wider"}, {"name": EFFECT, "num_classes": 5, "width": 2})
    line = rf"^this checkpoint was built by {EFFECT}\(width=2\); type model={EFFECT} to allow importing it$"
    with pytest.raises(N2NError, match=line):
        lineage.build(steps, typed)
    with pytest.raises(N2NError, match=line):
        lineage.construct({"name": EFFECT, "num_classes": 5, "width": 2}, typed)
    assert not Path("imported").exists() and "mine_a" not in sys.modules


@pytest.mark.parametrize(
    "name", ["os:system", "os.system", "posix:system", "mine_a.effect:net\n", ["mine_a.effect:net"], None]
)
def test_other_names_import_nothing(name: Any) -> None:
    steps = lineage.start(name, 5, command="touch imported")
    with pytest.raises(N2NError):
        lineage.build(steps)
    with pytest.raises(N2NError):
        lineage.build(steps, ["os:system", "posix:system"])
    assert not Path("imported").exists() and "mine_a" not in sys.modules


def test_a_typed_function_is_not_needed_for_other_lineages() -> None:
    assert isinstance(lineage.build(lineage.start("inception_bn_tiny", 5, stem="small"), [EFFECT]), nn.Module)
    assert not Path("imported").exists()
