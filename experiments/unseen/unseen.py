"""Growth on libraries it was not written against: networks widened, and measured on inputs that the proof never saw.

    pip install --no-deps --target SITE timm vit-pytorch transformers ...      # whatever is there is measured
    PYTHONPATH=SITE .venv/bin/python experiments/unseen/unseen.py LIBRARY... [--only PATTERN ...] [--resume]

LIBRARY: a name in catalogue.py. One process a network, one at a time, in random order. LIBRARY.json and README.md are
written into ``--out`` after each. ``--resume`` keeps the rows that are there; ``--redo crash refused`` measures those
outcomes again. An error is a row.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
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
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # behind PYTHONPATH: a snapshot may be measured

import torch
import zoo_checks as zoo
from catalogue import LIBRARIES, Inputs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import n2n_cli
from n2n_cli import growth

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
SECONDS, GIB, QUARTER = 120, 14, 1.25  # to build, to widen, to measure; address space; enough
Row = dict[str, Any]


class Late(BaseException):
    """Time is up; no Exception, so that nothing on the way takes it for an error of its own."""

    @classmethod
    def now(cls, *_: object) -> None:
        raise cls


class Rounds(TorchDispatchMode):
    """Whether a network that is run in fp64 computes in less somewhere: then its student agrees to that precision."""

    seen = False
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        narrow = (torch.float32, torch.float16, torch.bfloat16)
        self.seen |= any(isinstance(t, Tensor) and t.dtype in narrow and t.numel() > 1 for t in tree_leaves(out))
        return out


class Called(nn.Module):
    """A network that is called with one tuple or dict of arguments, as the checks of the zoo call it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)


