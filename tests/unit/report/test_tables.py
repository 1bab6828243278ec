import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import DENSE, LAYERS, REPOSITORY, make_study, refusal

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.report import formats, summary, tables
from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.study import load_study

CONFIGS = REPOSITORY / "configs"
PERPLEXITY = "perplexity on held_out (seqlen 256)"
TASKS = ["mean of 2 tasks, acc (%)", "cloze acc (%)", "choice acc (%)"]
ONCE = ["error reduction, calibration (%)", "error reduction, held out (%)", "swaps per row"]


def one_row(table: pd.DataFrame, **values) -> pd.Series:
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def of_wanda(cells: pd.DataFrame, refinement: str) -> pd.Series:
    return one_row(cells, pattern="60%", warmstart="wanda", refinement=refinement)


def test_columns_are_the_contract(cells, layers):
    coordinates = "model calibration seed pattern warmstart refinement"
    settings = "samples propagate method stop freeze shrinkage between_rows refit reconstruction max_swaps"
    measures = "optimum sparsity error_reduction held_out_error_reduction swaps_per_row certified seconds"
    evaluation = "perplexity/held_out seqlen/held_out cloze/acc cloze/acc_stderr choice/acc choice/acc_norm"
    assert list(cells) == f"{coordinates} {settings} {measures} {evaluation}".split()
    sizes = "block layer d_out d_in tokens unrouted kept loss_before loss_after held_out_before held_out_after"
    assert list(layers) == f"{coordinates} {sizes} swaps max_row_swaps rows rows_certified seconds".split()
    assert len(cells) == 1 + 2 * 2 * 4
    assert len(layers) == 2 * 2 * 3 * 2 * 7  # the unrefined warm starts and the dense model have no rows
    assert "none" not in set(layers["refinement"])


def test_a_row_sums_up_its_layers(cells):
    # wanda, optimum: 0.3 + 0.02 k + 0.01 block, mean over k = 0..6 and block = 0, 1: 0.3 + 0.06 + 0.005
    optimum = of_wanda(cells, "swaps")
    measures = ["error_reduction", "held_out_error_reduction", "swaps_per_row", "certified", "seconds"]
    seconds = 2 * 20 * sum(d_out for d_out, _ in LAYERS.values()) / 1e4
    assert optimum[measures].tolist() == pytest.approx([36.5, 0.8 * 36.5, 20, 1, seconds])
    assert pd.isna(optimum["max_swaps"])
    assert [of_wanda(cells, name)["max_swaps"] for name in ("none", "swaps-1", "swaps-5")] == [0, 1, 5]
    assert list(cells["refinement"][cells["optimum"]].unique()) == ["swaps"]
    assert of_wanda(cells, "swaps-5")["certified"] == 0
    assert of_wanda(cells, "none")[["error_reduction", "swaps_per_row"]].tolist() == [0, 0]
    before, after = pd.Series([0.0, 4.0, 0.0]), pd.Series([0.0, 1.0, 1.0])
    assert list(tables.error_reduction(before, after)) == [0, 75, -np.inf]
    # The dense row has only what was measured.
    dense = one_row(cells, pattern="dense")
    assert dense[["calibration", "seed", "warmstart", "refinement", "max_swaps", "error_reduction"]].isna().all()
    assert dense[["perplexity/held_out", "seqlen/held_out", "cloze/acc", "sparsity"]].tolist() == [DENSE, 256, 0.5, 0]


def test_sparsity_is_counted(cells):
    # int(0.6 * 192) = 115 of 192 are pruned, and int(0.6 * 512) = 307 of 512
    narrow = sum(d_out for d_out, d_in in LAYERS.values() if d_in == 192)
    counted = (115 * narrow + 307 * 192) / (192 * narrow + 512 * 192)
    sparsity = cells.groupby("pattern")["sparsity"].unique()
    assert [*sparsity["2:4"], *sparsity["60%"]] == pytest.approx([0.5, counted])


