import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import DENSE, LAYERS, REPOSITORY, make_study

from sparseswaps.base.errors import InputError
from sparseswaps.report import tables
from sparseswaps.workflow import config as studies

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def cells(study):
    return tables.cells_table(study)


def row(cells: pd.DataFrame, **where) -> pd.Series:
    for name, value in where.items():
        cells = cells[cells[name] == value]
    assert len(cells) == 1
    return cells.iloc[0]


def test_columns_are_the_contract(cells, study):
    assert list(cells) == [
        *("model", "calibration", "seed", "pattern", "warmstart", "refinement"),
        *("samples", "propagate", "method", "stop", "freeze", "shrinkage", "between_rows", "reconstruction"),
        *("max_swaps", "optimum", "sparsity", "error_reduction", "held_out_error_reduction"),
        *("swaps_per_row", "certified", "seconds", "perplexity/held_out", "seqlen/held_out"),
        *("cloze/acc", "cloze/acc_stderr", "choice/acc", "choice/acc_norm"),
    ]
    layers = tables.layers_table(study)
    assert list(layers) == [
        *("model", "calibration", "seed", "pattern", "warmstart", "refinement", "block", "layer", "d_out", "d_in"),
        *("tokens", "unrouted", "kept", "loss_before", "loss_after", "held_out_before", "held_out_after"),
        *("swaps", "max_row_swaps"),
        *("rows", "rows_certified", "seconds"),
    ]
    assert len(cells) == 1 + 2 * 2 * 4
    assert len(layers) == 2 * 2 * 3 * 2 * 7  # none and dense have no rows
    assert "none" not in set(layers["refinement"])


def test_reductions_are_means_over_layers(cells):
    # wanda, optimum: 0.3 + 0.02 k + 0.01 block, mean over k = 0..6 and block = 0, 1: 0.3 + 0.06 + 0.005
    refined = row(cells, pattern="60%", warmstart="wanda", refinement="swaps")
    assert refined["error_reduction"] == pytest.approx(36.5)
    assert refined["held_out_error_reduction"] == pytest.approx(0.8 * 36.5)
    assert refined["swaps_per_row"] == 20
    assert refined["certified"] == 1
    assert refined["optimum"]
    assert pd.isna(refined["max_swaps"])
    assert refined["seconds"] == pytest.approx(2 * 20 * sum(d_out for d_out, _ in LAYERS.values()) / 1e4)

    budget = row(cells, pattern="60%", warmstart="wanda", refinement="swaps-5")
    assert (budget["max_swaps"], budget["optimum"], budget["certified"]) == (5, False, 0)
    none = row(cells, pattern="60%", warmstart="wanda", refinement="none")
    assert (none["max_swaps"], none["optimum"], none["error_reduction"], none["swaps_per_row"]) == (0, False, 0, 0)


def test_dense_row_is_empty_but_for_what_was_measured(cells):
    dense = row(cells, pattern="dense")
    assert dense[["calibration", "seed", "warmstart", "refinement", "max_swaps", "error_reduction"]].isna().all()
    assert (dense["perplexity/held_out"], dense["seqlen/held_out"], dense["cloze/acc"]) == (DENSE, 256, 0.5)


def test_sparsity_is_counted(cells):
    assert row(cells, pattern="dense")["sparsity"] == 0
    assert set(cells.loc[cells["pattern"] == "2:4", "sparsity"]) == {0.5}
    # int(0.6 * 192) = 115 of 192 are pruned, and int(0.6 * 512) = 307 of 512
    narrow = sum(d_out for d_out, d_in in LAYERS.values() if d_in == 192)
    counted = (115 * narrow + 307 * 192) / (192 * narrow + 512 * 192)
    assert cells.loc[cells["pattern"] == "60%", "sparsity"].tolist() == pytest.approx([counted] * 8)


def test_no_error_before_and_after_is_no_reduction():
    before, after = pd.Series([0.0, 4.0, 0.0]), pd.Series([0.0, 1.0, 1.0])
    assert list(tables.error_reduction(before, after)) == [0, 75, -np.inf]


