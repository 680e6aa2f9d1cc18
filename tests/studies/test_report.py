"""The report, its pictures and TensorBoard's overlay, read back as a reader would."""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from n2n_cli import studies
from n2n_cli.errors import N2NError
from n2n_cli.studies import comparisons, inline, pedigree, plots, report, settings, style

Study = Callable[..., Path]
COMMAND = "n2n compare baselines --seeds 3"


def write(study: Path) -> studies.Paths:
    return studies.write(study, title="Baselines <&>", command=COMMAND)


class Balance(HTMLParser):
    """Fails on a tag that is closed wrongly; gathers text and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Balance:
    parser = Balance()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


def test_a_whole_study(make_study: Study) -> None:
    study = make_study(seeds=3, variants=(("wider-lr0.3", "wider", 0.3),))
    paths = write(study)
    assert [path.name for path in paths[:3]] == ["report.html", "curves.png", "table.csv"]
    found = read(paths.report)
    page = paths.report.read_text()
    assert found.addresses == [] and "http" not in page and "@import" not in page  # asks nothing of a network
    assert page.count("<script") == 1 and len(page) < 700_000
    assert {path.name for path in study.iterdir() if path.is_file()} == {
        "report.html", "table.csv", "comparisons.csv", "curves.csv",
        *(f"{name}.{kind}" for name in ("curves", "costs", "lineage") for kind in ("png", "svg")),
    }  # fmt: skip
    text = found.text.replace("\u00a0", " ")
    for words in ("The data are synthetic", COMMAND, "Baselines <&>", "AMD EPYC 7763", "optim.weight_decay", "0.005"):
        assert words in text, words
    wider = next(arm for arm in studies.statistics(studies.collect(study)) if arm.key == "wider-lr0.3")
    assert wider.final is not None and wider.final.sd is not None
    assert f"{100 * wider.final.mean:.2f} ± {100 * wider.final.sd:.2f}" in text
    assert "built inception_bn_tiny(16 classes, width=0.5477) → wider to inception_bn_tiny(16 classes)" in text
    assert "all other settings are equal" in text
    assert not list(study.glob(".*"))  # no temporary file stays
    width, height = struct.unpack(">II", paths.curves.read_bytes()[16:24])
    assert paths.curves.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and width > 1500 and height > 1000


def test_settings_that_differ_are_owned_up_to(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=1)
    path = study / "random_init-seed0/config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    text = read(write(study).report).text
    assert "the runs differ in optim.momentum" in text and "all other settings are equal" not in text


def test_natural_images_are_not_called_synthetic(make_study: Study) -> None:
    assert "ynthetic" not in read(write(make_study(seeds=1, synthetic=False)).report).text


def test_a_study_under_way(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=2, unfinished=("wider-seed1", "random_init-seed1"))
    (study / "wider-seed1/metrics.jsonl").unlink()  # it has only just begun
    (study / "wider-seed1/config.yaml").unlink()
    text = read(write(study).report).text
    assert "unfinished, step 750" in text and "unfinished, step 0" in text


def test_a_run_that_ends_while_the_report_is_written_makes_it_stale(
    make_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the report is newer than that of the run then."""
    study = make_study(("teacher", "wider"), seeds=2)
    late = next(study.glob("wider*seed1")) / "done.json"
    told = late.read_bytes()
    late.unlink()
    draw = plots.curves

    def meanwhile(arms: Any) -> Any:
        late.write_bytes(told)
        return draw(arms)

    monkeypatch.setattr(plots, "curves", meanwhile)
    studies.write(study, title="t", command="c")
    assert not studies.current(study, "top1", report.SHARES)
    studies.write(study, title="t", command="c")
    assert studies.current(study, "top1", report.SHARES) and not studies.current(study, "top5", report.SHARES)


