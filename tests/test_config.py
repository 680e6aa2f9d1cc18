"""Every choice of ``conf`` composes to what the schema takes; what makes a run's folder; whose settings win."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from n2n_cli import app, config, lineage, ops, records, schema
from n2n_cli.arms import ARMS
from n2n_cli.commands import folders, grow
from n2n_cli.errors import N2NError

RUNS = ["train_teacher", "train_student", "grow", "compare"]
GROUPS = {
    group: sorted(path.stem for path in (config.conf_dir() / group).glob("*.yaml"))
    for group in ("model", "data", "optim", "training", "op", "study")
}


@pytest.fixture(autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        yield


def checked(command: str, *overrides: str) -> Any:
    return app.checked(command, compose(command, list(overrides)))


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("group", ["model", "data", "optim", "training"])
def test_every_choice_passes(command: str, group: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    numbers = dict.fromkeys(("train", "val"), 1)
    about = {"format": 1, "size": 256, "kind": "raw", "classes": [], "files": "", "images": numbers}
    records.write(tmp_path / "manifest.json", {**about, "shards": {}, "index": {}})
    for choice in GROUPS[group]:
        more = ["model.name=resnet18"] if choice == "torchvision" else []
        more += [f"data.root={tmp_path}"] if choice in ("imagefolder", "packed") else []
        assert isinstance(checked(command, f"{group}={choice}", *more), schema.RunConfig)


def test_ops_and_studies_pass() -> None:
    """An operator has its conf file, dataclass, row of arms, function and way back; a study its operators' settings."""
    two = {op for op, cls in ops.OPS.items() if issubclass(cls, ops.Compose)}  # each a step of its own in a lineage
    assert set(GROUPS["op"]) == set(ops.OPS) == {*lineage.REBUILD, *two} < set(ARMS)
    assert {op for op, cls in ops.OPS.items() if issubclass(cls, ops.ToWider)} == set(grow.TO_WIDER)
    for op in GROUPS["op"]:
        cfg = checked("grow", f"op={op}")
        assert type(cfg.op) is ops.OPS[op] and cfg.op.name == op
        random = "init" in op or op in ("distill", "feature_prediction")
        assert cfg.op.lr_scale == (1.0 if random else 0.1)  # a tenth of the teacher's rate (App. A)
    for study in GROUPS["study"]:
        cfg = checked("compare", f"study={study}")
        assert cfg.study.name == study and set(ops.OPS) <= set(cfg.ops)
        words = [word for arm in cfg.study.arms for word in cfg.study.strategies.get(arm, [arm])]
        assert set(words) <= {*cfg.ops, "teacher", "student"}


def test_studies_of_the_paper() -> None:
    fig4, fig5, fig6 = (checked("compare", f"study=fig{n}", "model=inception_bn") for n in (4, 5, 6))
    assert fig4.model.teacher_width == pytest.approx(0.3**0.5) and fig4.model.width == 1
    assert fig5.model.teacher_width == 1 and fig5.ops["deeper"].pairs == 2
    assert fig6.model.teacher_width == 1 and fig6.model.width == pytest.approx(2**0.5)
    assert fig6.ops["deeper"].pairs == 4


def test_imagefolder_brings_the_papers_settings_and_the_user_wins() -> None:
    for command in RUNS:
        cfg = compose(command, ["data=imagefolder", "data.root=/x"])
        assert (cfg.model.name, cfg.optim.name, cfg.training.batch_size) == ("inception_bn", "rmsprop", 256)
        assert (cfg.optim.lr, cfg.optim.eps, cfg.optim.decay, cfg.optim.momentum) == (0.1, 1.0, 0.9, 0.9)
        assert (cfg.optim.schedule.factor, cfg.optim.schedule.step_epochs) == (0.16, 30)
        assert (cfg.data.image_size, cfg.training.ema_decay) == (224, 0.9999)
        own = compose(
            command, ["model=inception_rect", "data=imagefolder", "data.root=/x", "optim=sgd", "training=default"]
        )
        assert (own.model.name, own.optim.name, own.training.batch_size) == ("inception_rect", "sgd", 32)


def test_numbers_keep_their_type() -> None:
    cfg = checked("grow", "++op.layers={a:96,b:1.5}", "optim.lr=1", "epochs=2")
    assert repr(cfg.op.layers) == "{'a': 96, 'b': 1.5}"  # a width and a factor
    assert repr(cfg.optim.lr) == "1.0" and repr(cfg.epochs) == "2.0"