def test_curves_are_means_over_the_layers_with_a_value(study):
    ended = pd.DataFrame({"block": 0, "layer": "a", "budget": [0, 1, 3], "loss": [10.0, 8.0, 7.0], "held_out": None})
    longer = pd.DataFrame({"block": 0, "layer": "b", "budget": [0, 1, 2, 5], "loss": [2.0, 1.0, 0.8, 0.6]})
    nothing = pd.DataFrame({"block": 1, "layer": "a", "budget": [0, 0], "loss": [0.0, 0.0], "held_out": [0.0, 0.0]})
    curves = pd.concat([ended, longer.assign(held_out=[4.0, 3.0, 3.0, 5.0]), nothing])
    table = tables.curves_table([study[0], replace(study[4], curves=curves)])
    assert list(table) == [*tables.COORDINATES, "max_swaps", "budget", "error", "held_out_error"]
    assert table["refinement"].unique() == ["swaps"]
    assert table["budget"].tolist() == [0, 1, 5]  # a has no value at 2, and b has none at 3
    assert table["error"].tolist() == pytest.approx([100, (80 + 50 + 100) / 3, (70 + 30 + 100) / 3])
    assert table["held_out_error"].tolist() == pytest.approx([100, 75, 125])  # of b alone: 0 of 0 is no error at all
    assert list(tables.curves_table(study[:1])) == list(table)


def test_drift_is_in_percent_and_only_where_it_was_measured(study):
    drift = pd.DataFrame({"block": [0, 1], "dense_path": [0.25, 0.5], "pruned_path": [0.25, 1.0]})
    table = tables.drift_table([study[0], replace(study[4], drift=drift), study[5]])
    assert list(table) == [*tables.COORDINATES, "max_swaps", "block", "dense_path", "pruned_path"]
    assert table["refinement"].tolist() == ["swaps"] * 2
    assert table[["block", "dense_path", "pruned_path"]].to_numpy().tolist() == [[0, 25, 25], [1, 50, 100]]
    assert list(tables.drift_table(study)) == list(table)


@pytest.fixture
def published():
    cell = {"model": "pico", "pattern": "60%", "warmstart": "wanda", "refinement": "none", "source": "a paper"}
    dense = {"pattern": "dense", "warmstart": None, "refinement": None}
    perplexity, accuracy = {"measure": "perplexity/held_out"}, {"measure": "accuracy"}
    rows = [perplexity | {"value": 21.5}, accuracy | {"value": 24.0}]
    rows += [accuracy | {"value": 25.0, "refinement": "dsnot"}, perplexity | {"value": 8} | dense]
    return pd.DataFrame([cell | row for row in rows])[tables.PUBLISHED]


def test_published_values_are_compared_with_means_over_seeds(cells, published, tmp_path):
    published.to_csv(tmp_path / "published.csv", index=False)
    read = tables.read_published(tmp_path / "published.csv")
    pd.testing.assert_frame_equal(read, published, check_dtype=False)
    table = tables.compare_published(tables.cells_table(make_study(seeds=2)), read)
    perplexity, accuracy = DENSE * 1.4 * 1.5**2 + 0.5, (30 + 15) / 2
    assert table["published"].tolist() == [21.5, 24, 25, 8]
    assert table["measured"].tolist() == pytest.approx([perplexity, accuracy, float("nan"), DENSE], nan_ok=True)
    assert table["difference"].tolist() == pytest.approx([perplexity - 21.5, -1.5, float("nan"), 0.02], nan_ok=True)
    assert table["seqlen"].tolist() == [256, pd.NA, pd.NA, 256]
    assert table["calibration"].fillna("-").tolist() == ["c4", "c4", "-", "-"]
    both = pd.concat([cells, cells.query("pattern != 'dense'").assign(calibration="wiki")])
    table = tables.compare_published(both, published)  # a row for each calibration
    assert table["calibration"].fillna("-").tolist() == ["c4", "wiki", "c4", "wiki", "-", "-"]


