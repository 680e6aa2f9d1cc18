"""The rest of a command line, in Hydra's form: ``--flag value`` becomes ``flag=value``."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from n2n_cli import ops, schema
from n2n_cli.convert import takes
from n2n_cli.errors import N2NError, suggest
from n2n_cli.words import TOOLS

PLAIN = {"-m": "--multirun", "-r": "--run", "-h": "--help"} | {
    flag: flag for flag in ("--multirun", "--run", "--help", "--hydra-help", "--resolve")
}
VALUED = {"-c": "--cfg", "-p": "--package", "-cn": "--config-name", "-cd": "--config-dir", "-i": "--info"} | {
    flag: flag for flag in ("--cfg", "--package", "--config-name", "--config-dir", "--info")
}
CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
PATHS = ("out", "teacher", "weights", "checkpoint", "target", "picture", "data.root", "root", "to", "src", "dst")
POSITIONAL = {
    "compare": ["study"],
    "evaluate": ["checkpoint"],
    "inspect": ["target"],
    "export": ["checkpoint"],
    "data_prepare": ["dataset", "src", "dst"],
    "data_check": ["root"],
    "data_pack": ["root", "to"],
}


ELSEWHERE = {
    "resume": "the same command goes on where it was stopped",
    "gpus": "write devices=N (and device=cuda)",
    "gpu": "write device=cuda",
    "ngpus": "write devices=N (and device=cuda)",
    "nproc_per_node": "write devices=N",
    "num_gpus": "write devices=N (and device=cuda)",
    "cuda": "write device=cuda",
    "cpu": "write device=cpu",
    "amp": "write training.precision=auto, bf16 or fp16",
    "fp16": "write training.precision=fp16",
    "bf16": "write training.precision=bf16",
    "arch": "write model=NAME, such as model=resnet18",
    "a": "write model=NAME, such as model=resnet18",
    "j": "write workers=N (of the data), or jobs=N (of n2n compare)",
    "num_workers": "write workers=N",
    "output_dir": "write out=FOLDER",
    "output": "write out=FOLDER",
    "o": "write out=FOLDER",
    "save_dir": "write out=FOLDER",
    "logdir": "write out=FOLDER",
    "pretrained": "write weights=FILE; n2n downloads none",
    "checkpoint": "write weights=FILE to start from one; the same command resumes",
    "batch_size": "write training.batch_size=N (global images a step)",
    "b": "write training.batch_size=N (global images a step)",
    "wd": "write optim.weight_decay=X",
    "learning_rate": "write optim.lr=X",
    "opt": "write optim=sgd, rmsprop, adam or adamw",
    "optimizer": "write optim=sgd, rmsprop, adam or adamw",
    "beta1": "write optim.betas=[BETA1,BETA2]",
    "beta2": "write optim.betas=[BETA1,BETA2]",
    "opt_betas": "write optim.betas=[BETA1,BETA2]",
    "lr_base": "write optim.lr_per_256=X, the rate of a batch of 256 images",
    "scheduler": "write optim.schedule.name=cosine, step, exponential or constant",
    "sched": "write optim.schedule.name=cosine, step, exponential or constant",
    "dataset": "write data=imagefolder data.root=FOLDER, or data=cifar10, shapes, fake",
    "data_dir": "write data=imagefolder data.root=FOLDER",
    "data_path": "write data=imagefolder data.root=FOLDER",
    "img_size": "write data.image_size=N",
    "print_freq": "write training.log_every=N (steps)",
    "world_size": "write devices=N; several nodes are started with torchrun (prepare_only=true shows the line)",
    "dist_url": "several nodes are started with torchrun (prepare_only=true shows the line)",
}
"""What people type who come from other trainers, and how it is said here."""


@dataclass
class Line:
    """One command line: Hydra's flags with their values, and ``key=value`` overrides, in order."""

    flags: dict[str, str | None] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        return "--multirun" in self.flags

    @property
    def runs(self) -> bool:
        """Whether a job runs, and not only help or a config is shown."""
        return not {"--help", "--hydra-help", "--cfg", "--info"} & set(self.flags)

    @property
    def argv(self) -> list[str]:
        flags = [f"{flag}={value}" if value is not None else flag for flag, value in self.flags.items()]
        return [*flags, *self.overrides]