def test_one_setting_for_all_commands_of_a_config() -> None:
    one = {folders.setting(checked(command, "optim.lr=0.05")) for command in RUNS}
    assert len(one) == 1
    assert folders.setting(checked("grow")) not in one


@pytest.mark.parametrize(
    "override", ["seed=1", "epochs=2", "out=elsewhere", "devices=2", "device=cpu", "workers=3", "max_steps=1"]
)
def test_not_part_of_a_setting(override: str) -> None:
    assert folders.setting(checked("train_teacher", override)).name == folders.setting(checked("train_teacher")).name


@pytest.mark.parametrize(
    "override", ["model.width=2", "data.seed=1", "optim.lr=0.2", "optim.schedule.name=step", "training.batch_size=64"]
)
def test_part_of_a_setting(override: str) -> None:
    assert folders.setting(checked("train_teacher", override)) != folders.setting(checked("train_teacher"))


def name(*overrides: str) -> str:
    cfg = checked("grow", *overrides)
    teacher = folders.plan_fresh(cfg, "teacher", epochs=cfg.teacher_epochs).folder
    return folders.plan_grown(cfg, cfg.op, cfg.seed, cfg.lr_scale, teacher).folder.name


def test_names_of_runs() -> None:
    assert folders.job_folder("train_teacher", checked("train_teacher", "seed=3")).name == "teacher-seed3"
    assert folders.job_folder("train_student", checked("train_student", "epochs=1.5")).name == "student-epochs1.5-seed0"
    assert name() == "wider-seed0"
    assert name("op.noise=0.2", "lr_scale=0.3") == "wider-noise0.2-lr0.3-seed0"
    assert name("op.lr_scale=0.3") == name("lr_scale=0.3") == "wider-lr0.3-seed0"
    assert name("op=deeper", "op.pairs=4", "epochs=0") == "deeper-pairs4-epochs0-seed0"
    assert name("teacher_epochs=3") == "wider-teacher3-seed0"
    layers = {name(f"++op.layers={{a:{width}}}") for width in (2, 3)}
    assert len(layers) == 2 and all("=" not in one and one.startswith("wider-layers-") for one in layers)


def test_another_teacher_is_another_student(tmp_path: Path) -> None:
    cfg = checked("grow")
    runs = [folders.plan_grown(cfg, cfg.op, 0, None, tmp_path / one) for one in ("a", "b")]
    assert runs[0].folder != runs[1].folder and "-from-" in runs[0].folder.name


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    import yaml

    cfg = checked("train_teacher", f"out={tmp_path}")
    planned = folders.plan_fresh(cfg, "teacher")
    folders.check_same(planned)
    planned.folder.mkdir(parents=True)
    (planned.folder / "config.yaml").write_text(yaml.safe_dump(planned.config | {"devices": 4}))
    folders.check_same(planned)
    (planned.folder / "config.yaml").write_text(yaml.safe_dump(planned.config | {"lr_scale": 0.5}))
    with pytest.raises(N2NError, match=r"holds a run with lr_scale=0\.5, not 1\.0"):
        folders.check_same(planned)