def test_only_a_teacher_and_a_run_of_no_epochs(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    rows = (study / "wider-seed0/metrics.jsonl").read_text().splitlines(keepends=True)
    (study / "wider-seed0/metrics.jsonl").write_text(rows[0])
    assert "exactly its teacher's accuracy" in read(write(study).report).text
    for file in (study / "wider-seed0").iterdir():
        file.unlink()
    assert "No student has finished" in read(write(study).report).text


def test_no_run_and_no_room_are_one_line(tmp_path: Path, make_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(N2NError, match="no run in"):
        write(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    study = make_study(("teacher",), seeds=1)
    monkeypatch.setattr("n2n_cli.studies.report.os.replace", full)
    with pytest.raises(N2NError, match=r"cannot write the report in .*study: No space left on device"):
        write(study)


def test_tensorboard_gets_mean_spread_and_one_layout(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=3)
    write(study)
    folder = write(study).overlay  # written anew, not added to
    assert len(list(folder.rglob("events.*"))) == 3
    layouts = 0
    for arm in studies.statistics(studies.collect(study)):
        events = EventAccumulator(str(folder / arm.key), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        assert {"val/top1", "train/loss", "spread/val/top1/upper"} <= set(events.Tags()["scalars"])
        final, band = events.Scalars("val/top1")[-1], events.Scalars("spread/val/top1/upper")[-1]
        assert arm.final is not None and arm.final.sd is not None
        assert final.value == pytest.approx(arm.final.mean) and final.step == arm.runs[0].run.last["step"]
        assert band.value == pytest.approx(arm.final.mean + arm.final.sd)
        if "custom_scalars__config__" in events.Tags()["tensors"]:
            layouts += 1
            tensor = events.Tensors("custom_scalars__config__")[0].tensor_proto
            layout = layout_pb2.Layout.FromString(tensor.string_val[0])
            charts = [chart.title for category in layout.category for chart in category.chart]
            assert charts[0].startswith("val/top1: mean") and {"val/top1", "train/loss", "lr"} <= set(charts)
    assert layouts == 1


def test_mean_curve_is_over_the_steps_that_all_seeds_have() -> None:
    steps, mean, sd = plots.mean_and_spread([([0, 10, 20], [0.1, 0.2, 0.9]), ([0, 20], [0.3, 0.7]), ([], [])])
    assert steps == [0, 20] and mean == pytest.approx([0.2, 0.8]) and sd == pytest.approx([0.141421356, 0.141421356])
    assert plots.mean_and_spread([]) == ([], [], [])
    assert plots.binned(([1, 50, 51, 100, 101], [1.0, 3.0, 4.0, 6.0, 7.0]), 50) == ([50, 100, 150], [2.0, 5.0, 7.0])


def test_the_same_study_draws_the_same_bytes(make_study: Study) -> None:
    arms = studies.statistics(studies.collect(make_study(("teacher", "wider"), seeds=2)))
    assert style.svg(plots.curves(arms)) == style.svg(plots.curves(arms))


def test_text_is_escaped_and_numbers_are_set_as_print_does() -> None:
    typeset = report.typeset
    assert typeset("<b> 3.1e-07 & 1 ± 2") == "&lt;b&gt; 3.1\u00a0×\u00a010<sup>−7</sup> &amp; 1\u00a0±\u00a02"
    assert (typeset(None), typeset("-"), typeset(0.1 + 0.2), typeset(3)) == ("–", "–", "0.3", "3")


def test_what_a_run_says_of_itself_is_text_and_never_markup(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    path = study / "wider-seed0/run.json"
    info = json.loads(path.read_text()) | {"data": "<i>x</i>", "label": 'Wi"der<script>', "command": "a <img src=x>"}
    path.write_text(json.dumps(info | {"machine": {"cpu": "<script>"}}))
    (study / "wider-seed0/config.yaml").write_text("data: {name: '<script>'}\n")
    page = write(study).report.read_text()
    assert page.count("<script") == 1 and "<i>" not in page and "<img src=x" not in page
    text = read(study / "report.html").text
    assert all(words in text for words in ("<i>x</i>", 'Wi"der<script>', "a <img src=x>", "{name: '<script>'}"))


def test_a_hairline_parts_the_arms_in_long_tables(make_study: Study) -> None:
    page = write(make_study(("teacher", "wider", "random_init"), seeds=2)).report.read_text()
    assert page.count('<tr class="group">') == 4 == page.count("<tr class")  # and of the way to thresholds
    assert "<td>–</td>" in page


def test_variants_of_one_arm_look_different(make_study: Study) -> None:
    (arm,) = studies.statistics(studies.collect(make_study(("wider",), seeds=1)))
    arms = [replace(arm, key=f"wider-{number}") for number in range(12)]
    for theme in (style.LIGHT, style.DARK):
        assert len({style.look(one, arms, theme) for one in arms}) == 12
        drawn = [style.look(one, arms, theme)[1:] for one in arms]
        assert len(set(drawn)) == 12  # for those who cannot tell the colours apart


def test_the_axis_switches_without_a_script_and_colours_are_the_pages(make_study: Study) -> None:
    page = write(make_study(seeds=3)).report.read_text()
    for unit in ("step", "images", "flops", "time_s"):
        assert page.count(f'id="unit-{unit}"') == 1 and f"#unit-{unit}:checked ~ .panels .unit-{unit}" in page
        assert page.count(f'class="unit unit-{unit}"') == 2  # accuracy and loss
    assert "<title>Net2Wider: 9" in page and "% at 2,250 optimizer steps</title>" in page
    drawn = page[page.index("<svg") :]
    assert "#0072b2" not in drawn and "var(--p-1)" in drawn
    dark = page[page.index("prefers-color-scheme: dark") :]
    assert "--p-1: #56a8e0" in dark and "--p-ink: #d8d8d4" in dark
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_flops_that_are_not_known_are_no_axis(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=1)
    for path in study.glob("*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"macs": None}))
    assert "unit-flops" not in write(study).report.read_text()


def test_tables_are_sorted_by_numbers() -> None:
    keys = {"91.42 ± 0.31": "91.42", "> 1,240 (3/5)": "1240", "−0.37": "-0.37", "+4.13": "4.13", "[-1.4, 2]": "-1.4",
            "1.2e+15 ± 3e+13": "1.2e+15", "at once": "", "-": "", None: "", 3: "3", "< 0.001": "0.001"}  # fmt: skip
    for cell, key in keys.items():
        assert report.sort_key(cell) == key


def test_no_path_of_this_machine_is_in_the_report(make_study: Study, tmp_path: Path) -> None:
    study = make_study(("teacher", "wider"), seeds=2)
    (study / "wider-seed1/done.json").unlink()
    reason = f"{tmp_path}/images/train/cat.jpg: cannot read it"
    (study / "wider-seed1/failed.json").write_text(json.dumps({"reason": reason, "arm": "wider", "seed": 1}))
    config = study / "wider-seed0/config.yaml"
    config.write_text(config.read_text().replace("out: runs", f"out: {tmp_path}/runs"))
    paths = studies.write(study, title="x", command=f"n2n compare out={tmp_path}/runs data.root='{tmp_path}/a b/c'")
    page = paths.report.read_text()
    assert str(tmp_path) not in page and "n2n compare out=runs" in page and "cat.jpg: cannot read it" in page
    assert settings.portable("3/4 of a/b at http://x/y and / or /z") == "3/4 of a/b at http://x/y and / or z"


def test_every_comparison_is_in_the_csv(make_study: Study) -> None:
    arms = studies.statistics(studies.collect(make_study(seeds=3)))
    lines = comparisons.comparisons_csv(arms).splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    (deeper,) = [row for row in rows if row["arm"] == "deeper" and row["quantity"] == "final_difference"]
    assert deeper["rival"] == "deep_random_init" and float(deeper["p"]) == float(deeper["p_holm"]) < 0.05
    censored = [row for row in rows if row["quantity"] == "speedup_steps_to_99" and row["arm"] == "deeper"]
    assert censored[0]["bound"] == ">" and float(censored[0]["mean"]) > 1 and censored[0]["low"] == ""


def test_the_lineage_is_drawn_from_teacher_to_student(make_study: Study) -> None:
    arms = studies.statistics(studies.collect(make_study(seeds=2)))
    wider, scratch = arms[1], arms[3]
    titles = [(one.title, one.lines[0]) for one in pedigree.stations(wider)]
    assert [title for title, _ in titles] == ["Teacher", "trained 12 epochs", "Net2Wider", "trained 6 epochs"]
    assert titles[0][1] == "4,512 parameters" and titles[2][1] == "10,123 parameters"
    assert [one.title for one in pedigree.stations(scratch)] == ["Random init", "trained 6 epochs"]
    drawn = inline.inline(pedigree.picture(arms), "lineage", "Lineage", inline.palette(arms))
    assert drawn.count(">Teacher<") == 1 and drawn.startswith("<svg viewBox=") and "http" not in drawn


def test_coordinates_are_shortened_and_words_are_not(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1, variants=(("wider-noise0.125", "wider", 0.1),))
    arms = studies.statistics(studies.collect(study))
    drawn = inline.inline(plots.curves(arms), "curves", "noise 0.125", inline.palette(arms))
    assert "noise 0.125" in drawn.partition(">")[2] and "noise 0.12<" not in drawn and "noise 0.12)" not in drawn
    assert not re.search(r' d="[^"]*\d\.\d{3}', drawn) and re.search(r' d="[^"]*\d\.\d{2}', drawn)