def translate(command: str, words: list[str]) -> Line:
    """Words of the shell -> `Line`.

    ``--optim.lr 0.1``, ``--optim.lr=0.1`` and ``--lr 0.1`` (a field that one group alone has) are
    ``optim.lr=0.1``; a true-or-false key needs no value; a key that is a list takes ``a,b``. Raises N2NError.
    """
    keys = command_keys(command)
    line, rest = Line(), list(words)
    positional, runs = list(POSITIONAL.get(command, [])), list[str]()
    multirun = not {"-m", "--multirun"}.isdisjoint(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in PLAIN and not equals:
            line.flags[PLAIN[name]] = None
        elif name in VALUED:
            flag = VALUED[name]
            if not equals:
                if flag == "--info" and (not rest or rest[0] not in CHOICES[flag]):
                    value = "all"
                elif not rest:
                    raise N2NError(f"{flag} needs a value")
                else:
                    value = rest.pop(0)
            if flag in CHOICES and value not in CHOICES[flag]:
                near = suggest(value, CHOICES[flag])
                raise N2NError(f"{flag}: '{value}' is not one of {', '.join(CHOICES[flag])}{near}")
            if flag == "--config-dir" and not Path(value).is_dir():
                raise N2NError(f"--config-dir: no such folder: {value}")
            line.flags[flag] = value
        elif re.match(r"--?[A-Za-z]", word):
            line.overrides.append(_flag(keys, name, value if equals else None, rest, multirun))
        elif (equals and name.strip()) or word.startswith("~"):
            path = name in PATHS and not (multirun and "," in value)
            line.overrides.append(_open(keys, f"{name}={quote(value)}" if path and value else word))
        elif command == "compare_runs":
            runs.append(word)
        elif positional:
            key = positional.pop(0)
            line.overrides.append(f"{key}={quote(word) if key != 'study' else word}")
        else:
            raise N2NError(_stray(command, word))
    if runs:
        line.overrides.append(f"runs=[{','.join(map(quote, runs))}]")
    for override in line.overrides:
        allows = override.startswith("model=") and ":" in override  # a function that the checkpoint may be built by
        if command == "evaluate" and override.lstrip("+~").startswith(("model", "optim", "training")) and not allows:
            raise N2NError(f"'{override}': evaluate takes all but data from the checkpoint")
    typed = {override.lstrip("+").partition("=")[0] for override in line.overrides if not override.endswith("=null")}
    if {"optim.lr", "optim.lr_per_256"} <= typed:
        raise N2NError("optim.lr and optim.lr_per_256: give one of them")
    wanted = dict.fromkeys(("evaluate", "export"), "RUN_FOLDER_OR_CHECKPOINT") | {"inspect": "CHECKPOINT_OR_MODEL"}
    wanted |= {f"data_{tool}": words for tool, words in TOOLS.items()}
    for key in POSITIONAL[command] if command in wanted and line.runs else ():
        name = command.replace("_", " ")
        enough = (f"{key}=", "model=") if command == "inspect" else f"{key}="
        if not any(override.startswith(enough) for override in line.overrides):
            raise N2NError(f"{name}: which {key}? Type: n2n {name} {wanted[command]}")
    return line


def _flag(keys: dict[str, object], flag: str, value: str | None, rest: list[str], multirun: bool) -> str:
    """``--flag`` as ``key=value``; without ``=value`` it takes its value off the front of ``rest``. Raises N2NError."""
    key = resolve(keys, flag)
    hint = keys.get(key)
    if value is None:
        has_value = bool(rest) and not re.match(r"--?[A-Za-z]", rest[0])
        if takes(hint, bool) and not (
            has_value and re.fullmatch(r"(?i)true|false|yes|no|on|off|null|auto", rest[0].split(",")[0])
        ):
            value = "true"
        elif has_value:
            value = rest.pop(0)
        else:
            raise N2NError(f"{flag} needs a value: {flag} VALUE")
    scalar = "," not in value and any(takes(hint, kind) for kind in (str, float))
    if takes(hint, list) and not scalar and value != "null" and not value.startswith("["):
        value = f"[{value}]"
    elif key in PATHS and not (multirun and "," in value):
        value = quote(value)
    return _open(keys, f"{key}={value}")


def _open(keys: dict[str, object], word: str) -> str:
    """The keys of a dictionary, such as ``model.kwargs.NAME``, are the user's own: Hydra wants ``++`` for them."""
    free = [key for key, hint in keys.items() if key != "ops" and takes(hint, dict)]
    if any(word.startswith(f"{key}={{") for key in free):
        word = re.sub(r"""(["'])([^"']*)\1\s*:""", r"\2:", word)  # Hydra's grammar has no quoted keys
    return f"++{word}" if any(word.startswith((f"{key}.", f"{key}={{")) for key in free) else word


def resolve(keys: dict[str, object], flag: str) -> str:
    """The key that ``--flag`` names: itself, or the only field called so. Raises N2NError."""
    name = flag.lstrip("-").replace("-", "_")
    free = [key for key, hint in keys.items() if key != "ops" and takes(hint, dict)]
    if name in keys or any(name.startswith(f"{key}.") for key in free):
        return name
    found = [key for key in keys if key.endswith(f".{name}")]
    fields = [key for key in found if key.count(".") == 1] or found  # a group's own before those inside it
    if len(fields) == 1:
        return fields[0]
    if found:
        raise N2NError(f"{flag} is ambiguous: write one of {', '.join(f'{key}=' for key in found)}")
    if name in ELSEWHERE:
        raise N2NError(f"unknown flag '{flag}': {ELSEWHERE[name]}")
    raise N2NError(f"unknown flag '{flag}'{near_key(name, keys, '--')}")


def near_key(word: str, keys: dict[str, object], before: str = "") -> str:
    """`suggest` for a key: by its whole name, else by its last part."""
    last = word.rsplit(".", 1)[-1]
    fields = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    if last in fields and fields[last] != word:
        near = [fields[last]]
    elif not (near := difflib.get_close_matches(word, keys, 1, 0.6)):
        near = [fields[name] for name in difflib.get_close_matches(last, fields, 1, 0.7)]
    return f" (did you mean '{before}{near[0]}'?)" if near else ""


def quote(value: str) -> str:
    """A path as Hydra's grammar reads it back, whatever characters it has; ``~`` is the home folder."""
    if value.startswith("~"):
        value = os.path.expanduser(value)
    if re.fullmatch(r"[A-Za-z0-9_./~-]+", value) or value[:1] in "'\"" or value == "null":
        return value
    escaped = value.replace("\\", "\\\\") if value.endswith("\\") else value
    return "'" + escaped.replace("'", "\\'") + "'"


def _stray(command: str, word: str) -> str:
    """What is wrong with a word that is neither a flag nor ``key=value``."""
    if command == "grow" and word in ops.OPS:
        return f"'{word}' is not KEY=VALUE: type n2n grow --op {word}"
    quoted = "; put a value with spaces in quotes: 'KEY=VALUE'" if set(word) & set("{}[]\"'") else ""
    return f"'{word}' is not KEY=VALUE, nor a flag (see n2n {command.replace('_', ' ')} --help){quoted}"


def command_keys(command: str) -> dict[str, Any]:
    """Every key of a command, groups and fields dotted, with its type; an op's are those of all ops."""
    found: dict[str, Any] = {}

    def walk(hint: Any, where: str) -> None:
        for cls in ops.OPS.values() if hint is ops.Op else [hint]:
            for name, inner in get_type_hints(cls, include_extras=True).items():
                found.setdefault(where + name, inner)
                optional = get_args(inner)[0] if isinstance(inner, UnionType) else inner
                if is_dataclass(optional):
                    walk(optional, f"{where}{name}.")
                elif get_origin(inner) is dict and get_args(inner)[1] is ops.Op:
                    for arm, op in ops.OPS.items():
                        found.setdefault(f"{where}{name}.{arm}", op)
                        walk(op, f"{where}{name}.{arm}.")

    walk(schema.SCHEMAS[command], "")
    return found