def test_missing_column_and_missing_file_are_named(study, tmp_path):
    broken = replace(study[-1], losses=study[-1].losses.drop(columns="held_out_after"))
    with pytest.raises(InputError, match=r"wanda.*'held_out_after'"):
        tables.layers_table([broken])
    with pytest.raises(InputError, match=r"cells\.csv: no such file"):
        tables.read_table(tmp_path / "cells.csv")
    (tmp_path / "cells.csv").touch()
    with pytest.raises(InputError, match=r"cells\.csv: not a CSV table"):
        tables.read_table(tmp_path / "cells.csv")


def test_no_refined_cell_at_all(study):
    frame = tables.cells_table(study[:1])
    assert tables.layers_table(study[:1]).empty
    assert tables.headline(frame) == []
    assert tables.summary(frame).empty


def test_summary(cells):
    summary = tables.summary(cells)
    assert list(summary) == [
        *("model", "calibration", "pattern", "warm start"),
        *(f"perplexity on held_out (seqlen 256): {which}" for which in ("dense", "warm start", "swaps")),
        "error reduction, calibration (%): swaps",
        "error reduction, held out (%): swaps",
        "swaps per row: swaps",
        *(f"mean of 2 tasks, acc (%): {which}" for which in ("dense", "warm start", "swaps")),
        *(f"cloze acc (%): {which}" for which in ("dense", "warm start", "swaps")),
        *(f"choice acc (%): {which}" for which in ("dense", "warm start", "swaps")),
    ]
    wanda = row(summary, pattern="60%", **{"warm start": "wanda"})
    assert wanda["perplexity on held_out (seqlen 256): dense"] == "8.02"
    assert wanda["perplexity on held_out (seqlen 256): warm start"] == "25.26"  # 8.02 * 1.4 * 1.5^2
    assert wanda["perplexity on held_out (seqlen 256): swaps"] == "16.84"
    assert wanda["error reduction, calibration (%): swaps"] == "36.5"
    assert wanda["swaps per row: swaps"] == "20.0"
    assert wanda["mean of 2 tasks, acc (%): dense"] == "45.0"
    assert wanda["cloze acc (%): swaps"] == "40.0"


def test_summary_over_seeds():
    summary = tables.summary(tables.cells_table(make_study(seeds=2)))
    assert len(summary) == 4
    wanda = row(summary, pattern="60%", **{"warm start": "wanda"})
    assert wanda["perplexity on held_out (seqlen 256): dense"] == "8.02"
    assert wanda["perplexity on held_out (seqlen 256): swaps"] == "17.34 ± 0.71"  # 16.842 and 17.842
    assert wanda["error reduction, calibration (%): swaps"] == "37.0 ± 0.7"  # 36.5 and 37.5


def test_seqlens_never_share_a_column(cells):
    other = cells.assign(model="nano", **{"seqlen/held_out": 2048})
    summary = tables.summary(pd.concat([cells, other], ignore_index=True))
    assert summary["perplexity on held_out (seqlen 256): swaps"].notna().tolist() == [True] * 4 + [False] * 4
    assert summary["perplexity on held_out (seqlen 2048): swaps"].isna().tolist() == [True] * 4 + [False] * 4


def test_headline_takes_the_furthest_of_each_family(cells):
    assert tables.headline(cells) == ["swaps"]
    assert tables.headline(cells[~cells["optimum"]]) == ["swaps-5"]
    other = cells[cells["refinement"] == "swaps-5"].assign(refinement="dsnot", max_swaps=50)
    assert tables.headline(pd.concat([cells, other], ignore_index=True)) == ["swaps", "dsnot"]


def test_methods_beside_swaps(study):
    """DSnoT, early stopping and reconstruction: none is a smaller budget of another, none claims the optimum."""
    start, swaps = (next(m for m in study if m.facts.get("refinement") == name) for name in ("none", "swaps"))
    others = {
        "none": {"max_swaps": 0},
        "dsnot": {"method": "dsnot"},
        "early": {"stop": "held_out"},
        "swaps": {},
        "swaps-5+ls": {"max_swaps": 5, "reconstruction": "ls"},
        "swaps+ls": {"reconstruction": "ls"},
        "none+obs": {"max_swaps": 0, "reconstruction": "obs"},
    }
    measured = [study[0]]
    for name, settings in others.items():
        facts = (start if name == "none" else swaps).facts | {"refinement": name} | settings
        measured.append(replace(swaps, facts=facts))
    frame = tables.cells_table(measured)
    ended = frame.set_index("refinement")
    assert list(ended.index[ended["optimum"]]) == ["swaps", "swaps+ls"]
    assert ended["max_swaps"].isna().tolist() == [True, False, True, True, True, False, True, False]
    assert tables.headline(frame) == ["dsnot", "early", "swaps", "swaps+ls", "none+obs"]
    assert tables.principal(frame) == "swaps"
    assert tables.principal(frame.query("refinement != 'swaps'")) == "early"
    assert tables.principal(frame.query("refinement in ['none', 'none+obs']")) == "none+obs"
    assert tables.principal(frame.query("refinement == 'none'")) is None
    summary = tables.summary(frame)
    assert [name for name in summary if name.startswith("swaps per row")] == [
        f"swaps per row: {name}" for name in ("dsnot", "early", "swaps")
    ]
    assert len(tables.layers_table(measured)) == 6 * 14


