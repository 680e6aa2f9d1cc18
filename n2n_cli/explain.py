"""What the keys of a config mean: the comments beside them in ``conf/``, put beside them in ``n2n COMMAND --help``."""

from __future__ import annotations

import re
from pathlib import Path

from n2n_cli.config import conf_dir

WIDTH = 28  # columns before a comment
_KEY = re.compile(r"^(\s*)([A-Za-z_]\w*):(?:\s|$)")


def notes(path: Path, group: str = "") -> dict[str, str]:
    """Dotted key -> the comment behind it, lines of comment alone below it included; ``group`` goes before the keys."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text().splitlines():
        code, _, comment = line.partition("#")
        comment = comment.strip()
        if not code.strip():
            if comment and last in found and line[:1].isspace():
                found[last] += f" {comment}"
            continue
        last = ""
        if key := _KEY.match(code):
            while stack and stack[-1][0] >= len(key[1]):
                stack.pop()
            stack.append((len(key[1]), key[2]))
            last = ".".join([*([group] if group else []), *(name for _, name in stack)])
            if comment:
                found[last] = comment
    return found


def every_note(command: str) -> dict[str, list[tuple[str, str]]]:
    """Dotted key -> (file's stem, comment) of each file that says something of it, the command's own first."""
    found: dict[str, list[tuple[str, str]]] = {}
    folder = conf_dir()
    files = [(folder / f"{command}.yaml", ""), *((folder / f"{base}.yaml", "") for base in ("base", "base_tool"))]
    for path in sorted(folder.glob("*/*.yaml")):
        files.append((path, "" if path.parent.name == "study" else path.parent.name))
    for path, group in files:
        for key, note in notes(path, group).items():
            found.setdefault(key, []).append((path.stem, note))
    return found


def annotated(help_text: str, command: str) -> str:
    """The help of ``command`` with a comment behind every key of its config that has one."""
    told = every_note(command)
    lines, stack = list[str](), list[tuple[int, str]]()
    inside, choice = False, dict[str, str]()
    for line in help_text.splitlines():
        if line.startswith("Config ("):
            inside = True
        elif not line.strip():
            inside = False
        elif inside and (key := _KEY.match(line)):
            while stack and stack[-1][0] >= len(key[1]):
                stack.pop()
            stack.append((len(key[1]), key[2]))
            names = [name for _, name in stack]
            if names[-1] == "name":
                choice[names[0]] = line.partition(":")[2].strip()
            dotted = ".".join(names)
            if names[0] == "ops" and len(names) > 2:
                dotted = ".".join(["op", *names[2:]])
            dotted = re.sub(r"^op\.(wider|deeper)\.", "op.", dotted)
            known = dict(reversed(told.get(dotted, [])))
            note = known.get(choice.get(names[0], ""), next(reversed(known.values()), ""))
            line = f"{line:{WIDTH}}  # {note}" if note else line
        lines.append(line)
    return "\n".join(lines) + "\n"
