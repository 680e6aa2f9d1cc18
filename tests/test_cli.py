"""The command line: help at once, flags, completion, and one line for everything that is typed wrong."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from n2n_cli import cli, schema
from n2n_cli.completion import complete
from n2n_cli.errors import N2NError
from n2n_cli.overrides import command_keys, quote, translate

TABLE = (Path(__file__).parent / "wrong_invocations.txt").read_text()
WRONG = re.findall(r"^\$ n2n (.*)\n(n2n: error: .*)$", TABLE, re.MULTILINE)


def n2n(*words: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "n2n_cli", *words]
    path = {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    path["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    return subprocess.run(command, cwd=cwd, env=path, capture_output=True, text=True, timeout=120)


def test_the_table_is_whole() -> None:
    assert len(WRONG) >= 80
    assert len(WRONG) == TABLE.count("\n$ n2n ") and len(set(WRONG)) == len(WRONG)


@pytest.mark.parametrize(("typed", "line"), WRONG, ids=[typed for typed, _ in WRONG])
def test_wrong(
    typed: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(typed)) == 2
    out, err = capfd.readouterr()
    assert re.sub(r"-[0-9a-f]{8}/", "-HASH/", err) == line + "\n"
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "index", [WRONG.index(pair) for pair in WRONG if "optim.lr=-1" in pair[0] or "techer" in pair[0]]
)
def test_wrong_in_a_process(index: int, tmp_path: Path) -> None:
    typed, line = WRONG[index]
    result = n2n(*shlex.split(typed), cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line + "\n")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_job_tells_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """What only the job itself can find out: Hydra has made its folder by then."""
    for part in ("train/a", "train/b", "val/a"):
        (tmp_path / "images" / part).mkdir(parents=True)
    result = n2n("train", "teacher", "data=imagefolder", "data.root=images", "device=cpu", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"n2n: error: .*\n", result.stderr), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_help_is_instant_and_imports_nothing_heavy(tmp_path: Path) -> None:
    took = []
    for _ in range(5):
        start = time.perf_counter()
        result = n2n("--help", cwd=tmp_path)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.2, took
    assert "n2n compare" in result.stdout and result.returncode == 0
    for argv in ([], ["--help"], ["--version"], ["train", "--help"], ["completion", "bash"]):
        code = f"import sys; from n2n_cli import cli; cli.main({argv}); heavy = {{'torch', 'hydra', 'yaml'}}"
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; sys.exit(bool(heavy & set(sys.modules)))"],
            cwd=Path(cli.__file__).parents[1],
        )
        assert done.returncode == 0, argv


@pytest.mark.parametrize("line", ["train teacher out=a\udcff", "inspect \udcff.pt", "data check \udcff", "\udcff"])
def test_a_word_that_is_not_utf8(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    odd = line.split()[-1]
    assert capsys.readouterr().err == f"n2n: error: cannot read {odd!r}: expected UTF-8 text\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from n2n_cli import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"n2n {__version__}\n"


@pytest.mark.parametrize(
    ("command", "typed", "overrides"),
    [
        ("grow", "--op wider", ["op=wider"]),
        ("grow", "--op=wider --factor 1.5", ["op=wider", "op.factor=1.5"]),
        ("grow", "--teacher-epochs 3 --teacher 'a (b)'", ["teacher_epochs=3", "teacher='a (b)'"]),
        ("grow", "--sites a,b", ["op.sites=[a,b]"]),
        ("grow", "op.layers={a:2}", ["++op.layers={a:2}"]),
        ("grow", """'op.layers={"a.3*": 1.5, "b": 96}'""", ["++op.layers={a.3*: 1.5, b: 96}"]),
        ("grow", """--layers '{"a.*": 2}'""", ["++op.layers={a.*: 2}"]),
        ("train_teacher", "--lr 0.1 --optim.momentum=0", ["optim.lr=0.1", "optim.momentum=0"]),
        ("train_teacher", "--compile --seed 1", ["training.compile=true", "seed=1"]),
        ("train_teacher", "--compile false -m --seed 0,1", ["training.compile=false", "seed=0,1"]),
        ("train_teacher", "--seed 1 --max-steps=5", ["seed=1", "max_steps=5"]),
        ("train_teacher", "--model.kwargs.zero_init_residual", None),
        ("train_teacher", "model.kwargs.a=1 +x=1 ~y", ["++model.kwargs.a=1", "+x=1", "~y"]),
        ("compare", "baselines --lr-scale 0.1,0.3,1", ["study=baselines", "lr_scale=[0.1,0.3,1]"]),
        ("compare", "--lr-scale 0.3", ["lr_scale=0.3"]),
        ("evaluate", "runs/a --root /x", ["checkpoint=runs/a", "data.root=/x"]),
        ("inspect", "resnet18 --json", ["target=resnet18", "json=true"]),
    ],
)
def test_flags(command: str, typed: str, overrides: list[str] | None) -> None:
    if overrides is None:
        with pytest.raises(N2NError, match="needs a value"):
            translate(command, shlex.split(typed))
    else:
        assert translate(command, shlex.split(typed)).overrides == overrides


def test_hydras_flags_pass() -> None:
    line = translate("train_teacher", ["-m", "--config-dir", "/tmp", "-cn", "x", "seed=1", "--info"])
    assert line.argv == ["--multirun", "--config-dir=/tmp", "--config-name=x", "--info=all", "seed=1"]
    assert not line.runs


@pytest.mark.parametrize("path", ["a b", "it's", 'say "x"', "a=b", "a,b", "{x}", "ü", "back\\slash", "plain/path-1.0"])
def test_quoted_paths_come_back(path: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"teacher={quote(path)}").value() == path


def test_every_flag_of_every_command_resolves() -> None:
    for command in schema.SCHEMAS:
        keys = command_keys(command)
        for key in keys:
            needed = [f"{name}=x" for name in ("checkpoint", "target", "root", "to", "dataset", "src", "dst")]
            assert translate(command, [f"--{key.replace('_', '-')}=a:b", *needed]).overrides


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("n2n gr", ["grow"]),
        ("n2n train ", ["teacher", "student"]),
        ("n2n train teacher model=inception_b", ["model=inception_bn", "model=inception_bn_tiny"]),
        ("n2n train teacher data=shapes optim=r", ["optim=rmsprop"]),
        ("n2n train teacher optim=a", ["optim=adam", "optim=adamw"]),
        ("n2n grow op=deeper op.pa", ["op.pairs="]),
        ("n2n grow --teacher-", ["--teacher-epochs", "--teacher-model"]),
        ("n2n compare fig", ["fig4", "fig5", "fig6"]),
        ("n2n compare lif", ["lifelong"]),
        ("n2n completion ", ["bash", "zsh", "fish"]),
        ("n2n nonsense ", []),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    assert complete(line) == expected


def test_completion_in_bash(tmp_path: Path) -> None:
    """The script as bash runs it; n2n itself is this interpreter."""
    program = f'n2n() {{ {shlex.quote(sys.executable)} -m n2n_cli "$@"; }}; export -f n2n'
    script = (
        f"{program}; eval \"$(n2n completion bash)\"; COMP_LINE='n2n train tea'; COMP_POINT=13; "
        'COMP_WORDS=(n2n train tea); COMP_CWORD=2; export COMP_LINE; _n2n; echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", script], cwd=Path(cli.__file__).parents[1], capture_output=True, text=True)
    assert result.stdout.strip() == "teacher", result


@pytest.fixture
def shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``n2n`` in the PATH of a shell, as this interpreter."""
    root = Path(cli.__file__).parents[1]
    program = tmp_path / "n2n"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m n2n_cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.usefixtures("shells")
def test_completion_in_fish() -> None:
    for line, expected in (("n2n train tea", "teacher"), ("n2n train teacher optim.lr_", "optim.lr_per_256=")):
        script = f'n2n completion fish | source; complete -C "{line}"'
        result = subprocess.run(["fish", "-c", script], capture_output=True, text=True)
        assert result.stdout.strip() == expected, result


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.usefixtures("shells")
def test_completion_in_zsh() -> None:
    """On a terminal, as zsh completes nowhere else: the word that Tab leaves on the line."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, b'PS1=; autoload -U compinit; compinit -u; eval "$(n2n completion zsh)"; echo re""ady\n')
        _until(terminal, b"\nready")
        os.write(terminal, b"n2n train tea\t")
        _until(terminal, b"train teacher")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _until(terminal: int, words: bytes) -> None:
    said, deadline = b"", time.monotonic() + 60
    while words not in said:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        said += os.read(terminal, 1000)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr(cli, "_main", stop)
    assert cli.main(["grow"]) == 130
    assert capsys.readouterr().err == "n2n: interrupted: stopped after step 3\n"
