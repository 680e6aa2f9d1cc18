"""Imports run one way: read from the syntax trees, type hints and imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import n2n_cli
import n2n_cli.growth

PACKAGE = Path(n2n_cli.__file__).parent

FLOORS = (
    "__main__",
    "cli",
    "completion",
    "app",
    "commands explain",
    "studies",
    "config overrides",
    "schema words",
    "ops",
    "ranges",
    "convert",
    "training",
    "lineage",
    "growth models data",
    "records processes",
    "errors arms",
)
"""The rooms of n2n_cli, top to bottom. A file imports from its own room and from floors below; the rooms of one floor
know nothing of each other."""

FILES = {file.stem for file in Path(n2n_cli.growth.__file__).parent.glob("*.py")} - {"__init__", "report", "errors"}
GROWTH = (" ".join(FILES), "report depth", "proof", "build", "sizes", "groups", "trace", "errors")
"""The rooms of n2n_cli/growth. Those of the first floor, the operators, may build on each other."""

HYDRA = {"completion", "app", "commands"}
"""The rooms that may import Hydra or OmegaConf."""


def imports(file: Path, package: Path) -> Iterator[str]:
    """What a file imports, as dotted names: modules of ``package`` where the name is one, else the top package's."""
    place = [package.name, *file.relative_to(package).with_suffix("").parts]
    place = place[:-1] if place[-1] == "__init__" else place
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = place[: len(place) - node.level + (file.name == "__init__.py")] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield _module(name, package) if name.split(".")[0] == package.name else name.split(".")[0]


def _module(name: str, package: Path) -> str:
    """The module that ``name`` is, or the one that it is taken from."""
    parts = name.split(".")
    path = package.parent.joinpath(*parts)
    return name if path.is_dir() or path.with_suffix(".py").is_file() else ".".join(parts[:-1])


def graph(package: Path) -> dict[str, set[str]]:
    """Every module of ``package`` -> what it imports."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = set(imports(file, package))
    return found


def circle(modules: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if none do."""
    try:
        TopologicalSorter({name: below & modules.keys() - {name} for name, below in modules.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(modules: dict[str, set[str]], house: str, floors: tuple[str, ...], shared: int | None = None) -> list[str]:
    """Imports between the rooms of the package ``house`` that do not point down, as ``a -> b``.

    ``shared``: a floor whose rooms may import each other. Rooms that no floor names are free.
    """
    levels = {f"{house}.{room}": number for number, floor in enumerate(floors) for room in floor.split()}
    found = []
    for name, below in modules.items():
        room = _room(name, house)
        for other in sorted(below):
            mine, theirs = levels.get(room), levels.get(_room(other, house))
            if mine is None or theirs is None or mine < theirs:
                continue
            if _room(other, house) != room and not (mine == theirs == shared):
                found.append(f"{name} -> {other}")
    return found


def _room(module: str, house: str) -> str:
    return ".".join(module.split(".")[: house.count(".") + 2])


MODULES = graph(PACKAGE)


def test_every_file_lies_in_a_room() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(" ".join(FLOORS).split())


def test_imports_run_one_way() -> None:
    assert upward(MODULES, "n2n_cli", FLOORS) == []
    assert circle(MODULES) == []


def test_imports_in_growth_run_one_way() -> None:
    rooms = {name.split(".")[2] for name in MODULES if name.startswith("n2n_cli.growth.")}
    assert rooms <= set(" ".join(GROWTH).split())
    assert upward(MODULES, "n2n_cli.growth", GROWTH, shared=0) == []


def test_only_commands_and_what_stands_above_them_know_hydra() -> None:
    know = {name.split(".")[1] for name, below in MODULES.items() if below & {"hydra", "omegaconf"}}
    assert know <= HYDRA


def test_only_a_function_of_the_users_is_imported_by_name() -> None:
    """An import that the syntax tree does not show."""
    files = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if _by_name(file)}
    assert files == {"models/custom.py"}


def _by_name(file: Path) -> bool:
    nodes = ast.walk(ast.parse(file.read_text()))
    return any({"import_module", "__import__"} & {getattr(node, "attr", ""), getattr(node, "id", "")} for node in nodes)


def test_the_readme_names_these_floors() -> None:
    told = " → ".join(", ".join(f"`{room}`" for room in floor.split()) for floor in FLOORS[1:])
    assert told in " ".join((PACKAGE.parent / "README.md").read_text().split())


# --- the control: planted in a small house ------------------------------------------------------------------

HOUSE = {
    "__init__.py": "",
    "cli.py": "def main():\n    from n2n_cli.commands import train",
    "commands/__init__.py": "from n2n_cli.commands import folders",
    "commands/train.py": "from n2n_cli.growth import widen\nfrom . import folders",
    "commands/folders.py": "from n2n_cli import errors",
    "growth/__init__.py": "from n2n_cli.growth.wider import widen",
    "growth/wider.py": "from n2n_cli.growth.trace.record import record",
    "growth/deeper.py": "from n2n_cli.growth.wider import widen",
    "growth/groups/__init__.py": "from ..trace import record",
    "growth/trace/__init__.py": "",
    "growth/trace/record.py": "import n2n_cli.errors",
    "models/__init__.py": "",
    "errors.py": "",
}


@pytest.mark.parametrize(
    ("file", "planted", "found"),
    [
        ("errors.py", "", ""),
        ("commands/folders.py", "if TYPE_CHECKING:\n    from n2n_cli.commands.train import run", "circle"),
        ("commands/folders.py", "def run():\n    from .train import run", "circle"),
        ("growth/wider.py", "from n2n_cli.growth import deeper", "circle"),
        ("growth/wider.py", "if TYPE_CHECKING:\n    from n2n_cli.cli import main", "growth.wider -> cli"),
        ("growth/trace/record.py", "import n2n_cli.commands.train", "growth.trace.record -> commands.train"),
        ("growth/wider.py", "from n2n_cli.models import build", "growth.wider -> models"),
        ("growth/groups/__init__.py", "from ...commands import folders", "growth.groups -> commands.folders"),
        ("errors.py", "def help():\n    from n2n_cli import models", "errors -> models"),
        ("growth/trace/record.py", "from ..groups import infer", "growth.trace.record -> growth.groups"),
        ("growth/groups/__init__.py", "from n2n_cli.growth import deeper", "growth.groups -> growth.deeper"),
    ],
)
def test_what_is_planted_is_found(file: str, planted: str, found: str, tmp_path: Path) -> None:
    for name, text in {**HOUSE, file: f"{HOUSE[file]}\n{planted}\n"}.items():
        path = tmp_path / "n2n_cli" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = graph(tmp_path / "n2n_cli")
    wrong = upward(modules, "n2n_cli", FLOORS) + upward(modules, "n2n_cli.growth", GROWTH, shared=0)
    if found == "circle":
        assert circle(modules) and not wrong
    else:
        assert [line.replace("n2n_cli.", "") for line in wrong] == ([found] if found else [])
        assert found or not circle(modules)
