"""``n2n export``: a checkpoint's network for other programs, checked, and a model card beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from n2n_cli import __version__, config, data, lineage, records, schema
from n2n_cli.commands import networks
from n2n_cli.commands.evaluate import stored_config
from n2n_cli.errors import N2NError
from n2n_cli.models import describe
from n2n_cli.models.export import SUFFIXES, Exported, export
from n2n_cli.training import checkpoint

IMAGES = 3  # that the file is compared on
READ = {
    "safetensors": "model.load_state_dict(safetensors.torch.load_file({file!r}))",
    "torch_export": "logits = torch.export.load({file!r}).module()(images)",
    "onnx": "session = onnxruntime.InferenceSession({file!r})\n"
    "(logits,) = session.run(None, {{session.get_inputs()[0].name: images}})",
}


def run(cfg: schema.Export) -> None:
    """Writes the network of ``cfg.checkpoint`` in ``cfg.format``, and a model card beside it.

    Raises:
        N2NError: no such checkpoint, or a damaged one; the file is there already, or cannot be written; the network
            cannot be exported, or computes something else once it is read back.
    """
    path = checkpoint.resolve(Path(cfg.checkpoint))
    suffix = SUFFIXES[cfg.format]
    whole = Path(os.path.abspath(path))
    owner = whole.parent.parent if whole.parent.name == "checkpoints" else path.with_suffix("")
    to = Path(cfg.to) if cfg.to is not None else Path(owner.name + suffix)
    card = to.with_name(f"{to.name}.md")
    if to.suffix != suffix:
        raise N2NError(f"export: format={cfg.format} makes a {suffix} file, and to={to} is none")
    if not to.absolute().parent.is_dir():
        raise N2NError(f"export: no such folder: {to.parent}")
    if there := [file for file in (to, card) if file.exists()]:
        raise N2NError(f"export: {there[0]} exists: remove it, or give another to=")
    model, state = networks.stored(path, config.functions(cfg))
    stored = stored_config(state, path).data
    if stored.image_size is None and stored.name in ("imagefolder", "packed"):
        raise N2NError(f"{path}: its config does not say the size of its images")
    size = stored.image_size or 32
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    steps = lineage.describe(state["lineage"])
    made = export(model, images, cfg.format, {"format": "pt", "n2n": __version__, "lineage": "; ".join(steps)})
    totals = (describe.count_parameters(model), describe.macs(model, size))
    text = "\n".join(_card(owner, path, state, stored, to.name, cfg.format, made, totals, size)) + "\n"
    try:
        records.atomic_write(to, made.data)
        try:
            records.atomic_write(card, text.encode())
        except OSError:
            to.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise N2NError(f"export: cannot write {to}: {error.strerror}") from error
    print(
        f"{to} ({len(made.data):,} bytes), read back: logits differ by {made.difference:.1e} at most",
        flush=True,
    )
    print(f"{card}: lineage, data, accuracy, how to read it", flush=True)


def _card(
    owner: Path,
    path: Path,
    state: dict[str, Any],
    stored: schema.Data,
    file: str,
    kind: str,
    made: Exported,
    totals: tuple[int, int],
    size: int,
) -> list[str]:
    """The lines of the model card. ``owner``: the run's folder; ``totals``: parameters, and MACs an image."""
    mean, std = data.LOOKS[stored.name]
    classes = state["lineage"].get("classes") or []
    built = state["lineage"]["steps"][0]
    names = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    batch = "batch" if made.any_batch else "1"
    weights = "averaged weights" if state.get("ema") else "weights"
    return [
        f"# {owner.name}",
        "",
        f"{built['name']}: {totals[0]:,} parameters, {totals[1]:,} MACs an image; written by n2n {__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| file | `{file}`, {len(made.data):,} bytes, SHA-256 {hashlib.sha256(made.data).hexdigest()} |",
        f"| holds | the {weights} of step {state['step']} ({path.name}), eval mode |",
        f"| input | float32 [{batch}, 3, {size}, {size}]: RGB in [0, 1], minus {list(mean)}, over {list(std)} |",
        f"| output | logits of {built['num_classes']} classes{': ' + names if names else ''} |",
        f"| checked | read back; logits differ from the checkpoint's by {made.difference:.1e} of the largest at most |",
        "",
        "## Lineage",
        "",
        *(f"{number}. {step}" for number, step in enumerate(lineage.describe(state["lineage"]), 1)),
        "",
        "## Data and accuracy",
        "",
        *_accuracy(owner, state["step"], stored),
        "",
        "## Read it",
        "",
        "```python",
        READ[kind].format(file=file),
        "```",
    ]


def _accuracy(owner: Path, step: int, stored: schema.Data) -> list[str]:
    """What the run's own records say of this step."""
    synthetic = " (synthetic images)" if stored.name in ("shapes", "fake") else ""
    where = f"; trained on {stored.name}{synthetic}"
    measured = [row for row in records.rows(owner / "metrics.jsonl") if row["step"] == step and "val/top1" in row]
    if not measured:
        return [f"Accuracy not recorded beside the checkpoint (`n2n evaluate` measures it){where}."]
    row = measured[-1]
    epochs = f", epoch {row['epoch']:g}" if "epoch" in row else ""
    said = f"Top-1 {100 * row['val/top1']:.2f} %, top-5 {100 * row['val/top5']:.2f} %, loss {row['val/loss']:.4f}"
    return [f"{said} on the validation images{epochs}{where}."]