HEADER = ",".join(tables.PUBLISHED)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model,pattern\npico,60%\n", "'warmstart'"),
        (f'{HEADER}\npico,60%,wanda,none,accuracy,"24,0",x\n', "'24,0'"),
        (f"{HEADER}\npico,60%,wanda,none,accuracy,,x\n", "'value'"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_broken_table_of_published_values_is_named(text, named, tmp_path):
    if text is not None:
        (tmp_path / "numbers.csv").write_text(text)
    with pytest.raises(InputError, match=rf"numbers\.csv.*{named}"):
        tables.read_published(tmp_path / "numbers.csv")


def test_the_paper_is_published_in_full():
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
    assert len(Grid(load_study(here)).cells) == 2 * 2 * 3


def test_published_numbers_of_the_frontier_belong_to_cells_of_its_study():
    config = yaml.safe_load((CONFIGS / "frontier.yaml").read_text())
    published = tables.read_published(CONFIGS / "frontier.csv")
    here = config | {"models": {name: {"source": "embedded"} for name in config["models"]}, "published": None}
    for text in [*here["calibrations"].values(), *here["evaluation"]["perplexity"].values()]:
        text["seqlen"] = 256
    grid = Grid(load_study(here))
    cells = {(cell.model, grid.patterns[cell.pattern].label, cell.warmstart, cell.method) for cell in grid.cells}
    of_ours = published[~published["warmstart"].isin(["d2prune", "thanos"])]
    rows = of_ours[["model", "pattern", "warmstart", "refinement"]].itertuples(index=False, name=None)
    assert set(rows) <= cells


def test_summary(cells):
    table = summary.summary(cells)
    every = ["dense", "warm start", "swaps"]
    assert list(table) == [
        *("model", "calibration", "pattern", "warm start"),
        *(f"{PERPLEXITY}: {name}" for name in every),
        *(f"{measure}: swaps" for measure in ONCE),
        *(f"{measure}: {name}" for measure in TASKS for name in every),
    ]
    wanda = one_row(table, pattern="60%", **{"warm start": "wanda"})
    assert wanda[4:10].tolist() == ["8.02", "25.26", "16.84", "36.5", "29.2", "20.0"]  # 25.26 = 8.02 * 1.4 * 1.5^2
    assert wanda[10:].tolist() == ["45.0", "22.5", "30.0", "50.0", "30.0", "40.0", "40.0", "15.0", "20.0"]


def test_summary_over_seeds_and_of_several_lengths(cells):
    table = summary.summary(tables.cells_table(make_study(seeds=2)))
    assert len(table) == 4
    wanda = one_row(table, pattern="60%", **{"warm start": "wanda"})
    assert wanda[f"{PERPLEXITY}: dense"] == "8.02"
    assert wanda[f"{PERPLEXITY}: swaps"] == "17.34 ± 0.71"  # 16.842 and 17.842
    assert wanda[f"{ONCE[0]}: swaps"] == "37.0 ± 0.7"  # 36.5 and 37.5
    other = cells.assign(model="nano", **{"seqlen/held_out": 2048})
    table = summary.summary(pd.concat([cells, other], ignore_index=True))
    assert table[f"{PERPLEXITY}: swaps"].notna().tolist() == [True] * 4 + [False] * 4
    assert table[f"{PERPLEXITY.replace('256', '2048')}: swaps"].isna().tolist() == [True] * 4 + [False] * 4


def test_a_study_of_dense_models_alone(study, tmp_path):
    cells = tables.write_all(study[:1], tmp_path)
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 1
    assert [len(pd.read_csv(tmp_path / f"{name}.csv")) for name in ("layers", "curves", "summary")] == [0, 0, 0]
    assert summary.headline_refinements(cells) == []
    assert summary.principal_refinement(cells) is None


def test_the_furthest_refinement_of_each_family_is_the_headline(cells):
    assert summary.headline_refinements(cells) == ["swaps"]
    assert summary.headline_refinements(cells[~cells["optimum"]]) == ["swaps-5"]


def test_methods_beside_swaps(study):
    """DSnoT, early stopping and reconstruction: none is a smaller budget of another, none claims the optimum."""
    swaps = next(measured for measured in study if measured.facts.get("refinement") == "swaps")
    others = {"none": {"max_swaps": 0}, "dsnot": {"method": "dsnot"}, "early": {"stop": "held_out"}, "swaps": {}}
    others |= {"swaps-5+ls": {"max_swaps": 5, "reconstruction": "ls"}, "swaps+ls": {"reconstruction": "ls"}}
    others |= {"none+obs": {"max_swaps": 0, "reconstruction": "obs"}}
    measured = [replace(swaps, facts=swaps.facts | {"refinement": name} | facts) for name, facts in others.items()]
    cells = tables.cells_table([study[0], *measured])
    assert list(cells["refinement"][cells["optimum"]]) == ["swaps", "swaps+ls"]
    assert summary.headline_refinements(cells) == ["dsnot", "early", "swaps", "swaps+ls", "none+obs"]
    # whichever is left stands for the method
    order = ["swaps", "early", "swaps+ls", "dsnot", "swaps-5+ls", "none+obs"]
    left = [cells[~cells["refinement"].isin(order[:count])] for count in range(len(order) + 1)]
    assert [summary.principal_refinement(cells) for cells in left] == [*order, None]
    swapped = [name for name in summary.summary(cells) if name.startswith("swaps per row")]
    assert [name.rpartition(": ")[2] for name in swapped] == ["dsnot", "early", "swaps"]
    assert len(tables.layers_table(measured)) == 6 * 14


def test_the_best_values_of_a_summary(cells):
    marks = summary.mark_best_of_summary(summary.summary(cells))
    assert marks[f"{PERPLEXITY}: swaps"].tolist() == [False, True, False, True]  # wanda, at either pattern
    assert marks[f"{TASKS[1]}: swaps"].all()  # a tie
    assert not marks[[f"{PERPLEXITY}: dense", f"{TASKS[1]}: dense", f"{ONCE[0]}: swaps"]].any(axis=None)


def test_comparison_has_a_row_for_each_method_and_a_column_for_each_pattern(cells):
    table = summary.comparison(cells)
    measures = [f"{PERPLEXITY}: {pattern}" for pattern in ("60%", "2:4")]
    of_tasks = [f"{task}: {pattern}" for task in TASKS for pattern in ("60%", "2:4")]
    assert list(table) == ["model", "calibration", "warm start", "refinement", *measures, *of_tasks]
    assert table.iloc[0][["refinement", *measures]].tolist() == ["dense", "8.02", "8.02"]
    assert len(table) == 1 + 2 * 4
    swaps = one_row(table, refinement="swaps", **{"warm start": "wanda"})
    assert swaps[measures].tolist() == ["16.84", "19.25"]
    marks = summary.mark_best_of_comparison(table)
    assert table[marks[measures].any(axis=1)].index.tolist() == [swaps.name]  # the dense model does not compete
    assert marks.loc[swaps.name, measures].all()


def test_a_study_of_tasks_alone_is_compared_by_their_accuracy(cells):
    table = summary.comparison(cells.drop(columns=[name for name in cells if name.startswith("perplexity/")]))
    assert [name.rpartition(": ")[0] for name in list(table)[4::2]] == TASKS


def test_values_for_readers_and_columns_of_numbers():
    values = [0.0, 1234567.0, 12345678.0, 0.00012345, np.nan, None, 256, np.inf, np.True_, False]
    texts = ["0", "1234567", "1.235e+07", "0.0001234", "-", "-", "256", "inf", "yes", "no"]
    assert formats.format_values(pd.DataFrame({"x": pd.Series(values, dtype="object")}))["x"].tolist() == texts
    strings = pd.DataFrame({"x": ["1.5", "-", "-inf"], "y": ["swaps-5", "-", "2"]})
    assert formats.numeric_columns(strings) == [True, False]


def test_written_tables_are_read_back(cells, layers, tmp_path):
    awkward = cells.assign(calibration=cells["calibration"].where(cells["pattern"] == "dense", "128"))
    awkward.loc[1, "refinement"] = "NA"
    for name, table in (("cells", cells), ("awkward", awkward), ("v1.0 layers", layers)):
        formats.write_table(table, tmp_path / "out" / name)
        read = tables.read_table(tmp_path / "out" / f"{name}.csv")
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)
        pd.testing.assert_frame_equal(formats.format_values(read), formats.format_values(table))
    endings = {path.name.removeprefix("v1.0 layers") for path in (tmp_path / "out").glob("v1.0*")}
    assert endings == {".csv", ".md", ".tex"}  # a dot in a name is no ending


