"""Words that can stand next on a command line: command words by ourselves, keys and choices by Hydra."""

from __future__ import annotations

from pathlib import Path

from n2n_cli import cli, config
from n2n_cli.errors import N2NError
from n2n_cli.overrides import Line, command_keys


def complete(line: str) -> list[str]:
    """Completions of the last word of ``line``, which starts with the program's name."""
    words = line.split()[1:]
    last = "" if line[-1:].isspace() or not words else words.pop()
    if not words:
        return [word for word in (*cli.COMMANDS, "--help", "--version") if word.startswith(last)]
    if words[0] == "completion":
        return [shell for shell in cli.SHELLS if shell.startswith(last)]
    if words == ["train"]:
        return [role for role in cli.ROLES if role.startswith(last)]
    try:
        command, rest = cli.parse(words)
        keys = command_keys(command)
    except (N2NError, KeyError):
        return []
    if last.startswith("-"):
        flags = [f"--{key.replace('_', '-')}" for key in keys if "." not in key] + [
            "--cfg",
            "--help",
            "--multirun",
        ]
        return sorted(flag for flag in flags if flag.startswith(last))
    positional = {"evaluate", "inspect", "compare"} & {command}
    if positional and "=" not in last and not any("=" not in word and word[:1] != "-" for word in rest):
        if command == "compare":
            studies = sorted(path.stem for path in (config.conf_dir() / "study").glob("*.yaml"))
            if found := [study for study in studies if study.startswith(last)]:
                return found
        else:
            names = sorted(str(path) for path in Path().glob(f"{last}*")) if "*" not in last else []
            return names
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    from n2n_cli.app import config_loader

    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    completer = BashCompletion(config_loader(Line()))
    return sorted(completer._query(config_name=command, line=" ".join([*overrides, last])))