def test_curves_are_means_over_layers_that_were_looked_at(study):
    ended = pd.DataFrame({"block": 0, "layer": "a", "budget": [0, 1, 3], "loss": [10.0, 8.0, 7.0], "held_out": None})
    went_on = pd.DataFrame({"block": 0, "layer": "b", "budget": [0, 1, 2, 5], "loss": [2.0, 1.0, 0.8, 0.6]})
    nothing = pd.DataFrame({"block": 1, "layer": "a", "budget": [0, 0], "loss": [0.0, 0.0], "held_out": [0.0, 0.0]})
    curve = pd.concat([ended, went_on.assign(held_out=[4.0, 3.0, 3.0, 5.0]), nothing])
    swaps = replace(study[4], curves=curve)
    table = tables.curves_table([study[0], swaps])
    assert list(table) == [*tables.COORDINATES, "max_swaps", "budget", "error", "held_out_error"]
    assert table["refinement"].unique() == ["swaps"]
    assert table["budget"].tolist() == [0, 1, 5]  # at 2 a was on its way, at 3 b was
    assert table["error"].tolist() == pytest.approx([100, (80 + 50 + 100) / 3, (70 + 30 + 100) / 3])
    assert table["held_out_error"].tolist() == pytest.approx([100, 75, 125])  # of b alone: 0 of 0 is no error at all
    with pytest.raises(InputError, match="swaps: curves without the column 'budget'"):
        tables.curves_table([replace(swaps, curves=curve.drop(columns="budget"))])
    assert list(tables.curves_table(study[:1])) == list(table)


@pytest.fixture
def published():
    where = {"model": "pico", "pattern": "60%", "warmstart": "wanda", "refinement": "none", "source": "a paper"}
    rows = [{"measure": "perplexity/held_out", "value": 21.5}, {"measure": "accuracy", "value": 24.0}]
    rows.append({"measure": "accuracy", "value": 25.0, "refinement": "dsnot"})
    rows.append(
        {"measure": "perplexity/held_out", "value": 8, "pattern": "dense", "warmstart": None, "refinement": None}
    )
    return pd.DataFrame([where | row for row in rows])[tables.PUBLISHED]


def test_published_numbers_stand_beside_means_over_seeds(published, tmp_path):
    published.to_csv(tmp_path / "published.csv", index=False)
    read = tables.read_published(tmp_path / "published.csv")
    pd.testing.assert_frame_equal(read, published, check_dtype=False)
    table = tables.beside_published(tables.cells_table(make_study(seeds=2)), read)
    perplexity, accuracy = DENSE * 1.4 * 1.5**2 + 0.5, (30 + 15) / 2
    assert table["published"].tolist() == [21.5, 24, 25, 8]
    assert table["measured"].tolist() == pytest.approx([perplexity, accuracy, float("nan"), DENSE], nan_ok=True)
    assert table["difference"].tolist() == pytest.approx([perplexity - 21.5, -1.5, float("nan"), 0.02], nan_ok=True)
    assert table["seqlen"].tolist() == [256, pd.NA, pd.NA, 256]
    assert tables.display(table).loc[2, ["calibration", "measured", "difference"]].tolist() == ["-"] * 3


def test_each_calibration_stands_beside_a_published_number(cells, published):
    both = pd.concat([cells, cells.query("pattern != 'dense'").assign(calibration="wiki")])
    table = tables.beside_published(both, published)
    assert table["calibration"].fillna("-").tolist() == ["c4", "wiki", "c4", "wiki", "-", "-"]