def test_tables_of_blocks_are_one(tmp_path):
    for block in range(2):
        formats.write_table(pd.DataFrame({"block": [block] * 3, "layer": "1"}), tmp_path / str(block))
    table = tables.read_tables([tmp_path / "0.csv", tmp_path / "1.csv"])
    assert table.to_numpy().tolist() == [[0, "1"]] * 3 + [[1, "1"]] * 3
    assert tables.read_tables([]) is None


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3\n4,5,6\n1,2,3,4\n", "a,b\n1,2\n3", b"\xff\n"])
def test_a_table_that_is_not_whole_is_named(content, tmp_path):
    path = tmp_path / "cells.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(tables.read_table, path, BrokenFileError)
    refusal(tables.read_table, tmp_path / "none.csv")


def cells_of_markdown(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]


def test_markdown_and_latex_escape(tmp_path):
    columns = {"a|b_c (%)": ["x|y", "50%", None], "ppl": ["1.50 ± 0.10", "2.00", "3.00"], "ok": [True, False, True]}
    formats.write_table(pd.DataFrame(columns), tmp_path / "table")
    heading, rule, *rows = cells_of_markdown((tmp_path / "table.md").read_text())
    assert heading == [r"a\|b_c (%)", "ppl", "ok"]
    assert [cell.endswith(":") for cell in rule] == [False, True, False]
    assert rows == [[r"x\|y", "1.50 ± 0.10", "yes"], ["50%", "2.00", "no"], ["-", "3.00", "yes"]]
    latex = (tmp_path / "table.tex").read_text()
    pieces = [r"{lrl}", r"\toprule", r"\bottomrule", r"b\_c (\%)", r"50\% &", r"1.50 $\pm$ 0.10", "- & 3.00"]
    assert [piece for piece in pieces if piece not in latex] == []
    assert not re.search(r"(?<!\\)[%_]", latex)


