"""Growth on a library it was not written against: the smallest member of every timm family, widened and measured.

    pip install --no-deps --target SITE timm huggingface_hub safetensors packaging
    PYTHONPATH=SITE .venv/bin/python experiments/unseen/timm_families.py [--families PATTERN ...] [--resume]

One process a family, one at a time, in random order. Writes timm.json and README.md into ``--out`` after every family.
``--resume`` keeps the rows that are there; ``--redo crash refused`` measures those outcomes again. An error is a row.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # behind PYTHONPATH: a snapshot may be measured

import timm
import torch
import zoo_checks as zoo
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import n2n_cli
from n2n_cli import growth

torch.set_num_threads(1)
SECONDS, GIB, QUARTER = 120, 14, 1.25  # for the widening, and again for its measurement; address space; enough
SIZES = (64, 96, 128, 224, 256, None)  # None: the model's own
Row = dict[str, Any]


class Late(BaseException):
    """Time is up; no Exception, so that nothing on the way takes it for an error of its own."""

    @classmethod
    def now(cls, *_: object) -> None:
        raise cls


def members(family: str) -> list[str]:
    """Every model of the module, that with the fewest parameters first; built without memory where it can be."""
    found: dict[str, int] = {}
    for name, device in itertools.product(timm.list_models(module=family), ("meta", "cpu")):
        with contextlib.suppress(Exception), torch.device(device):
            if name not in found:
                found[name] = zoo.count(timm.create_model(name, pretrained=False, num_classes=10))
    return sorted(found, key=lambda name: (found[name], name))


@torch.no_grad()
def build(names: list[str]) -> tuple[str, nn.Module, Tensor]:
    """The smallest model with the smallest images it takes: it runs in both modes, and its outputs are finite."""
    said = ""
    chaotic = names[0].startswith(("levit", "shvit", "efficientvit_m"))  # batch norm of two values or so: 1x1 maps
    for name, size, resized in itertools.product(names, SIZES[2 * chaotic :], (True, False)):
        torch.manual_seed(0)
        try:
            options = {"img_size": size} if resized and size else {}
            model = timm.create_model(name, pretrained=False, num_classes=10, **options)
            if zoo.count(model) > 2e8:  # more than fits
                model, name = timm.create_model(name, num_classes=10, depth=2, **options), f"{name}, 2 layers"
            side = size or timm.data.resolve_data_config({}, model=model)["input_size"][-1]
            x = torch.randn(2 + 2 * chaotic, 3, side, side, generator=torch.Generator().manual_seed(1))
            for training in (False, True):
                assert all(t.isfinite().all() for t in run(model, x, training=training)), "not finite"
            return name, zoo.unsettle(model, x), x
        except Exception as error:
            said = said or f"{name} at {size}: {type(error).__name__}: {error}".splitlines()[0]
    raise RuntimeError(f"no member runs: {said}")


def silence(model: nn.Module) -> nn.Module:
    """Every probability of dropping something to 0: students draw other numbers."""
    names = ("p", "drop_prob", "prob", "drop_rate", "attn_drop", "attn_drop_p", "dropout_p", "drop")
    for module, name in itertools.product(model.modules(), names):
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)
    return model


@torch.no_grad()
def run(model: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    """Outputs of a copy in one mode, by a plain call."""
    torch.manual_seed(0)
    return [t for t in tree_leaves(silence(copy.deepcopy(model)).train(training)(x)) if isinstance(t, Tensor)]


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [t.shape for t in ours] == [t.shape for t in theirs], "other shapes"
    gaps = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)]
    return max(gaps) if all(gap == gap for gap in gaps) else float("inf")


def measure(model: nn.Module, x: Tensor, factor: float) -> Row:
    """The gap of an fp64 student against its fp64 teacher, in eval and train mode, and the teacher's rounding."""
    teacher, x, row = copy.deepcopy(model).double(), x.double(), Row()
    student, nudged = growth.widen(teacher, x, factor).student, torch.nextafter(x, torch.full_like(x, float("inf")))
    for mode, training in (("eval", False), ("train", True)):
        theirs = run(teacher, x, training=training)
        row[f"gap_{mode}"] = relative(run(student, x, training=training), theirs)
        row[f"floor_{mode}"] = relative(run(teacher, nudged, training=training), theirs)
    row["varies"] = relative([t[:1] for t in theirs], [t[1:2] for t in theirs])  # between the two images
    floor = max(row["floor_eval"], row["floor_train"])
    return row | {"exact": max(row["gap_eval"], row["gap_train"]) <= max(1e-9, 1000 * floor)}