def silence(model: nn.Module) -> nn.Module:
    """Every probability of dropping something to 0: students draw other numbers."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and (name in ("p", "prob") or "drop" in name):
                setattr(module, name, 0.0)
    return model


@torch.no_grad()
def run(model: nn.Module, inputs: Any, *, training: bool) -> list[Tensor]:
    """Outputs of a copy in one mode, by a plain call."""
    torch.manual_seed(0)
    random.seed(0)
    return [
        t for t in tree_leaves(Called(silence(copy.deepcopy(model)).train(training))(inputs)) if isinstance(t, Tensor)
    ]


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True) if b.numel()]
    gaps = [((a - b).abs().max() / b.abs().max().clamp(min=1e-300)).item() for a, b in pairs]
    return max(gaps, default=0.0) if all(gap == gap for gap in gaps) else float("inf")


def fp64(inputs: Any) -> Any:
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, inputs)


def measure(model: nn.Module, inputs: Inputs, factor: float) -> Row:
    """The gap of an fp64 student on inputs that neither the recording nor the proof saw, beside the teacher's rounding.

    Two samples of another seed, three, one (eval mode), and larger images or texts where the teacher takes them.
    In fp32 where the teacher does not run in fp64.
    """
    teacher, wide, gaps, floors = copy.deepcopy(model).double(), fp64, Row(), Row()
    try:
        assert all(t.isfinite().all() for t in run(teacher, wide(inputs(2, 0, 1.0)), training=False))
    except Exception:  # an operation that has no fp64 kernel, code that asks for fp32 or has its largest number
        teacher, wide = copy.deepcopy(model), lambda x: x
    student = growth.widen(teacher, wide(inputs(2, 0, 1.0)), factor).student
    for name, batch, seed, scale in (
        ("two", 2, 101, 1.0),
        ("three", 3, 102, 1.0),
        ("one", 1, 103, 1.0),
        ("larger", 2, 104, 1.5),
    ):
        for training in (False, True):
            x = wide(inputs(batch, seed, scale))
            try:
                theirs = run(teacher, x, training=training)
            except Exception:  # a size that it does not take, batch norm over one value
                continue
            up = tree_map(
                lambda t: torch.nextafter(t, torch.full_like(t, float("inf"))) if t.is_floating_point() else t, x
            )
            key = f"{name} {'train' if training else 'eval'}"
            floors[key] = relative(run(teacher, up, training=training), theirs)
            try:
                gaps[key] = relative(run(student, x, training=training), theirs)
            except Exception as error:
                gaps[key], floors[key + " error"] = float("inf"), str(error)[:200]
    with torch.compiler.set_stance("force_eager"), Rounds() as rounds:
        run(teacher, wide(inputs(2, 0, 1.0)), training=False)
    row = {"gaps": gaps, "floors": floors, "rounds": rounds.seen, "single": wide is not fp64}
    return row | {"exact": not differs(row)}


def differs(row: Row) -> Row:
    """The gaps that arithmetic does not explain."""
    base = 1e-4 if row.get("single") else 1e-5 if row["rounds"] else 1e-9
    return {key: gap for key, gap in row["gaps"].items() if not gap <= max(base, 1000 * row["floors"][key])}


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


def widened(model: nn.Module, example: Any, factor: float) -> Row:
    """One call of widen, and what became of it."""
    start, row = time.perf_counter(), Row(factor=factor)
    try:
        grown = growth.widen(model, example, factor)
        share = zoo.count(grown.student) / zoo.count(model)
        row |= {"outcome": "grown" if share > QUARTER else "little", "parameter_factor": share}
        row |= {"held": held(model, grown), "notes": grown.notes}
    except growth.GrowthError as error:
        row |= {"outcome": "refused", "reason": str(error).strip().splitlines()[0]}
    except Exception as error:
        row |= {"outcome": "crash", "reason": last_line(error)}
    return row | {"seconds": time.perf_counter() - start}


def one(library: str, name: str) -> None:
    """Prints what is known after every step, as a line of JSON; the last one counts."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB * 2**30, GIB * 2**30))
    row: Row = {"name": name, "engine": engine(), "outcome": "unbuilt"}
    signal.signal(signal.SIGALRM, Late.now)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            model, inputs = LIBRARIES[library]()[name]()
            example = inputs(2, 0, 1.0)
            zoo.unsettle(Called(model.eval()), example)
    except (Late, Exception) as error:
        return print(json.dumps(row | {"reason": last_line(error)}))
    row |= {"parameters": zoo.count(model), "outcome": "timeout", "tried": []}
    row["inputs"] = [list(t.shape) for t in tree_leaves(example)]
    signal.alarm(SECONDS)
    try:
        for factor in (1.5, 2.0):
            row["tried"].append(widened(model, example, factor))
            best = max(row["tried"], key=lambda t: t.get("parameter_factor", 0.0))
            print(json.dumps(row := {k: v for k, v in row.items() if k != "reason"} | best), flush=True)
            if best["outcome"] == "grown":
                break
    except Late:
        row["late"] = f"x{factor:g}: no result in {SECONDS} s"
    signal.alarm(SECONDS)
    try:
        if row["outcome"] in ("grown", "little") and not (row := row | measure(model, inputs, row["factor"]))["exact"]:
            row["outcome"] = "WRONG"
    except (Late, Exception) as error:
        row["unmeasured"] = last_line(error)
    print(json.dumps(row | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def in_process(library: str, name: str) -> Row:
    command, start = ["timeout", str(4 * SECONDS), sys.executable, "-W", "ignore", __file__], time.perf_counter()
    done = subprocess.run([*command, library, "--one", name], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    row: Row = json.loads(lines[-1]) if lines else {"name": name, "engine": engine(), "outcome": "crash"}
    if done.returncode:
        row["reason"] = f"the process ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"
    return row | {"seconds_in_all": time.perf_counter() - start}


def engine() -> str:
    code = [path.read_bytes() for path in sorted((Path(n2n_cli.__file__).parent / "growth").rglob("*.py"))]
    return hashlib.sha256(b"".join(code)).hexdigest()[:12]


def remark(row: Row) -> str:
    said = [str(row[k]) for k in ("reason", "late", "unmeasured") if k in row]
    if row["outcome"] == "little":  # the causes that hold most
        said += sorted(row["held"], key=row["held"].get, reverse=True)[:2]
    if row["outcome"] == "WRONG":
        said.append(str(differs(row)))
    return "; ".join(said).replace("|", "/")[:300]


def readme(files: dict[str, Row]) -> str:
    every = [row for data in files.values() for row in data["rows"] if row["outcome"] != "unbuilt"]
    count = Counter(row["outcome"] for row in every)
    out = ["# Libraries nobody looked at while writing the engine", ""]
    share = count["grown"] / max(1, len(every))
    out += [f"**{count['grown']} of {len(every)} networks ({share:.0%}) grow by more than a quarter.**"]
    out += ["", "    " + "\n    ".join((__doc__ or "").split("\n\n")[1].split("\n    ")).strip(), ""]
    out += [
        "| library | networks | " + " | ".join(MEANING) + " | parameters, median | largest gap |",
        "|---" * (4 + len(MEANING)) + "|",
    ]
    for library, data in files.items():
        rows = data["rows"]
        outcomes = Counter(row["outcome"] for row in rows)
        factors = [row["parameter_factor"] for row in rows if "parameter_factor" in row]
        gaps = [max(row["gaps"].values()) for row in rows if row.get("exact") and row["gaps"]]
        cells = [library, len(rows), *(outcomes[name] for name in MEANING)]
        cells += [f"x{median(factors):.2f}" if factors else "", f"{max(gaps):.0e}" if gaps else ""]
        out.append("| " + " | ".join(map(str, cells)) + " |")
    out += ["", *(f"- {name}: {meaning}" for name, meaning in MEANING.items()), "", HOW, ""]
    out += [
        f"- {library}: {data['versions']}; engine {Counter(r['engine'] for r in data['rows']).most_common()}"
        for library, data in files.items()
    ]
    causes: dict[str, dict[str, float]] = {}
    for library, data in files.items():
        for row in data["rows"]:
            for why, n in row.get("held", {}).items():
                if (share := n / row["parameters"]) > 0.1:
                    causes.setdefault(re.sub(r"\d+", "N", why).replace("|", "/"), {})[f"{library} {row['name']}"] = (
                        share
                    )
    out += [
        "",
        "## What stays as it is, and why",
        "",
        "| why | networks | of them, share of parameters |",
        "|---|---|---|",
    ]
    for why, where in sorted(causes.items(), key=lambda cause: -sum(min(n, 1) for n in cause[1].values()))[:25]:
        some = ", ".join(f"{f} {min(n, 1):.0%}" for f, n in sorted(where.items(), key=lambda w: -w[1])[:6])
        out.append(f"| {why[:160]} | {len(where)} | {some} |")
    out += [
        "",
        "## Every network that did not grow by a quarter, or was not measured",
        "",
        "| library | network | outcome | parameters, times | |",
        "|---" * 5 + "|",
    ]
    for library, data in files.items():
        for row in sorted(data["rows"], key=lambda r: (list(MEANING).index(r["outcome"]), r["name"])):
            if row["outcome"] != "grown" or "unmeasured" in row:
                factor = f"{row['parameter_factor']:.2f}" if "parameter_factor" in row else ""
                out.append(f"| {library} | {row['name']} | {row['outcome']} | {factor} | {remark(row)} |")
    return "\n".join(out) + "\n"


MEANING = {
    "grown": "over a quarter more parameters; exact on inputs the proof did not see; the unmeasured are listed below",
    "little": "exact, with less",
    "refused": "a GrowthError said why",
    "WRONG": "the student's function is another one",
    "crash": "another exception",
    "timeout": "no student in time",
    "unbuilt": "the library's own network does not run here as the catalogue calls it; not counted",
}
HOW = f"""No pretrained weights; norm statistics and constants at the start are random (tests/zoo_checks.py).
`widen(model, two samples, 1.5)` in fp32, 2 where 1.5 gave at most {QUARTER} times the parameters: {SECONDS} s together,
{GIB} GiB of address space. Then again in fp64, and that student's gap by plain forward passes of copies without
dropout, on inputs that neither the recording nor the proof saw: two samples, three, one, and images or texts of 1.5
times the size where the teacher takes them; max |student - teacher| / max |teacher|, eval and train mode, at most 1e-9
or 1000 floors (an input one ulp away); 1e-5 where the code rounds to fp32 on its way (RMS norms of language models);
all in fp32, and 1e-4, where the network does not run in fp64 (matrices of experts, code that asks for fp32)."""


UNTOLD = {"tried", "notes", "peak_gib", "seconds_in_all"}  # of a row, in the files: they change from run to run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", choices=[[], *LIBRARIES], metavar="LIBRARY", help=", ".join(LIBRARIES))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="networks: 'swin*'")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--redo", nargs="+", default=[], metavar="OUTCOME", help="but not those with such an outcome")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args.libraries[0], args.one)
    for library in args.libraries:
        path: Path = args.out / f"{library}.json"
        old: Row = json.loads(path.read_text()) if path.exists() else {"rows": []}
        rows = {row["name"]: row for row in old["rows"]}
        todo = [n for n in LIBRARIES[library]() if any(fnmatchcase(n, pattern) for pattern in args.only)]
        todo = [n for n in todo if not args.resume or n not in rows or rows[n]["outcome"] in args.redo]
        random.Random(0).shuffle(todo)
        versions = (
            f"{library} {metadata.version(library)}, torch {torch.__version__}, Python {platform.python_version()}"
        )
        versions += f", {platform.system()} {platform.machine()}, one thread"
        for done, name in enumerate(todo, 1):
            rows[name] = row = in_process(library, name)
            told = ({k: v for k, v in rows[n].items() if k not in UNTOLD} for n in sorted(rows))  # a line each
            lines = ",\n".join(map(json.dumps, told))
            path.write_text(f'{{\n"versions": {json.dumps(versions)},\n"rows": [\n{lines}\n]\n}}\n')
            said = (
                f"{row['outcome']} {row.get('parameter_factor', 0):.2f}, {row['seconds_in_all']:.0f} s; {remark(row)}"
            )
            print(f"{library} {done}/{len(todo)} {name}: {said}", flush=True)
    files = {name: args.out / f"{name}.json" for name in LIBRARIES}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    (args.out / "README.md").write_text(readme(found))


if __name__ == "__main__":
    main()
