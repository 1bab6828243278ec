import re

import numpy as np
import pandas as pd
import pytest

from sparseswaps import tables
from sparseswaps.errors import InputError

PATTERNS = {"60%": 1.4, "2:4": 1.6}  # pattern: how much perplexity it costs
WARMSTARTS = {"magnitude": (3.0, 0.5), "wanda": (1.5, 0.3)}  # warm start: perplexity factor, error reduction at most
REFINEMENTS = {"none": (0, 0.0), "swaps-1": (1, 0.3), "swaps-5": (5, 0.7), "swaps": (None, 1.0)}  # budget, progress
LAYERS = {
    "self_attn.q_proj": (192, 192),
    "self_attn.k_proj": (64, 192),
    "self_attn.v_proj": (64, 192),
    "self_attn.o_proj": (192, 192),
    "mlp.gate_proj": (512, 192),
    "mlp.up_proj": (512, 192),
    "mlp.down_proj": (192, 512),
}
DENSE = 8.02


def losses_of(pattern: str, warmstart: str, refinement: str, seed: int, blocks: int = 2) -> pd.DataFrame:
    budget, progress = REFINEMENTS[refinement]
    rows = []
    for block in range(blocks):
        for k, (layer, (d_out, d_in)) in enumerate(LAYERS.items()):
            reduction = progress * (WARMSTARTS[warmstart][1] + 0.02 * k + 0.01 * block + 0.01 * seed)
            reduction *= 0.9 if pattern == "2:4" else 1
            loss = 1e3 * d_out * (1 + block) * PATTERNS[pattern]
            swaps = d_out * (20 if budget is None else budget)
            rows.append(
                {
                    "block": block,
                    "layer": layer,
                    "d_out": d_out,
                    "d_in": d_in,
                    "tokens": 4096,
                    "unrouted": False,
                    "kept": d_out * d_in // 2 if pattern == "2:4" else d_out * (d_in - int(0.6 * d_in)),
                    "loss_before": loss,
                    "loss_after": loss * (1 - reduction),
                    "held_out_before": loss / 9,
                    "held_out_after": loss / 9 * (1 - 0.8 * reduction),
                    "swaps": swaps,
                    "max_row_swaps": 30 if budget is None else budget,
                    "rows": d_out,
                    "rows_certified": d_out if refinement == "swaps" else 0,
                    "seconds": swaps / 1e4,
                }
            )
    return pd.DataFrame(rows)


def make_study(seeds: int = 1, blocks: int = 2) -> tuple:
    """The four arguments of `cells_table` for a small, plausible study."""
    cells: list[dict] = [{"model": "pico", "pattern": "dense"}]
    losses: list = [None]
    perplexities = [{"held_out": {"perplexity": DENSE, "seqlen": 256, "windows": 96, "tokens": 24576}}]
    harness: list = [{"results": {"cloze": {"acc": 0.5, "acc_stderr": 0.02}, "choice": {"acc": 0.4, "acc_norm": 0.3}}}]
    for seed in range(seeds):
        for pattern, cost in PATTERNS.items():
            for warmstart, (factor, _) in WARMSTARTS.items():
                for refinement, (budget, progress) in REFINEMENTS.items():
                    cell = {"model": "pico", "calibration": "c4", "seed": seed, "pattern": pattern}
                    cell |= {"warmstart": warmstart, "refinement": refinement, "max_swaps": budget}
                    cells.append(cell)
                    losses.append(losses_of(pattern, warmstart, refinement, seed, blocks))
                    perplexity = DENSE * cost * factor ** (2 - progress) + seed
                    perplexities.append({"held_out": {"perplexity": perplexity, "seqlen": 256}})
                    accuracy = 0.3 + 0.1 * progress
                    harness.append({"results": {"cloze": {"acc": accuracy}, "choice": {"acc": accuracy / 2}}})
    return cells, losses, perplexities, harness


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def cells(study):
    return tables.cells_table(*study)


def row(cells: pd.DataFrame, **where) -> pd.Series:
    for name, value in where.items():
        cells = cells[cells[name] == value]
    assert len(cells) == 1
    return cells.iloc[0]


def test_columns_are_the_contract(cells, study):
    assert list(cells) == [
        *("model", "calibration", "seed", "pattern", "warmstart", "refinement"),
        *("max_swaps", "optimum", "sparsity", "error_reduction", "held_out_error_reduction"),
        *("swaps_per_row", "certified", "seconds", "perplexity/held_out", "seqlen/held_out"),
        *("cloze/acc", "cloze/acc_stderr", "choice/acc", "choice/acc_norm"),
    ]
    layers = tables.layers_table(*study[:2])
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
    cells, losses, *_ = study
    with pytest.raises(InputError, match=r"wanda.*'held_out_after'"):
        tables.layers_table(cells[-1:], [losses[-1].drop(columns="held_out_after")])
    with pytest.raises(InputError, match=r"cells\.csv: no such file"):
        tables.read_table(tmp_path / "cells.csv")
    (tmp_path / "cells.csv").touch()
    with pytest.raises(InputError, match=r"cells\.csv: not a CSV table"):
        tables.read_table(tmp_path / "cells.csv")


def test_no_refined_cell_at_all():
    cells, losses, perplexities, harness = ([part[0]] for part in make_study())
    frame = tables.cells_table(cells, losses, perplexities, harness)
    assert tables.layers_table(cells, losses).empty
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
    summary = tables.summary(tables.cells_table(*make_study(seeds=2)))
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
    layers = tables.layers_table(*study[:2])
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


def test_display_numbers():
    frame = pd.DataFrame({"x": [0.0, 1234567.0, 12345678.0, 0.00012345, np.nan, 256.0, np.inf]})
    assert tables.display(frame)["x"].tolist() == ["0", "1234567", "1.235e+07", "0.0001234", "-", "256", "inf"]
    words = pd.DataFrame({"x": ["1.5", "-", "-inf"], "y": ["swaps-5", "-", "2"]})
    assert tables.numeric(words) == [True, False]