def held(model: nn.Module, grown: growth.Growth) -> dict[str, int]:
    """Why units stay as they are, and the parameters of the layers that make them."""
    out, found, modules = Counter[str](), set(), dict(model.named_modules())
    for group in grown.groups:
        head, colon, why = str(group.fixed or group.tied or "free, but kept").partition(": ")
        why = f"{'' if group.fixed else 'tied: '}{head.partition(' at ')[0]}{colon}{why}"
        found |= {(why, name) for name in group.layers if group.grown <= group.units and name in modules}
    for why, name in sorted(found):
        out[why] += sum(p.numel() for p in modules[name].parameters(recurse=False))
    return out


def last_line(error: BaseException) -> str:
    """The error, and the engine's own frame it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "n2n_cli" in f.filename]
    place = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}]" if frames else ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}{place}"


def widened(model: nn.Module, x: Tensor, factor: float) -> Row:
    """One call of widen, and what became of it."""
    start, row = time.perf_counter(), Row(factor=factor)
    try:
        grown = growth.widen(model, x, factor)
        share = zoo.count(grown.student) / zoo.count(model)
        row |= {"outcome": "grown" if share > QUARTER else "little", "parameter_factor": share}
        row |= {"held": held(model, grown), "notes": grown.notes}
    except growth.GrowthError as error:
        row |= {"outcome": "refused", "reason": str(error).strip().splitlines()[0]}
    except Exception as error:
        row |= {"outcome": "crash", "reason": last_line(error)}
    return row | {"seconds": time.perf_counter() - start}


def one(family: str, names: list[str]) -> None:
    """Prints what is known after every step, as a line of JSON; the last one counts."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB * 2**30, GIB * 2**30))
    row: Row = {"family": family, "model": names[0], "engine": engine(), "outcome": "unbuilt"}
    signal.signal(signal.SIGALRM, Late.now)
    try:
        signal.alarm(SECONDS)
        name, model, x = build(names)
    except (Late, Exception) as error:
        return print(json.dumps(row | {"reason": last_line(error)}))
    signal.alarm(SECONDS)
    row |= {"model": name, "image": x.shape[-1], "parameters": zoo.count(model), "outcome": "timeout", "tried": []}
    try:
        for factor in (1.5, 2.0):
            row["tried"].append(widened(model, x, factor))
            best = max(row["tried"], key=lambda t: t.get("parameter_factor", 0.0))
            print(json.dumps(row := {k: v for k, v in row.items() if k != "reason"} | best), flush=True)
            if best["outcome"] == "grown":
                break
    except Late:
        row["late"] = f"x{factor:g}: no result in {SECONDS} s"
    signal.alarm(SECONDS)
    try:
        if row["outcome"] in ("grown", "little") and not (row := row | measure(model, x, row["factor"]))["exact"]:
            row["outcome"] = "WRONG"
    except (Late, Exception) as error:
        row["unmeasured"] = last_line(error)
    print(json.dumps(row | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def in_process(family: str, names: list[str]) -> Row:
    command, start = ["timeout", str(4 * SECONDS), sys.executable, "-W", "ignore", __file__], time.perf_counter()
    done = subprocess.run([*command, "--one", family, *names], capture_output=True, text=True)
    lines, last = done.stdout.splitlines(), (done.stderr.strip().splitlines() or [""])[-1]
    row: Row = {"family": family, "model": names[0], "engine": engine(), "outcome": "crash"}
    row = json.loads(lines[-1]) if lines else row
    if done.returncode:
        row["reason"] = f"the process ended with {done.returncode}: {last}"
    return row | {"seconds_in_all": time.perf_counter() - start}


def engine() -> str:
    code = [path.read_bytes() for path in sorted((Path(n2n_cli.__file__).parent / "growth").rglob("*.py"))]
    return hashlib.sha256(b"".join(code)).hexdigest()[:12]


def write(out: Path, data: Row) -> None:
    (out / "timm.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "README.md").write_text(readme(data))


def remark(row: Row) -> str:
    return "; ".join(str(row[k]) for k in ("reason", "late", "unmeasured") if k in row).replace("|", "/")


def readme(data: Row) -> str:
    rows, families = data["rows"], data["families"]
    outcomes = Counter(row["outcome"] for row in rows)
    measured, share = [row for row in rows if "exact" in row], outcomes["grown"] / max(1, len(rows))
    said = f"**{outcomes['grown']} of {len(rows)} families ({share:.0%}) grow by more than a quarter.**"
    out = ["# A library nobody looked at: timm", "", said + f" ({len(rows)} of timm's {families} families run.)"]
    out += ["", "    " + "\n    ".join((__doc__ or "").split("\n\n")[1].split("\n    ")).strip(), ""]
    out += ["| outcome | families | |", "|---|---|---|"]
    out += [f"| {name} | {outcomes[name]} | {meaning} |" for name, meaning in MEANING.items()]
    worst = max((max(r["gap_eval"], r["gap_train"]) for r in measured if r["exact"]), default=0.0)
    out += ["", HOW.format(quarter=QUARTER, seconds=SECONDS, gib=GIB, measured=len(measured), worst=worst)]
    engines = Counter(row["engine"] for row in rows).most_common()
    out += ["", f"{data['versions']}. Engine (digest of its code, families): {engines}.", ""]
    causes: dict[str, dict[str, float]] = {}
    for row in rows:
        for why, n in row.get("held", {}).items():
            if (share := n / row["parameters"]) > 0.01:
                causes.setdefault(re.sub(r"\d+", "N", why).replace("|", "/"), {})[row["family"]] = share
    out += ["## What stays fixed, and why", "", "| why | families: share of parameters, over 1 % |", "|---|---|"]
    for why, where in sorted(causes.items(), key=lambda cause: -sum(min(n, 1) for n in cause[1].values())):
        out.append(f"| {why} | {', '.join(f'{f} {min(n, 1):.0%}' for f, n in where.items())} |")
    head = "| family | smallest member | px | parameters, M | outcome | plan | factor | gap | floor | s | |"
    out += ["", "## Every family", "", head, "|---" * 11 + "|"]
    for row in sorted(rows, key=lambda r: (list(MEANING).index(r["outcome"]), r["family"])):
        gap, floor = (max(row.get(f"{k}_{m}", -1.0) for m in ("eval", "train")) for k in ("gap", "floor"))
        numbers = [f"{gap:.0e}", f"{floor:.0e}"] if gap >= 0 else ["", ""]
        cells = [row["family"], row["model"], row.get("image", ""), f"{row.get('parameters', 0) / 1e6:.1f}"]
        cells += [row["outcome"], f"x{row['factor']:g}" if "factor" in row else ""]
        cells += [f"{row['parameter_factor']:.2f}" if "parameter_factor" in row else "", *numbers]
        out.append("| " + " | ".join(map(str, [*cells, f"{row.get('seconds', 0):.0f}", remark(row)])) + " |")
    return "\n".join(out) + "\n"


MEANING = {
    "grown": "over a quarter more parameters; exact (where no gap is given, by the engine's proof alone)",
    "little": "exact, with less",
    "refused": "a GrowthError said why",
    "WRONG": "the student's function is another one",
    "crash": "another exception",
    "timeout": "no student in time",
    "unbuilt": "timm's own model does not run on images here",
}
HOW = (
    "The smallest member of every family by parameters (some timm's tiny test_*; over 200 M: 2 layers), 10 classes, "
    "no pretrained weights, two images of the smallest size it takes of 64, 96, 128, 224, 256, its own (levit, shvit, "
    "efficientvit_msra: four of 128, since batch norm in train mode saw two values); norm statistics and constants at "
    "the start are random (tests/zoo_checks.py). `widen(model, x, 1.5)` in fp32, 2 where 1.5 gave at most {quarter} "
    "times the parameters: {seconds} s together, {gib} GiB of address space. Then again in fp64, and that student's "
    "gap by plain forward passes of copies without dropout: max |student - teacher| / max |teacher|, eval and train, "
    "at most 1e-9 or 1000 floors (an input one ulp away). {measured} were measured; largest exact gap: {worst:.0e}."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["*"], metavar="PATTERN", help="timm's modules: 'swin*'")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--redo", nargs="+", default=[], metavar="OUTCOME", help="but not those with such an outcome")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--one", nargs="+")
    args = parser.parse_args()
    if args.one:
        return one(args.one[0], args.one[1:])
    path: Path = args.out / "timm.json"
    old: Row = json.loads(path.read_text()) if path.exists() else {"rows": [], "smallest": {}}
    families = timm.list_modules()
    todo = [f for f in families if any(fnmatchcase(f, pattern) for pattern in args.families)]
    rows = {row["family"]: row for row in old["rows"]}
    todo = [f for f in todo if not args.resume or f not in rows or rows[f]["outcome"] in args.redo]
    random.Random(0).shuffle(todo)
    versions = f"timm {timm.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    versions += f"; {platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread"
    data = {"versions": versions, "families": len(families), "smallest": old["smallest"]}
    for done, family in enumerate(todo, 1):
        if family not in data["smallest"]:
            data["smallest"][family] = members(family)[:3]
        rows[family] = row = in_process(family, data["smallest"][family])
        write(args.out, data | {"rows": [rows[f] for f in sorted(rows)]})
        said = f"{row['outcome']} {row.get('parameter_factor', 0):.2f}, {row['seconds_in_all']:.0f} s; {remark(row)}"
        print(f"{done}/{len(todo)} {family} {row['model']}: {said}", flush=True)
    write(args.out, data | {"rows": [rows[f] for f in sorted(rows)]})


if __name__ == "__main__":
    main()