@pytest.mark.parametrize("size", ["image_size=224", "image_size=null"])  # null: the loader takes 224 px
def test_a_validation_image_is_no_smaller_than_its_crop(size: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    words = ["data=imagefolder", f"data.root={tmp_path}", f"data.{size}"]
    assert checked("train_teacher", *words, "data.resize_size=224").data.resize_size == 224
    with pytest.raises(N2NError, match=r"^data.resize_size: 223 px are fewer than data.image_size=224$"):
        checked("train_teacher", *words, "data.resize_size=223")


def test_the_config_of_a_run_comes_back(tmp_path: Path) -> None:
    cfg = checked("train_teacher", "optim=rmsprop", "seed=4")
    tree = folders.plan_fresh(cfg, "teacher").config
    assert config.read_run(tree) == cfg


def test_a_rate_in_proportion_to_the_batch() -> None:
    """The run is the one with that rate: in the same folder, and its config.yaml says both."""
    words = ["optim=adamw", "training.batch_size=64"]
    scaled, given = (
        checked("train_teacher", *words, "optim.lr_per_256=2e-3"),
        checked("train_teacher", *words, "optim.lr=5e-4"),
    )
    assert scaled.optim.lr == given.optim.lr == 5e-4
    assert folders.setting(scaled) == folders.setting(given)
    config_of_run = folders.plan_fresh(scaled, "teacher").config
    assert (config_of_run["optim"]["lr"], config_of_run["optim"]["lr_per_256"]) == (5e-4, 2e-3)
    assert config.read_run(config_of_run) == scaled


def test_runs_from_before_these_keys_are_found() -> None:
    """sgd and rmsprop have no betas: their folders keep their names. Adam's differ by them."""
    assert checked("train_teacher").optim.betas is None
    tree = folders.plan_fresh(checked("train_teacher"), "teacher").config
    for group, key in (("optim", "betas"), ("optim", "lr_per_256"), ("training", "profile")):
        del tree[group][key]
    assert config.read_run(tree) == checked("train_teacher")
    assert folders.setting(checked("train_teacher")).name == "inception_bn_tiny-shapes-2e1c6abc"
    one, other = (checked("train_teacher", "optim=adam", f"optim.betas=[0.9,{b}]") for b in (0.99, 0.999))
    assert folders.setting(one) != folders.setting(other)
    assert folders.setting(checked("train_teacher", "training.profile=5")).name == "inception_bn_tiny-shapes-2e1c6abc"


def test_schema_and_loaders_agree() -> None:
    """The schema imports no torch; what it repeats must be what the floors below take."""
    from typing import get_args, get_type_hints

    from n2n_cli import data
    from n2n_cli.models.names import PAIRS_AT, STEMS
    from n2n_cli.training.optim import OPTIMIZERS, SCHEDULES
    from n2n_cli.training.precision import PRECISIONS

    def choices(cls: type, field: str) -> set[str]:
        return set(get_args(get_type_hints(cls)[field]))

    assert choices(schema.Data, "name") == set(data.NAMES)
    assert choices(schema.Data, "augment") == set(data.AUGMENTS)
    assert choices(schema.Optim, "name") == set(OPTIMIZERS)
    assert choices(schema.Schedule, "name") == set(SCHEDULES)
    assert choices(schema.Training, "precision") == set(PRECISIONS)
    assert choices(schema.Model, "pairs_at") == set(PAIRS_AT)
    assert choices(schema.Model, "stem") == {"auto", *STEMS}


def test_a_teacher_that_is_asked_at_every_step_is_no_file_of_weights(tmp_path: Path) -> None:
    (file := tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(N2NError, match="weights: not with op=distill, whose teacher is asked at every step"):
        checked("grow", "op=distill", f"weights={file}")
    with pytest.raises(N2NError, match=r"weights: not with ops\.feature_prediction=feature_prediction"):
        checked("compare", "study=neighbours", "study.arms=[feature_prediction]", f"weights={file}")


def test_a_teacher_of_all_seeds_makes_one_arm(tmp_path: Path) -> None:
    cfg = checked("compare", "study=fig4", f"out={tmp_path}")
    (teacher := folders.plan_fresh(cfg, "teacher", epochs=cfg.teacher_epochs).folder).mkdir(parents=True)
    for seeds in (1, 3):
        cfg = checked("compare", "study=fig4", f"out={tmp_path}", f"teacher={teacher}", f"seeds={seeds}")
        runs = [folders.plan_grown(cfg, cfg.ops["wider"], seed, None, teacher) for seed in range(seeds)]
        arms = {run.folder.name.rpartition("-seed")[0] for run in runs}
        assert len(arms) == 1 and (arms == {"wider"}) == (seeds == 1)


def test_a_student_of_what_its_teacher_was_before_is_not_taken(tmp_path: Path) -> None:
    kept = tmp_path / "t/checkpoints"
    kept.mkdir(parents=True)
    cfg = checked("grow", f"out={tmp_path}", f"teacher={tmp_path}/t")
    planned = folders.plan_grown(cfg, cfg.op, 0, None, tmp_path / "t")
    (kept / f"step_00000010-{'a' * 16}.pt").touch()
    planned.folder.mkdir(parents=True)
    (planned.folder / "config.yaml").write_text("seed: 0")
    assert folders.teacher_file(tmp_path / "t") == "step_00000010"
    records.write(planned.folder / "run.json", {"teacher_file": "step_00000010"})
    folders.check_same(planned)
    (kept / f"step_00000010-{'a' * 16}.pt").rename(kept / f"step_00000010-{'c' * 16}.pt")  # trained again, to the same
    folders.check_same(planned)
    (kept / f"step_00000020-{'b' * 16}.pt").touch()
    with pytest.raises(N2NError, match=r"was grown from another state of .*: remove it, or change out="):
        folders.check_same(planned)
    shutil.rmtree(kept)  # to save room
    folders.check_same(planned)
    (file := tmp_path / "t.pt").write_bytes(b"1")
    was = folders.teacher_file(file)
    file.write_bytes(b"2")
    assert was != folders.teacher_file(file)
