"""The wheel, the source archive and the editable install carry ``conf`` and work from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEW = ["data.train_images=64", "data.val_images=32", "training.batch_size=32", "max_steps=1", "device=cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone has, without what lies there from builds and runs."""
    copy = tmp_path_factory.mktemp("clone") / "n2n"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    copy.mkdir()
    for name in ("n2n_cli", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(source: Path, kind: str) -> Path:
    code = f"import setuptools.build_meta as b; b.build_{kind}('dist')"
    run(sys.executable, "-c", code, cwd=source)
    (built,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def install(place: Path, *what: str | Path) -> Path:
    """A virtual environment at ``place`` that sees this one's libraries, with the project in it; its ``n2n``."""
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--ignore-installed",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run(sys.executable, "-m", "pip", "--python", place / "bin/python", "install", *options, *what, cwd=place)
    return place / "bin/n2n"


def works(n2n: Path, cwd: Path, package: Path) -> None:
    """``--cfg job`` and one training step, from a folder that is not the checkout; by the package meant."""
    cwd.mkdir()
    where = run(n2n.parent / "python", "-c", "import n2n_cli; print(n2n_cli.__file__)", cwd=cwd)
    assert Path(where.strip()).is_relative_to(package)
    assert "name: inception_bn_tiny" in run(n2n, "train", "teacher", "--cfg", "job", cwd=cwd)
    assert "stopped after max_steps=1" in run(n2n, "train", "teacher", *FEW, cwd=cwd)
    assert list(cwd.glob("runs/*/teacher-seed0/checkpoints/step_00000001-*.pt"))


def test_wheel(source: Path, tmp_path: Path) -> None:
    wheel = build(source, "wheel")
    there = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    for path in ROOT.glob("conf/**/*.yaml"):
        assert Path("n2n_cli") / path.relative_to(ROOT) in there
    for path in [*ROOT.glob("n2n_cli/**/*.py"), *ROOT.glob("n2n_cli/**/*.j2")]:
        assert path.relative_to(ROOT) in there
    assert not {str(name.parts[0]) for name in there} - {"n2n_cli", "n2n_cli-0.1.0.dist-info"}
    works(install(tmp_path / "env", wheel), tmp_path / "elsewhere", tmp_path / "env")


@pytest.mark.slow  # make installs so: .ci/run has seen it
def test_editable(source: Path, tmp_path: Path) -> None:
    n2n = install(tmp_path / "env", "-e", source)
    assert not list((tmp_path / "env").rglob("base.yaml"))  # no stale copy of conf
    works(n2n, tmp_path / "elsewhere", source)


def test_source_archive_builds_the_wheel(source: Path, tmp_path: Path) -> None:
    archive = build(source, "sdist")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.iterdir()
    there = zipfile.ZipFile(build(unpacked, "wheel")).namelist()
    assert {"n2n_cli/conf/base.yaml", "n2n_cli/studies/report.html.j2"} <= set(there)
    assert (unpacked / "Makefile").exists() and (unpacked / "tests/test_packaging.py").exists()


def test_constraints_pin_every_direct_dependency_and_name_no_host() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=\[; ]", line)[0] for line in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} == names
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        assert not re.search(r"https?://|--(extra-)?index-url", (ROOT / name).read_text()), name


def test_make_help_and_ci() -> None:
    out = run("make", "--no-print-directory", "help", cwd=ROOT)
    targets = {line.split()[0] for line in out.splitlines()}
    assert targets == {"help", "demo", "test", "test-slow", "faults", "bench", "lint", "types", "clean"}
    ci = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and all(
        f"make {what}\n" in ci for what in ("lint", "types", "test")
    )