def test_published_numbers_are_checked(published, tmp_path):
    path = tmp_path / "numbers.csv"
    for wrong, message in (
        (published.drop(columns="measure"), "numbers.csv: without the column 'measure'"),
        (published.astype({"value": "str"}).replace({"value": "24.0"}, "24,0"), "numbers.csv: column 'value': '24,0'"),
    ):
        wrong.to_csv(path, index=False)
        with pytest.raises(InputError, match=re.escape(message)):
            tables.read_published(path)


def test_paper_is_published_in_full():
    """Every number of the paper's Table 2 is for a cell of its configuration."""
    config = yaml.safe_load((CONFIGS / "paper.yaml").read_text())
    published = tables.read_published(CONFIGS / "paper-table2.csv")
    assert config["published"] == "configs/paper-table2.csv"
    for column, key in (("model", "models"), ("pattern", "patterns"), ("warmstart", "warmstarts")):
        assert set(published[column]) == set(config[key])
    assert set(published["refinement"]) == set(config["refinements"])
    texts = {f"perplexity/{text}" for text in config["evaluation"]["perplexity"]}
    assert set(published["measure"]) == texts | {"accuracy"}
    assert len(published) == len(published.drop_duplicates(tables.PUBLISHED[:5])) == 2 * 5 * (5 + 5)
    # the five models are on the hub only; all the rest of the configuration can be checked here
    here = config | {"models": {"embedded": {"source": "embedded"}}, "published": None}
    here["calibrations"]["c4"]["seqlen"] = here["evaluation"]["perplexity"]["wikitext2"]["seqlen"] = 256
    assert len(list(studies.cells(studies.check(here)))) == 2 * 2 * 3


def ablations() -> list[Path]:
    return sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", ablations(), ids=lambda path: path.stem)
def test_ablations_are_valid_and_say_how_to_run_them(path):
    config = studies.check(yaml.safe_load(path.read_text()))
    assert config["name"] == f"ablation-{path.stem}"
    assert f"#   snakemake --configfile configs/ablations/{path.name}\n" in path.read_text()


def test_what_studies_share_has_one_meaning():
    """Artifacts of the embedded model lie in folders by these names, whatever the study."""
    meanings: dict[tuple[str, str], set[str]] = {}
    for path in [*ablations(), CONFIGS / "quick.yaml", CONFIGS.parent / "config.yaml"]:
        config = studies.check(yaml.safe_load(path.read_text()))
        named = {key: config[key] for key in ("calibrations", "refinements", "reconstructions")}
        named |= {"texts": config["evaluation"]["perplexity"], "": {"checkpoints": config["checkpoints"]}}
        for key, entries in named.items():
            for name, settings in entries.items():
                meanings.setdefault((key, name), set()).add(json.dumps(settings, sort_keys=True))
    assert [name for name, settings in meanings.items() if len(settings) > 1] == []


def test_best_marks_perplexity_and_accuracy_per_pattern(cells):
    summary = tables.summary(cells)
    marks = tables.best(summary)
    perplexity = marks["perplexity on held_out (seqlen 256): swaps"]
    assert perplexity.tolist() == [False, True, False, True]  # wanda, at either pattern
    assert marks["cloze acc (%): swaps"].all()  # a tie
    assert not marks["cloze acc (%): dense"].any()
    assert not marks["error reduction, calibration (%): swaps"].any()


def test_select_keeps_the_dense_row(cells):
    other = cells[cells["pattern"] != "dense"].assign(calibration="wiki")
    both = pd.concat([cells, other], ignore_index=True)
    pd.testing.assert_frame_equal(tables.select(both, "pico", "c4"), cells)
    assert len(tables.select(both, "pico", "wiki")) == len(cells)


def test_csv_round_trip(study, cells, tmp_path):
    awkward = cells.assign(calibration=cells["calibration"].where(cells["pattern"] == "dense", "128"))
    awkward.loc[1, "refinement"] = "NA"
    tables.write_table(awkward, tmp_path / "out" / "cells")
    pd.testing.assert_frame_equal(tables.read_table(tmp_path / "out" / "cells.csv"), awkward, check_dtype=False)
    tables.write_table(cells, tmp_path / "out" / "cells")
    pd.testing.assert_frame_equal(
        tables.summary(tables.read_table(tmp_path / "out" / "cells.csv")), tables.summary(cells)
    )
    layers = tables.layers_table(study)
    tables.write_table(layers, tmp_path / "v1.0 layers")  # a dot in the stem is no suffix
    pd.testing.assert_frame_equal(tables.read_table(tmp_path / "v1.0 layers.csv"), layers, check_dtype=False)
    assert {path.name for path in tmp_path.iterdir()} == {"out"} | {
        f"v1.0 layers.{kind}" for kind in ("csv", "md", "tex")
    }


