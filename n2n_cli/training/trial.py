"""One step of training on a copy, before anything is written: does the network take it, and in which format?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from n2n_cli.errors import N2NError
from n2n_cli.training.evaluate import main_output
from n2n_cli.training.options import FitOptions
from n2n_cli.training.precision import autocast_dtype, use_channels_last
from n2n_cli.training.sync_bn import check_synchronised

SAMPLES = 2


def settled(
    model: nn.Module, options: FitOptions, *, image_size: int, device: torch.device, devices: int = 1
) -> tuple[FitOptions, list[str]]:
    """The options with a memory layout, a number format and a compiler that the network can do with.

    Networks that reshape activations by ``view`` cannot compute in NHWC, some code minds bf16, and not everything
    compiles: what is ``auto``, and ``compile``, is given up where a step fails with it and succeeds without.

    Args:
        model: the network to be trained; it is not modified.
        options: as asked for.
        image_size: pixels of the square images ``[N, 3, H, W]``.
        device: where it will be trained.
        devices: how many ranks share a batch: batch norm cannot do with one image of a micro-batch.

    Returns:
        tuple[FitOptions, list[str]]: options that work, and what was given up and why, one line each.

    Raises:
        N2NError: the network takes no step, whatever is given up; or none in a format that was asked for by name; or
            its batch norms cannot be synchronised.
    """
    if options.sync_bn and devices > 1:
        check_synchronised(model)
    samples = max(1, min(SAMPLES, options.batch_size // devices // options.accumulate))
    why = _fails(model, options, image_size, device, samples)
    if why is None:
        return options, []
    for trial, said in _without(options):
        if _fails(model, trial, image_size, device, samples) is None:
            return trial, [f"{line}: {why}" for line in said]
    plain = replace(options, channels_last=False, precision="fp32", compile=False)
    reason = _fails(model, plain, image_size, device, samples)
    kind = type(model).__name__
    if reason is not None:
        few = " by one image at a time (batch_size, devices and accumulate leave no more)" if samples == 1 else ""
        raise N2NError(f"{kind} cannot be trained on {image_size} x {image_size} images{few}: {reason}")
    asked = [f"{key}={getattr(options, key)}" for key in ("channels_last", "precision", "compile")]
    raise N2NError(f"{kind} takes a step only without training.{' training.'.join(asked)}: {why}")


def _without(options: FitOptions) -> Iterator[tuple[FitOptions, list[str]]]:
    """Fewer and fewer of the choices that are ours to take back, with what is said then."""
    nhwc = ("training.channels_last=auto: off", {"channels_last": False}, options.channels_last == "auto")
    half = ("training.precision=auto: fp32", {"precision": "fp32"}, options.precision == "auto")
    compiled = ("training.compile=true: off", {"compile": False}, bool(options.compile))
    ours = [(line, change) for line, change, free in (nhwc, half, compiled) if free]
    for count in range(1, len(ours) + 1):
        for some in combinations(ours, count):
            changes: dict[str, Any] = {key: value for _, change in some for key, value in change.items()}
            yield replace(options, **changes), [line for line, _ in some]


def _fails(model: nn.Module, options: FitOptions, image_size: int, device: torch.device, samples: int) -> str | None:
    """Why a step of ``samples`` images fails, in one line; None: it does not."""
    channels_last = use_channels_last(options.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = autocast_dtype(options.precision, device, sum(p.numel() for p in model.parameters()))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        try:
            net = copy.deepcopy(model).to(device).to(memory_format=layout).train()
            run = torch.compile(net) if options.compile else net
            images = torch.randn(samples, 3, image_size, image_size, device=device).to(memory_format=layout)
            labels = torch.zeros(samples, dtype=torch.long, device=device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits, auxiliary = main_output(run(images))
            torch.stack([F.cross_entropy(head.float(), labels) for head in (logits, *auxiliary)]).sum().backward()
            with torch.inference_mode():
                F.cross_entropy(main_output(net.eval()(images))[0].float(), labels)
        except N2NError as error:
            return str(error)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever the network's code raises
            text = " ".join(str(error).split()) or type(error).__name__
            if "allocate memory" in text:  # on a CPU: no fault of the format
                raise
            return f"{type(error).__name__}: {text[:200]}"
    return None
