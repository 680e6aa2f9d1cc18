"""``n2n COMMAND --help`` says what every key means."""

import re
from typing import Any

import pytest

from n2n_cli import cli, schema
from n2n_cli.config import conf_dir
from n2n_cli.explain import annotated, notes

LINES = {command: command.replace("_", " ").replace("compare runs", "compare .") for command in schema.SCHEMAS}


@pytest.mark.parametrize("command", schema.SCHEMAS)
def test_every_key_is_explained(command: str, capfd: Any) -> None:
    assert cli.main([*LINES[command].split(), "--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = lines[lines.index("Config (KEY=VALUE)") + 1 :]
    keys = [line for line in shown[: shown.index("")] if re.match(r"\s*\w+:", line)]
    sections = {"model", "data", "optim", "schedule", "training", "op", "ops", "study", "launch", "hydra"}
    arms = {path.stem for path in (conf_dir() / "op").glob("*.yaml")}
    bare = [line for line in keys if "#" not in line and line.strip(" :") not in sections | arms]
    assert keys and not bare


def test_the_choice_that_stands_there_explains_its_own_keys() -> None:
    text = "Config (KEY=VALUE)\noptim:\n  name: rmsprop\n  eps: 1.0\n\nfooter: 1\n"
    lines = annotated(text, "grow").splitlines()
    assert lines[3].endswith("# inside the square root") and lines[5] == "footer: 1"
    other = annotated(text.replace("rmsprop", "sgd"), "grow").splitlines()
    assert other[3].endswith("# rmsprop only")


def test_a_comment_of_several_lines_is_one() -> None:
    assert notes(conf_dir() / "op" / "wider.yaml", "op")["op.noise"].endswith("null: 0.3 where nothing else parts them")
