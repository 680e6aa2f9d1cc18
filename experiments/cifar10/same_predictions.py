"""Whether grown students predict what their teachers do, image by image: of every student's run below some folders.

    python experiments/cifar10/same_predictions.py OUT... [--json FILE] [--model package.module:function]

For every student: its checkpoint of step 0 against its teacher's newest (what `n2n grow` grew), both in fp32, on all
validation images of its config. Prints one row a student: correct images by this script and by the two runs' own
evaluations, images whose first class differs, the largest difference between logits relative to the largest logit.
Exit code 1 if any student's first class or count of correct images differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from n2n_cli import config, data
from n2n_cli.commands import dataset, networks
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import Normalize, main_output
from n2n_cli.training.runlog import read_rows


def logits(path: Path, images: data.Dataset, typed: list[str]) -> torch.Tensor:
    """Of the network in ``path`` (its averaged weights if it has them): ``[N, classes]``, fp32, NHWC as in training."""
    network, _ = networks.stored(checkpoint.resolve(path), typed)
    network = network.eval().to(memory_format=torch.channels_last)
    normalize = Normalize(images.mean, images.std, torch.device("cpu"), channels_last=True)
    loader = data.EvalLoader(images.val, batch_size=500)
    with torch.inference_mode():
        return torch.cat([main_output(network(normalize(batch)))[0].float() for batch, _ in loader.batches(0)])


def compare(folder: Path, run: dict[str, Any], typed: list[str], known: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The row of the student in ``folder``, whose run.json is ``run``; ``known``: logits of teachers so far."""
    stored = config.read_run(yaml.safe_load((folder / "config.yaml").read_text()))
    images = dataset.load(stored.data)
    labels = torch.cat([y for _, y in data.EvalLoader(images.val, batch_size=500).batches(0)])
    teacher = Path(run["teacher"])
    [start] = (folder / "checkpoints").glob("step_00000000-*.pt")
    key = f"{teacher} on {stored.data}"
    if key not in known:
        known[key] = logits(teacher, images, typed)
    theirs, ours = known[key], logits(start, images, typed)
    rows, before = read_rows(folder / "metrics.jsonl"), json.loads((teacher / "done.json").read_text())
    done = json.loads((folder / "done.json").read_text())
    count = len(labels)

    def correct(result: dict[str, Any]) -> int:
        return round(result["val/top1"] * count)

    return {
        "student": f"{folder.parent.name}/{folder.name}",
        "teacher": f"{teacher.parent.name}/{teacher.name}",
        "arm": run["arm"],
        "optimizer": yaml.safe_load((folder / "config.yaml").read_text())["op"]["optimizer"],
        "teacher_parameters": json.loads((teacher / "run.json").read_text())["parameters"],
        "parameters": run["parameters"],
        "function_gap": run["function_gap"],
        "images": count,
        "teacher_final_correct": correct(before["final"]),
        "start_correct": correct(rows[0]),
        "end_correct": correct(done["final"]),
        "teacher_final_loss": before["final"]["val/loss"],
        "start_loss": rows[0]["val/loss"],
        "end_loss": done["final"]["val/loss"],
        "recount_teacher": int((theirs.argmax(1) == labels).sum()),
        "recount_start": int((ours.argmax(1) == labels).sum()),
        "different_predictions": int((theirs.argmax(1) != ours.argmax(1)).sum()),
        "logit_gap": ((theirs - ours).abs().max() / theirs.abs().max()).item(),
        "smallest_margin": (theirs.topk(2).values @ torch.tensor([1.0, -1.0])).min().item() / theirs.abs().max().item(),
        "time_s": done["time_s"],
        "epochs": done["epochs"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="+", help="folders with runs somewhere below")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", action="append", default=[], help="a function that built networks, to allow it")
    options = parser.parse_args()
    found, wrong = [], 0
    known: dict[str, torch.Tensor] = {}
    for path in sorted(path for out in options.out for path in out.rglob("run.json")):
        run = json.loads(path.read_text())
        if run["teacher"] is None or not (path.parent / "done.json").is_file():
            continue
        row = compare(path.parent, run, options.model, known)
        found.append(row)
        counts = {row[k] for k in ("teacher_final_correct", "start_correct", "recount_teacher", "recount_start")}
        same = len(counts) == 1 and row["different_predictions"] == 0
        wrong += not same
        print(
            f"{row['student']}: teacher {row['teacher_final_correct']}, start {row['start_correct']}, "
            f"end {row['end_correct']} of {row['images']}; recounted {row['recount_teacher']}, {row['recount_start']}; "
            f"{row['different_predictions']} predictions differ, logits by {row['logit_gap']:.1e}"
            f"{'' if same else '  NOT THE SAME'}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found) - wrong} of {len(found)} students are their teachers to the last image")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