def test_markdown_and_latex_escape(tmp_path):
    frame = pd.DataFrame(
        {"a|b_c (%)": ["x|y", "50%", None], "ppl": ["1.50 ± 0.10", "2.00", "3.00"], "ok": [True, False, True]}
    )
    tables.write_table(frame, tmp_path / "table")
    lines = (tmp_path / "table.md").read_text().splitlines()
    parsed = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert parsed[0] == [r"a\|b_c (%)", "ppl", "ok"]
    assert [bool(re.fullmatch("-+:", cell)) for cell in parsed[1]] == [False, True, False]
    assert parsed[2:] == [[r"x\|y", "1.50 ± 0.10", "yes"], ["50%", "2.00", "no"], ["-", "3.00", "yes"]]
    latex = (tmp_path / "table.tex").read_text()
    assert r"\begin{tabular}{lrl}" in latex
    assert r"\toprule" in latex
    assert r"\bottomrule" in latex
    assert r"b\_c (\%)" in latex
    assert r"50\% &" in latex
    assert r"1.50 $\pm$ 0.10" in latex
    assert "- & 3.00" in latex
    assert not re.search(r"(?<!\\)[%_]", latex)


def test_written_summary_has_a_table_for_each_measure(cells, tmp_path):
    tables.write_measures(tables.summary(cells), tables.best(tables.summary(cells)), tmp_path / "summary")
    read = pd.read_csv(tmp_path / "summary.csv")
    assert list(read) == list(tables.summary(cells))
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "### perplexity on held_out (seqlen 256)",
        "### error reduction, calibration (%)",
        "### error reduction, held out (%)",
        "### swaps per row",
        *(f"### {name} acc (%)" for name in ("mean of 2 tasks,", "cloze", "choice")),
    ]
    assert [re.sub(" +", " ", line) for line in lines[2:6:3]] == [
        "| model | calibration | pattern | from | dense | warm start | swaps |",
        "| pico | c4 | 60% | wanda | 8.02 | 25.26 | **16.84** |",
    ]
    latex = (tmp_path / "summary.tex").read_text()
    assert latex.count(r"\begin{tabular}") == 7
    assert r"\multicolumn{3}{c}{perplexity on held\_out (seqlen 256)}" in latex
    assert r"25.26 & \textbf{16.84} \\" in latex


def test_display_numbers():
    frame = pd.DataFrame({"x": [0.0, 1234567.0, 12345678.0, 0.00012345, np.nan, 256.0, np.inf]})
    assert tables.display(frame)["x"].tolist() == ["0", "1234567", "1.235e+07", "0.0001234", "-", "256", "inf"]
    words = pd.DataFrame({"x": ["1.5", "-", "-inf"], "y": ["swaps-5", "-", "2"]})
    assert tables.numeric(words) == [True, False]


def test_comparison_has_a_row_for_each_method_and_a_column_for_each_pattern(cells):
    compared = tables.comparison(cells)
    patterns = cells.loc[cells["pattern"] != "dense", "pattern"].unique()
    measures = [name for name in compared if ": " in name]
    assert measures == [f"perplexity on held_out (seqlen 256): {pattern}" for pattern in patterns]
    assert compared.iloc[0][["refinement", *measures]].tolist() == ["dense"] + ["8.02"] * len(patterns)
    rows = compared.set_index(["warm start", "refinement"])[measures[0]]
    at = cells[cells["pattern"] == patterns[0]].set_index(["warmstart", "refinement"])["perplexity/held_out"]
    for method, value in at.groupby(level=[0, 1]).mean().items():
        assert float(rows[method].split(" ")[0]) == pytest.approx(value, abs=0.006)
    marks = tables.lowest(compared)
    assert not marks.iloc[0].any()  # the dense model does not compete
    for name in measures:
        values = compared.loc[1:, name].dropna().str.split(" ").str[0].astype(float)
        assert list(marks.index[marks[name]]) == list(values.index[values == values.min()])
