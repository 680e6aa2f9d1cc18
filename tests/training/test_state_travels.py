"""``op.optimizer`` on the command line: what a student's start checkpoint holds, and that training goes on from it.

Found in four steps, fp32, growth 1.5 (largest relative difference of a loss): equivariant 7e-9 (SGD), 4e-9 (RMSProp)
and 8e-9 (AdamW), carry 1e-2, 7e-3 and 1e-3.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import differences
from torch import nn

from n2n_cli import cli, growth, lineage
from n2n_cli.training import checkpoint
from n2n_cli.training.ema import EMA

FEW = [
    "data.train_images=128",
    "data.val_images=64",
    "data.image_size=16",
    "model.dropout=0",
    "training.default_epochs={teacher:1,student:1}",
    "training.evals_first_epoch=2",
    "training.log_every=1",
    "device=cpu",
]
OPTIMS = ["sgd", "adamw", pytest.param("rmsprop", marks=pytest.mark.slow)]
EXACT = ["op.optimizer=equivariant", "--factor", "1.5", "lr_scale=1"]


def n2n(*words: str) -> None:
    assert cli.main([*words, *FEW]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder with a teacher of four steps."""
    folder = tmp_path_factory.mktemp("travel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        n2n("train", "teacher", "optim=sgd", "out=sgd")
        yield folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def run(place: Path, pattern: str) -> Path:
    (folder,) = (path.parent for path in place.glob(f"{pattern}/run.json"))
    return folder


def teacher(place: Path, optim: str = "sgd") -> Path:
    if not (place / optim).exists():
        n2n("train", "teacher", f"optim={optim}", f"out={optim}")
    return run(place, f"{optim}/*/teacher-seed0")


def network(state: dict[str, Any], part: str) -> nn.Module:
    model = lineage.build(state["lineage"])
    model.load_state_dict(state[part])
    return model.double()


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for key in ("train/loss", "val/loss") for row in rows if key in row]


def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("optim", OPTIMS)
def test_a_student_goes_on_as_its_teacher_would(place: Path, optim: str) -> None:
    """Grown by 1 and carried, it is the teacher that goes on; grown by 1.5 and exact, it takes the same way."""
    teacher(place, optim)
    words = ["grow", "--op", "wider", f"optim={optim}", f"out={optim}", "lr_scale=1", "op.noise=0"]
    n2n(*words, "--factor", "1", "op.optimizer=carry")
    whole = losses(run(place, f"{optim}/*/wider-factor1-noise0-carry-lr1-seed0"))
    for how, near in (("equivariant", True), ("carry", False)):
        n2n(*words, "--factor", "1.5", f"op.optimizer={how}")
        mine = losses(run(place, f"{optim}/*/wider-factor1.5-noise0-{how}-lr1-seed0"))
        apart = max(abs(a - b) / b for a, b in zip(mine, whole, strict=True))
        assert apart < 1e-5 if near else apart > 1e-4, (how, apart)


@pytest.mark.parametrize("optim", OPTIMS)
def test_stopped_and_resumed_is_bit_identical(place: Path, optim: str) -> None:
    words = ["grow", "--op", "wider", f"optim={optim}", *EXACT, "--teacher", str(teacher(place, optim))]
    n2n(*words, f"out=whole-{optim}")
    for stop in ("max_steps=2", "max_steps=null"):
        n2n(*words, f"out=stopped-{optim}", stop)
    ends = [checkpoint.load(checkpoint.resolve(run(place, f"{out}-{optim}/*/wider*"))) for out in ("whole", "stopped")]
    assert ends[0]["step"] == 4 and ends[0]["rates"] and ends[0]["ema_age"] == 4
    for end in ends:
        del end["time_s"], end["config"]
    assert differences(*ends) == []
    lost = copy.deepcopy(ends[0])  # negative control: the comparison sees one rate
    lost["rates"][next(iter(lost["rates"]))][0].add_(1)
    assert len(differences(lost, ends[0])) == 1


