"""Row 9: files, configs and names that would run something, or overwrite it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import ROOT, SHORT, TEACHER, Row, check, errors, folder, inside, run_of, same
from files import stopped, unsealed

from n2n_cli import records


def _payloads(mark: Path) -> list[bytes]:
    """Pickles that make a file when they are loaded as Python would."""
    command = f"touch {mark}"

    class Reduce:
        def __init__(self, function: Callable[..., Any], *words: Any):
            self.what = function, words

        def __reduce__(self) -> Any:
            return self.what

    import builtins

    calls = [
        Reduce(os.system, command), Reduce(os.popen, command), Reduce(subprocess.getoutput, command),
        Reduce(subprocess.call, ["touch", str(mark)]), Reduce(builtins.exec, f"open({str(mark)!r}, 'w')"),
        Reduce(builtins.eval, f"open({str(mark)!r}, 'w')"), Reduce(open, str(mark), "w"),
        Reduce(os.mkdir, str(mark)), Reduce(shutil.copy, "/etc/hostname", str(mark)),
    ]  # fmt: skip
    found = []
    for call in calls:
        for around in (lambda c: c, lambda c: {"format": 1, "model": c}, lambda c: {"model": {"w": [c]}, "format": 1}):
            torch.save(around(call), buffer := io.BytesIO())
            found.append(buffer.getvalue())
        found.append(pickle.dumps(call, protocol=2))
    return found


def malicious(times: int, whole: Path) -> Row:
    """Files and configs that would run code, also where the environment invites them."""
    injected = 0
    with folder() as place:
        shutil.copytree(whole.parents[2], place, dirs_exist_ok=True)
        mark = place / "executed"
        payloads = _payloads(mark)
        torch.load(io.BytesIO(payloads[0]), weights_only=False)
        check(mark.exists(), "the payload is harmless?")
        mark.unlink()
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            for data in payloads:
                file = place / "bad.pt"
                file.write_bytes(data)
                renamed = place / f"best-{hashlib.sha256(data).hexdigest()[:16]}.pt"
                renamed.write_bytes(data)
                for words in (
                    ("evaluate", str(file)), ("evaluate", str(renamed)), ("inspect", str(file)),
                    ("grow", "--op", "wider", *SHORT, f"teacher={renamed}"),
                    ("train", "teacher", *SHORT, f"weights={file}"),
                ):  # fmt: skip
                    code, told = inside(place, *words)
                    check(code == 2 and len(errors(told)) == 1 and not mark.exists(), f"{words}: {code}, {told}")
                    injected += 1
                renamed.unlink()
            injected += _hostile_configs(place, mark) + _hostile_names(place, whole)
        finally:
            del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
    return Row("9", "files, configs and names that would run or overwrite something", "refused, nothing executed",
               "torch.load(weights_only=False) runs them", injected)  # fmt: skip


def _hostile_configs(place: Path, mark: Path) -> int:
    """``_target_`` and functions to import, in YAML files and in a run folder."""
    conf = place / "conf"
    injected = 0
    call = {"_target_": "os.system", "command": f"touch {mark}"}
    (place / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n\n\ndef net(num_classes=8):\n    pass\n")
    sys.path.insert(0, str(place))
    try:
        for group, text in (("model", {"name": "evil:net"}), ("model", call), ("optim", call), ("data", call)):
            path = conf / group / "bad.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(text))
            code, told = inside(place, "train", "teacher", *SHORT, f"{group}=bad", "--config-dir", str(conf))
            check(code == 2 and len(errors(told)) == 1 and not mark.exists(), f"{code}: {told}")
            injected += 1
        (place / "other").mkdir()
        run = stopped(place / "other")
        path = run / "config.yaml"
        good = path.read_text()
        for key, value in (("model", call), ("optim", call), ("hydra", {"sweeper": call})):
            path.write_text(yaml.safe_dump({**yaml.safe_load(good), key: value}))
            check(_worker(run) == (0 if key == "hydra" else 2) and not mark.exists(), f"config.yaml with {key}")
            injected += 1
        path.write_text(f"!!python/object/apply:os.system ['touch {mark}']")
        check(_worker(run) == 2 and not mark.exists(), "config.yaml with a Python tag")
        path.write_text(good)
        info = json.loads((run / "run.json").read_text())
        info["lineage"]["steps"][0]["name"] = "evil:net"
        records.write(run / "run.json", unsealed(info))
        check(_worker(run) == 2 and not mark.exists(), "a lineage that names a function")
        return injected + 2
    finally:
        sys.path.remove(str(place))


def _worker(run: Path) -> int:
    command = [sys.executable, "-m", "n2n_cli.commands.worker", str(run)]
    paths = f"{ROOT}:{run.parents[2].parent}"
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    check("Traceback" not in done.stderr, done.stderr)
    return done.returncode


def _hostile_names(place: Path, whole: Path) -> int:
    """A checkpoint that is a link out of its folder, and names that lead out of the study."""
    outside = place / "outside.txt"
    outside.write_text("precious")
    run = run_of(place)
    (run / "checkpoints" / f".tmp-{os.getpid()}-x").symlink_to(outside)
    link = run / "checkpoints" / "step_99999999-0123456789abcdef.pt"
    link.symlink_to(outside)
    (run / "done.json").unlink()
    code, told = inside(place, *TEACHER)
    check(code == 0 and outside.read_text() == "precious", f"{code}: {told}")
    link.unlink(missing_ok=True)
    check(same(run, whole), "other weights")
    for name in ("../../outside", "/etc/n2n", "a/../../b"):
        code, told = inside(place, *TEACHER, f"model={name}")
        check(code == 2 and not (place.parent / "outside").exists(), f"{name}: {code}, {told}")
    return 5
