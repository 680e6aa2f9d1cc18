"""A command as a Hydra app: every job composed and checked before the first starts, every error one line.

Imported only when a command runs or shows its config (Hydra takes half a second).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from n2n_cli import config, explain
from n2n_cli.commands import check_job, folders, run_job, sweep
from n2n_cli.convert import takes
from n2n_cli.errors import N2NError, suggest
from n2n_cli.models import custom
from n2n_cli.overrides import Line, command_keys, near_key

EXTRAS = {
    ("hydra/launcher", "joblib"): "joblib",
    ("hydra/launcher", "submitit_local"): "submitit",
    ("hydra/launcher", "submitit_slurm"): "submitit",
    ("hydra/sweeper", "optuna"): "optuna",
}
"""Of Hydra's plugins, the extra of ours that brings them."""
BY_HAND = ("model", "model.name", "target", "teacher_model")
"""Keys whose value may name a function to import, as ``package.module:function``."""


def run(command: str, line: Line) -> None:
    """Runs ``command`` (a key of `schema.SCHEMAS`), in a sweep once a job. Raises N2NError."""
    logging.getLogger("torch").setLevel(logging.WARNING)  # Hydra's root logger shows INFO; torch has news of its caches
    _known.clear()  # files may have changed since the last command of this process
    flags = [flag for flag in line.flags if flag in ("--cfg", "--info", "--multirun", "--run")]
    if len(flags) > 1:
        raise N2NError(f"{' and '.join(flags)} do not go together")
    if "--resolve" in line.flags and not {"--cfg", "--help"} & set(line.flags):
        raise N2NError("--resolve goes with --cfg job or --help")
    with _environment(line), _one_line_errors(command, line), _torchvision_choices(line):
        created: list[Path] = []
        jobs: list[sweep.Job] = []
        if line.runs:
            for node in _jobs(command, line):
                cfg = _by_hand(line, checked(command, node))
                folder = check_job(command, cfg)
                created += [path for path in (folder, *folder.parents) if not path.exists()]
                jobs.append(sweep.Job(list(node.hydra.overrides.task), folder, Path(getattr(cfg, "out", None) or ".")))

        here, planned = os.getpid(), bool(jobs)
        failed: list[N2NError] = []

        def task(node: DictConfig) -> float | None:
            given = list(HydraConfig.get().overrides.task)
            try:
                cfg = _by_hand(line, checked(command, node))
                if not planned:
                    jobs.append(sweep.Job(given, check_job(command, cfg), Path(cfg.out)))
                return run_job(command, cfg)
            except (N2NError, OSError) as error:
                told = error if isinstance(error, N2NError) else _no_file(error)
                if os.getpid() != here:  # a launcher's own process
                    raise told from error
                failed.append(told)  # raised from here, Hydra would print a line of its own
                if line.multirun:
                    words = " ".join(str(told).split())
                    print(f"n2n: error: a job failed: {words}", file=sys.stderr, flush=True)
                    for job in [job for job in jobs if list(job.overrides) == given]:
                        job.failed = words
                if not planned:  # a sweeper that chooses its jobs must hear of it
                    raise told from error
                return None

        app = hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name=command)(task)
        try:
            try:
                with _help_explained(command) if "--help" in line.flags else contextlib.nullcontext():
                    app()
            except N2NError as error:  # out of a launcher's own process, or a sweeper that gives up
                failed += [error] if str(error) not in map(str, failed) else []
            if line.multirun and jobs:
                sweep.tell(command, jobs, line.overrides)
            if failed:
                every = "; ".join(dict.fromkeys(str(error) for error in failed))
                raise N2NError(f"{len(failed)} jobs failed: {every}" if failed[1:] else every)
        except BaseException:
            # Hydra makes a job's folder before the job: leave none behind that nothing was written to.
            for path in sorted(set(created), key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise


@contextlib.contextmanager
def _help_explained(command: str) -> Iterator[None]:
    """Hydra's help shows values; ours says what the keys mean."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            yield
    finally:  # Hydra ends with SystemExit
        print(explain.annotated(shown.getvalue(), command), end="", flush=True)


_known: dict[str, Any] = {}
"""Configs that `checked` has seen in this command."""


def checked(command: str, node: Any) -> Any:
    """The checked dataclass of a composed config, Hydra's own node left out. Raises N2NError.

    Every job asks three times: before the first job starts, when Hydra names its folder, and when it runs.
    """
    # data=imagefolder chooses a model, optim and training too, so evaluate must have these groups; it uses none.
    left_out = ("hydra", "model", "optim", "training") if command == "evaluate" else ("hydra",)
    shown = OmegaConf.masked_copy(node, [key for key in node if key not in left_out])
    tree: Any = OmegaConf.to_container(shown, resolve=True)
    if command in ("evaluate", "inspect", "export"):  # the group model stands for the name of a network
        tree["model"] = OmegaConf.select(node, "model.name", default=None)
        if command == "inspect" and tree["target"] == "???" and tree["model"] is not None:
            tree["target"] = tree["model"]
    key = f"{command} {tree!r}"
    if key not in _known:
        _known[key] = config.check(command, tree)
    return _known[key]


def _by_hand(line: Line, cfg: Any) -> Any:
    """``cfg``, if every ``package.module:function`` in it was typed on the command line. Raises N2NError.

    Such a function is imported and called. So its name may come from nowhere else: not from a file of a
    ``--config-dir``, the environment or a run folder.
    """
    words = [word.lstrip("+").partition("=") for word in line.overrides]
    hand = {name for key, _, value in words if key in BY_HAND for name in _choices(value)}
    for name in config.functions(cfg):
        if name not in hand:
            raise N2NError(f"model: {name} comes from a file; type model={name} to allow importing it")
    return cfg


def _folder(command: str, *, _root_: DictConfig) -> str:
    return str(folders.job_folder(command, checked(command, _root_)))


def _subfolder(command: str, *, _root_: DictConfig) -> str:
    cfg = checked(command, _root_)
    return os.path.relpath(folders.job_folder(command, cfg), cfg.out)


OmegaConf.register_new_resolver("n2n_folder", _folder, replace=True)
OmegaConf.register_new_resolver("n2n_subfolder", _subfolder, replace=True)


def config_loader(line: Line) -> ConfigLoaderImpl:
    """Hydra's loader over ``conf`` and the user's ``--config-dir``, as `hydra.main` makes it."""
    path = create_config_search_path(str(config.conf_dir()))
    if extra := line.flags.get("--config-dir"):
        path.prepend("command-line", f"file://{os.path.abspath(extra)}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(path)


def _jobs(command: str, line: Line) -> Iterator[DictConfig]:
    """The composed config of every job. Of a sweep by another than the basic sweeper: none, it chooses its own jobs."""
    loader = config_loader(line)
    name = line.flags.get("--config-name") or command
    if not line.multirun and "hydra.mode=MULTIRUN" not in line.overrides:
        yield loader.load_configuration(name, line.overrides, RunMode.RUN)
        return
    master = loader.load_configuration(name, line.overrides, RunMode.MULTIRUN)
    if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
        if command not in sweep.RUNS:
            name = command.replace("_", " ")
            raise N2NError(
                f"hydra/sweeper: every job is to give a number, and n2n {name} has none; sweep train or grow"
            )
        if "minimize" in str(master.hydra.sweeper.get("direction")):  # optuna's own default
            raise N2NError(
                "hydra.sweeper.direction: jobs give their final accuracy; write hydra.sweeper.direction=maximize"
            )
        return
    parser = OverridesParser.create(config_loader=loader)
    params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
    overrides = parser.parse_overrides([*params, *master.hydra.overrides.task])
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    if not jobs:
        raise N2NError("the sweep has no jobs: a range or choice is empty")
    for chosen in jobs:
        yield loader.load_sweep_config(master, list(chosen))


@contextlib.contextmanager
def _environment(line: Line) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and raises rather than prints with HYDRA_FULL_ERROR."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["n2n", *line.argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextlib.contextmanager
def _torchvision_choices(line: Line) -> Iterator[None]:
    """Makes ``model=resnet18`` and ``model=package.module:function`` choices of the group model, also in a sweep.

    Such a choice is ``conf/model/torchvision.yaml`` with that name in it. Only names that the user typed are added, so
    that help lists the files of ``conf/model`` alone. Raises N2NError for a name that nothing here builds.
    """
    names = [name for word in line.overrides if word.startswith("model=") for name in _choices(word[6:])]
    places = [
        config.conf_dir(),
        *([Path(str(line.flags["--config-dir"]))] if "--config-dir" in line.flags else []),
    ]
    files = {path.stem for place in places for path in (place / "model").glob("*.yaml")}
    store = ConfigStore.instance()
    added = []
    for name in names:
        if name in files or not re.fullmatch(r"[\w.:/-]+", name):
            continue
        custom.check_spec(name)
        if not custom.is_spec(name):
            from n2n_cli import models

            known = sorted({*models.names(), *files})
            if name not in known:
                raise N2NError(
                    f"unknown model '{name}'{suggest(name, known)}; choose from {', '.join(sorted(files))}, "
                    "a network of torchvision, or package.module:function"
                )
        node = OmegaConf.merge(OmegaConf.load(config.conf_dir() / "model" / "torchvision.yaml"), {"name": name})
        store.store(group="model", name=name, node=node, provider="n2n")
        added.append(f"{name}.yaml")
    try:
        yield
    finally:
        for file in set(added):
            store.repo["model"].pop(file, None)


def _choices(value: str) -> list[str]:
    """The single values of an override's value, which in a sweep is ``a,b`` or ``choice(a,b)``."""
    return [name.strip(" '\"") for name in re.sub(r"^choice\((.*)\)$", r"\1", value).split(",")]


@contextlib.contextmanager
def _one_line_errors(command: str, line: Line) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise N2NError(_explain(error, command)) from error
    except ValueError as error:
        empty = [word for word in line.overrides if word.endswith("=null")]
        if "Config group override" not in str(error) or not empty:
            raise
        raise N2NError(f"'{empty[0]}': a group needs the name of one of its choices") from error
    except yaml.YAMLError as error:
        raise N2NError(f"cannot read a config file: {' '.join(str(error).split())}") from error
    except OSError as error:  # Hydra could not make a folder
        raise _no_file(error) from error


def _no_file(error: OSError) -> N2NError:
    """One line for a file or folder that cannot be read or written. Raises ``error`` itself where it is of neither."""
    if error.strerror is None or isinstance(error, BrokenPipeError):
        raise error
    return N2NError(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)


def _explain(error: BaseException, command: str) -> str:
    """Hydra's and OmegaConf's errors in one line, with the nearest right spelling."""
    chain = [error]
    while chain[-1].__cause__ is not None or chain[-1].__context__ is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    for link in chain:
        if isinstance(link, N2NError):
            return str(link)
    keys = command_keys(command)
    text = str(error)
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            group, _, name = str(link.missing_cfg_file).rpartition("/")
            options = [str(option) for option in link.options or []]
            options = options or sorted(path.stem for path in (config.conf_dir() / group).glob("*.yaml"))
            if not group:
                return f"no config '{name}' in {config.conf_dir()} or --config-dir"
            if group.startswith("data/"):  # --data /x
                path = f"{group.removeprefix('data/')}/{name}"
                return f"unknown data '{path}'; a folder of images is data=imagefolder data.root={path}"
            if (group, name) in EXTRAS:
                return f"{group}={name} needs a plugin: pip install 'n2n-cli[{EXTRAS[group, name]}]'"
            return f"unknown {group} '{name}'{suggest(name, options)}; choose from {', '.join(options)}"
        if isinstance(link, OverrideParseException):
            return (
                f"cannot read '{link.override}': expected KEY=VALUE; put special characters in quotes, "
                "such as \"data.root='/a (b)'\""
            )
    if found := re.search(r"Could not (?:override|delete)(?: from config\.)? '([^'\n]+)'", text):
        key = re.split("[@=]", found[1])[0].replace("/", ".")
        if key in keys:
            return f"'{key}' does not go with the chosen {key.rsplit('.', 1)[0]}"
        return f"unknown key '{key}'{near_key(key, keys)}"
    if found := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"'{found[1]}' are several values: add -m to run each"
    if "token recognition error" in text:
        return f"{' '.join(text.split())}: put special characters in quotes, such as \"out='ü'\""
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=(.*)'", text):
        key, value = found[1], found[2]
        several = f", or write {key}=[{value}] for a list" if takes(keys.get(key), list) else ""
        return f"'{key}={value}' are several values: add -m to run each{several}"
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            reason = str(link.msg or link).splitlines()[0]
            if unset := re.search(r"Environment variable '(\w+)' not found", reason):
                reason = f"the environment variable {unset[1]} is not set"
            near = "" if link.full_key in keys else near_key(str(link.full_key), keys)
            return f"{link.full_key}: {reason}{near}"
    return " ".join(text.split()) or type(error).__name__