@pytest.mark.parametrize(
    "op",
    [
        "wider --factor 1.5 --noise 0",
        "deeper --sites [stem.conv2*]",
        pytest.param("deeper --pairs 2", marks=pytest.mark.slow),
    ],
)
def test_weights_and_their_average_grow(place: Path, op: str) -> None:
    out = f"out={''.join(filter(str.isalnum, op))}"
    n2n("grow", "--op", *op.split(), "--epochs", "0", "op.optimizer=carry", "--teacher", str(teacher(place)), out)
    theirs, ours = (checkpoint.load(checkpoint.resolve(f)) for f in (teacher(place), run(place, f"{out[4:]}/*/*")))
    for part in ("model", "ema"):
        assert growth.function_gap(network(theirs, part), network(ours, part), images(), training=False) < 1e-5
    # negative control: weights and average are two functions
    assert growth.function_gap(network(theirs, "ema"), network(ours, "model"), images(), training=False) > 1e-3
    assert ours["ema_age"] == theirs["step"] == 4
    have, all_of_it = (len(state["optimizer"]["state"]) for state in (theirs, ours))
    assert have == all_of_it > 40
    (_, rate), *_ = [(group["params"], group["lr"]) for group in ours["optimizer"]["param_groups"]]
    assert rate == pytest.approx(0.01)  # the student's


def test_fresh_is_the_default_and_starts_from_the_average(place: Path) -> None:
    n2n("grow", "--op", "wider", "--factor", "1.5", "--epochs", "0", "op.noise=0", "out=fresh", "--teacher",
        str(teacher(place)))  # fmt: skip
    theirs, first = (
        checkpoint.load(f) for f in (checkpoint.resolve(teacher(place)), *place.glob("fresh/*/*/*/step_*"))
    )
    assert not first.keys() & {"optimizer", "rates", "ema", "ema_age"}
    assert growth.function_gap(network(theirs, "ema"), network(first, "model"), images(), training=False) < 1e-5


def test_a_student_without_average_and_a_teacher_without(place: Path) -> None:
    words = ["grow", "--op", "wider", "--factor", "1.5", "op.optimizer=equivariant"]
    n2n(*words, "training.ema_decay=null", "max_steps=1", "out=off", "--teacher", str(teacher(place)))
    assert checkpoint.load(checkpoint.resolve(run(place, "off/*/wider*")))["ema"] is None
    theirs = checkpoint.load(checkpoint.resolve(teacher(place)))
    checkpoint.save(place / "none", theirs | {"ema": None}, step=4)
    n2n(*words, "max_steps=1", "out=on", "--teacher", str(checkpoint.resolve(place / "none")))
    ours = checkpoint.load(checkpoint.resolve(run(place, "on/*/wider*")))
    # one update of a young average, d = 2/11: most of it is the student's weights of step 1
    assert ours["ema_age"] == 0
    name = "fc.weight"
    assert (ours["ema"][name] - ours["model"][name]).norm() < 0.2 * (ours["model"][name]).norm()


def test_the_average_goes_on_at_its_age() -> None:
    model = nn.Linear(1, 1)
    young, old = EMA(model, 0.99), EMA(model, 0.99)
    old.age = 90
    with torch.no_grad():
        for average in (young, old):
            average.module.weight.zero_()
        model.weight.fill_(1)
    young.update(91)
    old.update(1)
    assert torch.equal(young.module.weight, old.module.weight)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--teacher TEACHER optim=rmsprop", "the teacher's optimizer is sgd, the student's rmsprop; take optim=sgd"),
        ("--teacher BEST", "holds no optimizer state (start and best checkpoints have none); give teacher=RUN_FOLDER"),
        ("--teacher FOREIGN", "the optimizer's state does not fit: "),
    ],
)
def test_what_cannot_travel(words: str, line: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (best,) = teacher(place).glob("checkpoints/best-*.pt")
    if not (place / "foreign").exists():
        state = checkpoint.load(checkpoint.resolve(teacher(place)))
        state["optimizer"]["param_groups"].pop()
        checkpoint.save(place / "foreign", state, step=4)
    for name, path in (("TEACHER", teacher(place)), ("BEST", best), ("FOREIGN", place / "foreign")):
        words = words.replace(name, str(path))
    before = sorted(place.rglob("*"))
    assert cli.main(["grow", "op.optimizer=carry", "--factor", "1.5", "out=new", *words.split(), *FEW]) == 2
    err = capfd.readouterr().err
    assert err.startswith("n2n: error: ") and err.count("\n") == 1 and line in err
    assert sorted(place.rglob("*")) == before