def test_all_tables_of_a_study_are_written(study, cells, published, tmp_path):
    published.to_csv(tmp_path / "numbers.csv", index=False)
    written = tables.write_all(study, tmp_path / "out", tmp_path / "numbers.csv")
    pd.testing.assert_frame_equal(written, cells)
    names = ["cells", "layers", "curves", "epochs", "drift", "summary", "comparison", "published"]
    files = set(map(".".join, product(names, ["csv", "md", "tex"])))
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert list(pd.read_csv(tmp_path / "out" / "summary.csv")) == list(summary.summary(cells))
    markdown = (tmp_path / "out" / "summary.md").read_text()
    assert re.findall("### (.*)\n", markdown) == [PERPLEXITY, *ONCE, *TASKS]
    heading, _, _, wanda, *_ = cells_of_markdown(markdown.partition("\n\n")[2])
    assert heading == ["model", "calibration", "pattern", "from", "dense", "warm start", "swaps"]
    assert wanda == ["pico", "c4", "60%", "wanda", "8.02", "25.26", "**16.84**"]
    latex = (tmp_path / "out" / "summary.tex").read_text()
    assert latex.count(r"\begin{tabular}") == 1 + len(ONCE) + len(TASKS)
    assert r"\multicolumn{3}{c}{perplexity on held\_out (seqlen 256)}" in latex
    assert r"25.26 & \textbf{16.84} \\" in latex
