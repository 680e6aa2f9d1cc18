"""Rows 3, 8, 10: the files of a run, written in order, damaged, or senseless."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import ROOT, SHORT, TEACHER, Row, check, errors, folder, inside, newest, run_of, same

from n2n_cli import records
from n2n_cli.training import checkpoint


def stopped(place: Path, at: int = 100) -> Path:
    """A teacher's run that stopped at a step, with two checkpoints."""
    code, told = inside(place, *TEACHER, f"max_steps={at}")
    check(code == 0, told)
    return run_of(place)


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def restore(run: Path, good: dict[Path, bytes]) -> None:
    """The files as they were, and no others."""
    for path in files_of(run).keys() - good.keys():
        path.unlink()
    for path, data in good.items():
        path.write_bytes(data)


def damage(times: int, whole: Path) -> Row:
    """Bit flips, cuts at every KiB and empty files in what a stopped run holds; then it goes on."""
    injected = 0
    with folder() as place:
        run = stopped(place)
        good = files_of(run)
        latest = newest(run)
        for injected in range(times):
            restore(run, good)
            path = (latest, run / "run.json", run / "metrics.jsonl")[injected % 3]
            path.write_bytes(_damaged(path.read_bytes(), injected))
            (run / f".tmp-1-{path.name}").write_bytes(b"stale")
            code, told = inside(place, *TEACHER, "max_steps=1")
            check("Traceback" not in told, told)
            if path == latest:
                check(code == 0 and "n2n: warning: skipped damaged checkpoint" in told, f"{code}: {told}")
            elif path.name == "run.json" and json_values(path) != json_values_of(good[path]):
                check(code == 2 and len(errors(told)) == 1, f"{code}: {told}")
            else:
                check(code == 0, told)
            check(not list(run.rglob(".tmp-*")) or code == 2, "stale files stay")
    fault = "bits flipped, files cut and emptied: checkpoint, run.json, metrics.jsonl; stale temporary files"
    return Row("8", fault, "told; the older checkpoint is used", _silent_flips(), injected + 1)  # fmt: skip


def json_values(path: Path) -> Any:
    return json_values_of(path.read_bytes())


def json_values_of(data: bytes) -> Any:
    try:
        return {key: value for key, value in json.loads(data).items() if key in records.RUN}
    except (ValueError, AttributeError):
        return None


def _damaged(data: bytes, number: int) -> bytes:
    kind = number // 3 % 3
    if kind == 0:
        changed = bytearray(data)
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
        return bytes(changed)
    return data[: random.randrange(0, len(data), 1024 if len(data) > 4096 else 1)] if kind == 1 else b""


def _silent_flips() -> str:
    """How many flipped bits torch.load does not notice."""
    torch.save({"model": torch.ones(10_000)}, buffer := io.BytesIO())
    silent = 0
    for _ in range(200):
        changed = bytearray(buffer.getvalue())
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        try:
            silent += not torch.equal(torch.load(io.BytesIO(changed), weights_only=True)["model"], torch.ones(10_000))
        except Exception:
            continue
    check(silent > 50, "torch.load notices flipped bits?")
    return f"torch.load takes {silent} of 200 flipped bits for weights"


def done_damaged(times: int, whole: Path) -> Row:
    """done.json of a finished run: one line, and nothing is trained anew."""
    with folder() as place:
        shutil.copytree(whole.parents[2], place, dirs_exist_ok=True)
        path = run_of(place) / "done.json"
        good = path.read_bytes()
        for number in range(times):
            path.write_bytes(_damaged(good, number))
            code, told = inside(place, *TEACHER)
            intact = json_values_of(path.read_bytes()) == json_values_of(good)
            check(code in (0, 2) and (code == 2 or intact) and "Traceback" not in told, f"{code}: {told}")
            check(same(run_of(place), whole), "trained anew")
    return Row("8", "done.json of a finished run damaged", "one line, nothing trained anew", "", times)


def every_damaged(times: int, whole: Path) -> Row:
    """All checkpoints of a stopped run damaged."""
    with folder() as place:
        run = stopped(place)
        good = files_of(run)
        for _ in range(times):
            for path in run.glob("checkpoints/step_*.pt"):
                path.write_bytes(good[path][: random.randrange(len(good[path]))])
            code, told = inside(place, *TEACHER)
            check(code == 2 and "every checkpoint in" in told and len(errors(told)) == 1, told)
            check(files_of(run).keys() == good.keys(), "something was written")
    return Row("8", "every checkpoint damaged", "one line, exit code 2, nothing restarted", "", times)


