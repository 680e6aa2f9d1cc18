"""The words that a command line starts with."""

from __future__ import annotations

from n2n_cli.errors import N2NError, suggest

ROLES = ("teacher", "student")
TOOLS = {"prepare": "imagenet SRC DST", "check": "ROOT", "pack": "ROOT TO"}
COMMANDS = ("train", "grow", "compare", "evaluate", "inspect", "export", "data", "completion", "help")
SHELLS = ("bash", "zsh", "fish")


def parse(words: list[str]) -> tuple[str, list[str]]:
    """The command, a key of `schema.SCHEMAS`, and the words after it; ``n2n train --help`` is the command ``train``.

    Raises:
        N2NError: the line starts with no command, the nearest one is named; or a word is not UTF-8, which neither
            Hydra nor TensorBoard can write down.
    """
    if odd := next((word for word in words if not _is_utf8(word)), None):
        raise N2NError(f"cannot read {odd!r}: expected UTF-8 text")
    word, rest = words[0], words[1:]
    if word.startswith("-") or "=" in word:
        raise N2NError(f"expected a command before '{word}': one of {', '.join(COMMANDS)}")
    if word not in COMMANDS:
        near = suggest(word, [*COMMANDS, *(f"train {role}" for role in ROLES)])
        if word in ROLES:
            near = f" (did you mean 'train {word}'?)"
        raise N2NError(f"unknown command '{word}'{near}; one of {', '.join(COMMANDS)}")
    if word == "data":
        tool = rest[0] if rest else ""
        if tool not in TOOLS:
            what = f"'{tool}' is not one of {', '.join(TOOLS)}{suggest(tool, TOOLS)}" if tool else "do what?"
            lines = " or ".join(f"n2n data {name} {words}" for name, words in TOOLS.items())
            raise N2NError(f"data: {what}; type: {lines}")
        return f"data_{tool}", rest[1:]
    if word != "train":
        return word, rest
    if rest and rest[0] in ("--help", "-h"):
        return "train", []
    role = rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else ""
    if role not in ROLES:
        if not role:
            raise N2NError("train what? Type: n2n train teacher, or n2n train student")
        raise N2NError(f"train: '{role}' is not teacher or student{suggest(role, ROLES)}")
    return f"train_{role}", rest[1:]


def _is_utf8(word: str) -> bool:
    """Whether a word of the command line was, as Python keeps other bytes as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
