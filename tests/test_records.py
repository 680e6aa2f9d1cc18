"""Records of a run: sealed, so that no changed bit is taken for what was written."""

import contextlib
import json
import random
from pathlib import Path

import pytest

from n2n_cli import records
from n2n_cli.errors import N2NError

INFO = {"arm": "wider", "seed": 3, "lr": 0.1, "lineage": {"steps": [{"op": "build"}], "classes": ["a", "ü"]}}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    records.write(path, {**INFO, "odd": {10: 1, 9: 2}})
    assert records.read(path, records.RUN) == {**INFO, "odd": {"10": 1, "9": 2}}
    assert not list(path.parent.glob(".tmp-*"))


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    records.write(path, INFO)
    good = path.read_bytes()
    silent = 0
    for place in range(len(good) * 8):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            silent += json.loads(damaged) != json.loads(good)  # the harm: without the seal it would count
        try:
            values = records.read(path, {})
        except records.Damaged:
            continue
        # The name of the seal, and white space: no value is another one.
        assert {key: values[key] for key in INFO} == INFO
    assert silent > 100


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"arm": NaN', "\xff", "[" * 100_000])
def test_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(N2NError, match=r"run\.json"):
        records.read(path, records.RUN)


@pytest.mark.parametrize("values", [{"arm": 3}, {"seed": "1"}, {"seed": True}, {"images": {"train": "x"}}, {"lr": []}])
def test_values_of_other_types(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "run.json"
    records.write(path, {**INFO, **values})
    with pytest.raises(records.Damaged, match=f"'{next(iter(values))}' is"):
        records.read(path, records.RUN)


def test_a_value_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    records.write(path, {"arm": "wider", "seed": None})
    with pytest.raises(records.Damaged, match="no 'seed' in it"):
        records.read(path, records.RUN, ["arm", "seed"])


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    assert records.rows(path) == []
    written = [{"step": step, "epoch": step / 3, "val/top1": None} for step in range(20)]
    data = b"".join(records.line(row) for row in written)
    path.write_bytes(data)
    assert records.rows(path) == written
    for cut in range(1, len(records.line(written[-1])) - 1):
        path.write_bytes(data[: -cut - 1])
        assert records.rows(path) == written[:-1]
    assert capsys.readouterr().err == ""  # a kill in the midst of a row is nothing to tell
    random.seed(0)
    for _ in range(200):
        damaged = bytearray(data)
        place = random.randrange(len(data))
        damaged[place] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        for row in records.rows(path):
            assert written[row["step"]] == {key: row[key] for key in ("step", "epoch", "val/top1")}
    assert "left out line" in capsys.readouterr().err