def order_of_writes(times: int, whole: Path) -> Row:
    """The system calls of a run, traced: each file synced before its rename, its folder after it."""
    checked = 0
    with folder() as place:
        trace = place / "trace"
        command = [sys.executable, "-m", "n2n_cli", *TEACHER, "max_steps=20"]
        words = "trace=openat,write,fsync,rename,renameat,renameat2,close,unlink"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        traced = ["strace", "-f", "-y", "-e", words, "-o", str(trace), *command]
        subprocess.run(traced, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
        calls = trace.read_text().splitlines()
        for index, call in enumerate(calls):
            found = re.search(r'rename\w*\(.*"([^"]*/\.tmp-\d+-([^"]+))".*"([^"]+)"', call)
            if not found:
                continue
            temporary, target = found[1], found[3]
            before, after = calls[:index], calls[index + 1 :]
            write = max((i for i, c in enumerate(before) if " write(" in c and temporary in c), default=-1)
            sync = max((i for i, c in enumerate(before) if " fsync(" in c and temporary in c), default=-1)
            check(0 <= write < sync, f"{target}: not synced before its rename")
            place_of = os.path.dirname(target)
            check(any(" fsync(" in c and f"{place_of}>" in c for c in after[:4]), f"{place_of}: not synced after")
            checked += 1
        check(checked >= 5, f"only {checked} renames seen")
        rows = [i for i, c in enumerate(calls) if " fsync(" in c and "metrics.jsonl>" in c]
        check(rows, "metrics.jsonl is never synced")
    return Row("3", "order of writes (strace)", "write, sync, rename, sync of the folder", "", checked)


ODD = [None, True, -1, 0, 3.5, 1e308, float("nan"), "", "x" * 50, "../..", [], [[]], {}, {"a": {}}, b"\xff", 2**70]


def senseless(value: Any, times: int = 1) -> Any:
    """A copy with some value somewhere in it changed, gone, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(times):
        here: Any = value
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = random.choice(keys)
            inner = here[key]
            if isinstance(inner, dict | list) and inner and random.random() < 0.8:
                here = inner
                continue
            kind = random.random()
            if kind < 0.25:
                del here[key]
            elif kind < 0.35 and isinstance(here, dict):
                here[random.choice(["", "name", "op", "steps", "x"])] = here.pop(key)
            elif isinstance(inner, torch.Tensor) and random.random() < 0.7:
                here[key] = random.choice([inner.flatten()[:3], inner.new_zeros(0), inner.to(torch.int8), inner[None]])
            else:
                here[key] = random.choice(ODD)
            break
    return value


def fuzz_checkpoints(times: int, whole: Path) -> Row:
    """Checkpoints whose hash is right and whose content is senseless: resumed, evaluated, grown."""
    with folder() as place:
        run = stopped(place)
        (place / "grown").mkdir()
        latest = newest(run)
        for path in run.glob("checkpoints/*.pt"):
            if path != latest:
                path.unlink()
        good = torch.load(latest, weights_only=True)
        for number in range(times):
            state = senseless(good, random.randint(1, 3))
            path = checkpoint.save(latest.parent, state, step=100)
            for words in (
                (*TEACHER, "max_steps=1"),
                ("evaluate", str(path)),
                ("grow", "--op", "wider", *SHORT, f"teacher={path}", "max_steps=1", "out=grown", "op.optimizer=carry"),
            )[number % 3 :][:1]:
                code, told = inside(place, *words)
                check(code in (0, 2) and "Traceback" not in told, f"{words}: {code}, {told}")
                check(code == 0 or len(errors(told)) == 1, told)
            for left in run.glob("checkpoints/*.pt"):
                left.unlink()
            (run / "done.json").unlink(missing_ok=True)
            shutil.rmtree(place / "grown", ignore_errors=True)
    return Row("10", "senseless checkpoints with the right hash", "one line, exit code 2, or of no matter", "", times)


def fuzz_lineages(times: int, whole: Path) -> Row:
    """Lineages of a grown network, made senseless: built or refused."""
    from n2n_cli import lineage
    from n2n_cli.errors import N2NError

    with folder() as place:
        shutil.copytree(whole.parents[2], place, dirs_exist_ok=True)
        good = []
        for op in ("wider", "deeper"):
            code, told = inside(place, "grow", "--op", op, *SHORT, "max_steps=1", "op.optimizer=carry")
            check(code == 0, told)
            good.append(torch.load(newest(run_of(place, f"{op}-carry-seed0")), weights_only=True)["lineage"])
        refused = 0
        for number in range(times):
            try:
                lineage.build(senseless(good[number % 2], random.randint(1, 3)))
                lineage.describe(good[number % 2])
            except N2NError as error:
                check("\n" not in str(error)[:500], str(error))
                refused += 1
        check(refused > times // 5, f"{refused} of {times} refused")
    return Row("10", "senseless lineages", f"one type of error ({refused} refused), or a network", "", times)


def unsealed(values: Any) -> Any:
    return {key: value for key, value in values.items() if key != records.SEAL} if isinstance(values, dict) else values


def fuzz_records(times: int, whole: Path) -> Row:
    """run.json, metrics.jsonl, done.json and config.yaml, whole but senseless: gone on from, reported."""
    with folder() as place:
        shutil.copytree(whole.parents[2], place, dirs_exist_ok=True)
        run = run_of(place)
        good = files_of(run)
        rows = [json.loads(line) for line in good[run / "metrics.jsonl"].splitlines()]
        for number in range(times):
            restore(run, good)
            name = ("run.json", "metrics.jsonl", "done.json", "config.yaml")[number % 4]
            path = run / name
            if name == "metrics.jsonl":
                bad = [unsealed(row) for row in senseless(rows, 3)]
                path.write_text("".join(json.dumps(row, default=str) + "\n" for row in bad))
            elif name == "config.yaml":
                path.write_text(yaml.safe_dump(senseless(yaml.safe_load(good[path]), 2)))
            else:
                values = unsealed(json.loads(good[path]))
                path.write_text(json.dumps(senseless(values, random.randint(1, 3)), default=str))
            if number % 8 < 4:
                (run / "done.json").unlink(missing_ok=True)
            code, told = inside(
                place, "compare", "study.arms=[wider]", *SHORT, "progress=false", "max_steps=1", "jobs=1"
            )
            check(
                code in (0, 2) and "Traceback" not in told,
                f"{name}: {code}, {told}\n{path.exists() and path.read_text()[:3000]}",
            )
            check(code == 0 or len(errors(told)) == 1, told)
    fault = "senseless run.json, metrics.jsonl, done.json, config.yaml"
    return Row("10", fault, "one line, exit code 2, or of no matter", "", times)
