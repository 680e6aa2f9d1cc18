"""The table for people, from what zoo.py measured."""

from __future__ import annotations

from typing import Any

COMMAND = ".venv/bin/python experiments/zoo/zoo.py"
HEAD = (
    "| model | px | free / tied / fixed | grown | gap eval | gap train | floor | BN statistics | parameters, M "
    "| factor | infer, s | widen, s | |"
)
HOW = (
    "Teachers have random weights, and random values wherever a fresh network is constant: batch-norm statistics and "
    "affines, biases, class tokens, layer scales, zero heads. Everything is fp64, on two random images of the size "
    "given (the smallest that the builder, or batch norm in train mode, takes), outputs of auxiliary heads included. "
    "Gap: max |student - teacher| / max |teacher|, by plain forward passes with dropout and stochastic depth at "
    "probability 0. Floor: the teacher's own response to an input changed by one unit in the last place (the larger of "
    "both modes). Exact: gaps at most 1e-12 or a hundred floors; running means and variances after one pass in train "
    "mode are the teacher's, re-indexed by the student's maps, to the same tolerance; parameters as the maps predict; "
    "`state_dict` names unchanged. Groups are sets of units that grow together: free by any factor, tied by whole "
    "numbers alone, fixed not at all. Seconds of widen include its own proof in fp64."
)


def readme(data: dict[str, Any]) -> str:
    """README.md."""
    rows: list[dict[str, Any]] = data["rows"]
    measured = [row for row in rows if "error" not in row]
    exact = [row for row in measured if not row["faults"]]
    quarter = [row for row in exact if row["parameter_factor"] > 1.25]
    engines = sorted({row["engine"] for row in rows})
    lines = [
        "# The zoo: every torchvision classifier, widened",
        "",
        f"    {COMMAND}",
        "",
        f"**{len(exact)} of {len(rows)} students are exact** ({_by_factor(exact, rows)}); {len(quarter)} of them have "
        f"over a quarter more parameters. {len(rows) - len(measured)} were refused. "
        f"({len({row['model'] for row in rows})} of torchvision's {data['models']} classifiers.)",
        "",
        HOW,
        "",
        f"torch {data['torch']}, torchvision {data['torchvision']}, Python {data['python']}, {data['machine']}, "
        f"{data['threads']} thread; code {', '.join(engines)}. All numbers are in zoo.json.",
    ]
    for factor in sorted({row["factor"] for row in rows}):
        lines += ["", f"## Factor {factor:g}", "", HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
        lines += [_line(row) for row in rows if row["factor"] == factor]
    for title, key in (("fixed", "fixed"), ("as it was, though it may grow", "kept")):
        found = _gathered(measured, key)
        if found:
            lines += ["", f"## What stays {title}", "", "| why | models | factors |", "|---|---|---|"]
            lines += found
    return "\n".join(lines) + "\n"


def _by_factor(exact: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    parts = []
    for factor in sorted({row["factor"] for row in rows}):
        here = [row for row in rows if row["factor"] == factor]
        parts.append(f"{sum(row in exact for row in here)} of {len(here)} at x{factor:g}")
    return ", ".join(parts)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['model']} |" + " |" * (HEAD.count("|") - 3) + f" refused: {row['error'].replace('|', '/')} |"
    groups, gap, floor, seconds = row["groups"], row["gap"], row["floor"], row["seconds"]
    remarks = [*row["faults"], *([f"built with {row['left_out']}"] if row["left_out"] else [])]
    statistics = f"{gap['statistics']:.0e}" if row["statistics"] else "none"
    cells = [
        row["model"],
        str(row["image"]),
        f"{groups['free']} / {groups['tied']} / {groups['fixed']}",
        str(groups["grown"]),
        f"{gap['eval']:.0e}",
        f"{gap['train']:.0e}",
        f"{max(floor['eval'], floor['train']):.0e}",
        statistics,
        f"{row['parameters'] / 1e6:.1f} → {row['grown'] / 1e6:.1f}",
        f"{row['parameter_factor']:.2f}",
        f"{seconds['infer']:.2f}",
        f"{seconds['widen']:.1f}",
        "; ".join(remarks),
    ]
    return "| " + " | ".join(cells) + " |"


def _gathered(rows: list[dict[str, Any]], key: str) -> list[str]:
    reasons: dict[str, dict[str, set[float]]] = {}
    for row in rows:
        for reason in row[key]:
            reasons.setdefault(reason, {}).setdefault(row["model"], set()).add(row["factor"])
    out = []
    for reason, models in sorted(reasons.items(), key=lambda item: -len(item[1])):
        names = sorted(models)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        factors = ", ".join(f"{factor:g}" for factor in sorted(set().union(*models.values())))
        out.append(f"| {reason.replace('|', '/')} | {shown} | {factors} |")
    return out
