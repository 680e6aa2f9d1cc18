"""Words that can stand next on a command line: command words by ourselves, keys and choices by Hydra."""

from __future__ import annotations

import glob
from pathlib import Path

from n2n_cli import config, words
from n2n_cli.errors import N2NError
from n2n_cli.overrides import POSITIONAL, Line, command_keys


def complete(line: str) -> list[str]:
    """Completions of the last word of ``line``, which starts with the program's name."""
    before = line.split()[1:]
    last = "" if line[-1:].isspace() or not before else before.pop()
    if not before:
        return [word for word in (*words.COMMANDS, "--help", "--version") if word.startswith(last)]
    if before[0] == "completion":
        return [shell for shell in words.SHELLS if shell.startswith(last)]
    if before == ["data"]:
        return [tool for tool in words.TOOLS if tool.startswith(last)]
    if before == ["train"]:
        return [role for role in words.ROLES if role.startswith(last)]
    try:
        command, rest = words.parse(before)
        keys = command_keys(command)
    except (N2NError, KeyError):
        return []
    if last.startswith("-"):
        flags = [f"--{key.replace('_', '-')}" for key in keys if "." not in key]
        return sorted(flag for flag in (*flags, "--cfg", "--help", "--multirun") if flag.startswith(last))
    if command in POSITIONAL and "=" not in last and all("=" in word or word[:1] == "-" for word in rest):
        if command != "compare":
            return sorted(str(path) for path in Path().glob(f"{last}*")) if "*" not in last else []
        studies = sorted(path.stem for path in (config.conf_dir() / "study").glob(f"{glob.escape(last)}*.yaml"))
        if studies:
            return studies
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    from n2n_cli.app import config_loader

    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    completer = BashCompletion(config_loader(Line()))
    return sorted(completer._query(config_name=command, line=" ".join([*overrides, last])))
