"""The schema of every command: names, types, ranges and units; of operators see `ops`. The values live in ``conf/``.

`config.check` checks what goes together and what exists. Imports neither torch nor Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from n2n_cli.convert import Rule
from n2n_cli.ops import Op
from n2n_cli.ranges import (
    Betas,
    Chance,
    Count,
    Device,
    Difficulty,
    Epochs,
    Magnitude,
    Metric,
    NotNegative,
    Pixels,
    Positive,
    Seed,
    Share,
    Target,
    Whole,
)


@dataclass
class Model:
    """``width`` multiplies the student's channels (the standard network), ``teacher_width`` the teacher's."""

    name: str
    width: Positive
    teacher_width: Positive
    extra_pairs: Annotated[int, Rule("a whole number from 0 to 64", lambda v: 0 <= v <= 64)]
    pairs_at: Literal["branch", "concat"]
    stem: Literal["auto", "imagenet", "small"]
    dropout: Share
    kwargs: dict[str, Any]


@dataclass
class SomeData:
    """Of a data set, what is not null: null leaves the default, in evaluate what the checkpoint says."""

    name: Literal["shapes", "imagefolder", "packed", "cifar10", "fake"] | None
    root: str | None
    image_size: Pixels | None
    resize_size: Pixels | None
    seed: Seed | None
    train_images: Count | None
    train_fraction: Target | None
    val_images: Count | None
    num_classes: Count | None
    augment: Literal["auto", "none", "crop", "imagenet", "randaugment", "trivial"] | None
    ra_magnitude: Magnitude | None
    random_erase: Chance | None
    crop_scale: list[Positive] | None
    crop_ratio: list[Positive] | None
    interpolation: Literal["bilinear", "bicubic"] | None
    difficulty: Difficulty | None
    holdout: Whole | None
    cache: Literal["auto", "memory", "packed", "none"] | None
    decoder: Literal["auto", "torchvision", "torchcodec", "pil"] | None
    on_error: Literal["raise", "skip"] | None


@dataclass
class Data(SomeData):
    name: Literal["shapes", "imagefolder", "packed", "cifar10", "fake"]
    seed: Seed
    train_fraction: Target
    augment: Literal["auto", "none", "crop", "imagenet", "randaugment", "trivial"]
    ra_magnitude: Magnitude
    random_erase: Chance
    crop_scale: list[Positive]
    crop_ratio: list[Positive]
    interpolation: Literal["bilinear", "bicubic"]
    holdout: Whole
    cache: Literal["auto", "memory", "packed", "none"]
    decoder: Literal["auto", "torchvision", "torchcodec", "pil"]
    on_error: Literal["raise", "skip"]


@dataclass
class Schedule:
    name: Literal["constant", "step", "exponential", "cosine"]
    warmup_epochs: NotNegative
    step_epochs: Positive
    factor: Positive


@dataclass
class Optim:
    """``lr`` is the teacher's initial rate for the global batch; a student's is ``lr * lr_scale``.

    ``lr_per_256``: the rate of a batch of 256 images, from which `config.check` makes ``lr``. ``momentum``, ``decay``
    and ``betas`` are null where the optimizer has none.
    """

    name: Literal["sgd", "rmsprop", "adam", "adamw"]
    lr: Positive
    lr_per_256: Positive | None
    momentum: Share | None
    weight_decay: NotNegative
    nesterov: bool
    decay: Share | None
    betas: Betas | None
    eps: Positive
    schedule: Schedule

    @property
    def arguments(self) -> dict[str, Any]:
        """What `training.optim.build_optimizer` takes of this, beside the rate."""
        others = ("lr", "lr_per_256", "schedule")
        return {key: value for key, value in vars(self).items() if key not in others and value is not None}


@dataclass
class DefaultEpochs:
    teacher: Epochs
    student: Epochs


@dataclass
class Training:
    """``batch_size`` counts global images a step, ``log_every`` and ``profile`` steps; epochs are named as such."""

    default_epochs: DefaultEpochs
    batch_size: Count
    label_smoothing: Share
    mixup_alpha: NotNegative
    cutmix_alpha: NotNegative
    clip_grad_norm: Positive | None
    accumulate: Count
    ema_decay: Share | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: Literal["auto"] | bool
    compile: bool
    sync_bn: bool
    compress_gradients: bool
    eval_batch_size: Count
    eval_precision: Literal["fp32", "bf16"]
    evals_first_epoch: Annotated[int, Rule("a whole number from 0 to 10000", lambda v: 0 <= v <= 10_000)]
    eval_every_epochs: Positive
    checkpoint_every_epochs: NotNegative
    checkpoint_every_minutes: NotNegative
    keep_at: list[Chance] | None
    log_every: Count
    profile: Whole
    aux_weight: NotNegative
    deterministic: bool


@dataclass
class Study:
    """``teacher_at``: the shares of the teacher's training after which the arms grow from it.

    ``stages``: the fractions of the training images that are there, one stage after the other; the arms are then
    ``strategies``: how the network comes to be at each stage: teacher or student (from random weights), or an op.
    """

    name: str
    title: str
    arms: list[str]
    teacher_at: list[Chance]
    stages: list[Target] | None
    strategies: dict[str, list[str]]


@dataclass
class Launch:
    max_restarts: Whole
    shard: bool


@dataclass
class RunConfig:
    """What every run has. ``out`` and the keys below it say where and how to run, not what it is.

    ``weights``: a state_dict that the network (a student's: its teacher) starts from; ``weights_key``: where it stands
    in its file.
    """

    seed: Seed
    epochs: Epochs
    model: Model
    data: Data
    optim: Optim
    training: Training
    weights: str | None
    weights_key: str | None
    out: str
    devices: Count
    device: Device
    workers: Literal["auto"] | Whole
    progress: bool | None
    max_steps: Count | None
    prepare_only: bool
    accept_images: bool
    accept_versions: bool
    launch: Launch


@dataclass
class Student(RunConfig):
    """``teacher_model``: who built the teacher of ``teacher`` or ``weights``, where that is not ``model``."""

    teacher: str | None
    teacher_model: str | None
    teacher_epochs: Epochs


@dataclass
class Grow(Student):
    lr_scale: Positive | None
    op: Op


@dataclass
class Compare(Student):
    lr_scale: Positive | list[Positive] | None
    ops: dict[str, Op]
    study: Study
    seeds: Count
    jobs: Literal["auto"] | Count
    retry: bool
    dry_run: bool
    metric: Metric
    thresholds: list[Target]


@dataclass
class CompareRuns:
    """``runs``: run folders, or folders of run folders; ``out``: of the report (null: ./report-NAMES)."""

    runs: list[str]
    out: str | None
    metric: Metric
    thresholds: list[Target]


@dataclass
class Evaluate:
    """``model``: a ``package.module:function`` that the checkpoint may be built by; other names have no effect."""

    checkpoint: str
    model: str | None
    data: SomeData
    device: Device
    workers: Literal["auto"] | Whole
    batch_size: Count | None
    json: bool


def is_picture(name: Any) -> bool:
    return str(name).lower().endswith((".svg", ".png"))


@dataclass
class Inspect:
    """``op`` is tried without a proof; ``show``: the tables (null: those of the op), ``rows``: their lines at most.

    ``model``: as for `Evaluate`, or the network to show; ``weights``: a state_dict for a named network.
    """

    target: str
    model: str | None
    weights: str | None
    weights_key: str | None
    num_classes: Count
    image_size: Pixels | None
    width: Positive
    kwargs: dict[str, Any]
    op: Op | None
    show: list[Literal["layers", "groups", "sites"]] | None
    rows: Count | None
    picture: Annotated[str, Rule("a file name that ends in .svg or .png", is_picture)] | None
    json: bool


@dataclass
class Export:
    """``model``: as for `Evaluate`; ``to``: the file to be made."""

    checkpoint: str
    model: str | None
    format: Literal["safetensors", "torch_export", "onnx"]
    to: str | None


@dataclass
class DataTool:
    progress: bool | None


@dataclass
class DataCheck(DataTool):
    root: str
    workers: Literal["auto"] | Whole
    json: bool


@dataclass
class DataPrepare(DataTool):
    """``src``: a folder with the official archives; ``dst``: the image folder to be made."""

    dataset: Literal["imagenet"]
    src: str
    dst: str
    verify: bool


@dataclass
class DataPack(DataTool):
    """``root``: an image folder; ``to``: the folder to be made."""

    root: str
    to: str
    size: Pixels
    format: Literal["jpeg", "raw"]
    quality: Annotated[int, Rule("a whole number from 1 to 100", lambda v: 1 <= v <= 100)]
    workers: Literal["auto"] | Whole


SCHEMAS: dict[str, type[Any]] = {
    "train_teacher": RunConfig,
    "train_student": RunConfig,
    "grow": Grow,
    "compare": Compare,
    "compare_runs": CompareRuns,
    "evaluate": Evaluate,
    "inspect": Inspect,
    "export": Export,
    "data_check": DataCheck,
    "data_prepare": DataPrepare,
    "data_pack": DataPack,
}
MACHINE = (
    "out",
    "devices",
    "device",
    "workers",
    "progress",
    "max_steps",
    "prepare_only",
    "accept_images",
    "accept_versions",
    "launch",
    "jobs",
    "retry",
    "dry_run",
)
"""Keys that say where and how a run is made. They may differ between runs that are the same."""
NO_MATTER = (
    "data.cache",
    "data.decoder",
    "data.on_error",
    "optim.lr_per_256",  # optim.lr says what it makes
    "training.checkpoint_every_minutes",
    "training.keep_at",
    "training.profile",
)
"""Keys of a setting that change no weight of its runs, `matters` aside."""


def matters(key: str, value: Any) -> bool:
    """Whether this value of a setting's key may change the weights of its runs: packed images have other pixels."""
    return key not in NO_MATTER or (key, value) == ("data.cache", "packed")
