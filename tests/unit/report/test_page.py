import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from sparseswaps.report import figures, page, tables

VOID = {"meta", "img", "br", "link", "input", "hr"}
CONFIG = {"model": {"name": "pico", "source": "</pre><script>alert('&')</script>"}, "patterns": ["60%", "2:4"]}
JOBS = [
    {"stage": "refine", "seconds": 8.25, "peak_resident_mb": 256, "device": "cpu"},
    {"stage": "capture", "seconds": 12.5, "peak_resident_mb": 512, "device": "cpu"},
    {"stage": "refine", "seconds": 8.25, "peak_resident_mb": 128, "device": "gpu", "peak_gpu_mb": 64},
]


class Page(HTMLParser):
    """Checks that tags nest, and collects rows, attributes and text."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.rows, self.links, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report(cells, layers, tmp_path_factory) -> page.Report:
    published = pd.DataFrame([["pico", "60%", "wanda", "swaps", "perplexity/held_out", 17.0, "a paper"]])
    folder = tmp_path_factory.mktemp("figures")
    figures.save(Figure(figsize=(2, 1)), folder / "pico" / "c4" / "swaps_curve-<text>", dpi=150)
    figures.save(Figure(figsize=(3, 2)), folder / "pico" / "perplexity_by_pattern-held_out", dpi=150)
    return page.Report(
        config=CONFIG,
        cells=cells,
        layers=layers,
        pictures=page.read_pictures(folder),
        links=[{"masks": f"../../pico/{k}/masks.safetensors"} for k in range(len(cells) - 1)],
        usage=page.usage_table(JOBS, ["capture", "warmstart", "refine"]),
        sizes={"pico": {"dense": 4_000_000, "masks": 125_000}},
        provenance={"commit": "abc<def>"},
        published=tables.compare_published(cells, published.set_axis(tables.PUBLISHED, axis=1)),
    )


@pytest.fixture(scope="module")
def html(report) -> str:
    return page.render(report)


def test_page_is_well_formed_and_self_contained(html):
    parsed = Page(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert "http" not in html
    assert "//" not in re.sub(r"base64,[^\"]*|^//.*$", "", html, flags=re.M)
    files = [link for link in parsed.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert files == [f"../../pico/{k}/masks.safetensors" for k in range(16)]
    anchors = {link[1:] for link in parsed.links if link.startswith("#")}
    assert anchors == set(re.findall(r' id="(\w+)"', html))


def test_everything_is_in_the_page(html, report):
    usage = [["capture", 1, 12.5, 512, -1, "cpu"], ["refine", 2, 16.5, 256, 64, "cpu, gpu"]]
    assert report.usage.fillna(-1).to_numpy().tolist() == usage
    assert "peak_gpu_mb" not in page.usage_table(JOBS[:2], ["capture"])
    parsed = Page(html)
    rows = [[text.strip() for text in row] for row in parsed.rows]
    # the model, the calibration and the seed are the same in all rows: they have no columns of their own
    assert ["60%", "wanda", "8.02", "25.26", "16.84"] in rows
    assert ["60%", "wanda", "36.5"] in rows
    assert rows.count(["60%", "wanda", "20.0"]) == 1  # swaps per row
    published = ["wanda", "swaps", "perplexity/held_out", "256", "17.00", "16.84", "-0.16", "a paper"]
    assert published in [row[3:] for row in rows]
    assert ["60%", "wanda", "1", "mlp.down_proj", "192", "512"] in [row[:6] for row in rows]
    assert ["capture", "1", "12.5", "512", "-", "cpu"] in rows
    assert ["pico", "4", "0.125"] in rows  # MB of the dense weights and of a mask file
    assert sum(row[2:3] == ["swaps-5"] for row in rows) == 4  # all models, with links to their files, ...
    assert sum(row[-1:] == ["masks"] for row in rows) == 16
    assert sum(row[3:4] == ["mlp.down_proj"] for row in rows) == 2 * 2 * 2  # ... but layers to the optimum only
    kind, (picture,) = figures.KINDS["swaps_curve"], report.pictures[:1]
    assert {"abc<def>", f"{kind.title} (pico, c4, <text>)", kind.caption} <= set(parsed.text)
    assert picture.size() == (300, 150)  # 2 x 1 inches at 150 dpi
    assert 'width="300" height="150"' in html


def test_the_first_screen_has_the_figure_by_pattern_and_a_row_per_method(html):
    first = html.partition("<nav>")[0]
    headline = figures.KINDS["perplexity_by_pattern"].title
    assert html.count(f'alt="{headline} (pico, held_out)"') == first.count(f'alt="{headline} (pico, held_out)"') == 1
    _, *rows = Page(first[first.index("<table") : first.rindex("</table>") + len("</table>")]).rows
    assert [[text.strip() for text in row] for row in rows] == [
        ["from", "method", "60%", "2:4"],
        ["-", "dense", "8.02", "8.02"],
        ["magnitude", "warm start", "101.05", "115.49"],
        ["magnitude", "swaps", "33.68", "38.50"],
        ["wanda", "warm start", "25.26", "28.87"],
        ["wanda", "swaps", "16.84", "19.25"],
    ]


def test_config_is_escaped_and_still_yaml_and_best_values_are_bold(html):
    assert "alert" not in "".join(re.findall("<script>(.*?)</script>", html, flags=re.S))
    (text,) = [text for text in Page(html).text if "alert" in text]
    assert yaml.safe_load(text) == CONFIG
    bold = re.findall("<td[^>]*><b>(.*?)</b>", html)
    of_wanda = ["16.84", "19.25"]  # at either pattern, in the first table and among all measures
    accuracies = ["30.0", "40.0", "20.0"]  # the mean and two tasks, a tie between the warm starts
    assert bold == 2 * of_wanda + [value for value in accuracies for _ in range(4)]


def overview_numbers(cells: pd.DataFrame) -> list[str]:
    text = " ".join(page.overview(cells))
    return re.findall(r"(?<![\w:.])\d+(?:\.\d+)?(?![\w:])", text)


GRID = ["60", "16", "2", "3"]  # a pattern; pruned models, warm starts and refinements
MEANS = ["44.2", "35.3", "4", "4"]  # 0.95 times the mean of 56.5 and 36.5, 0.8 of that, and 4 of 4 cases
LOWEST = ["8.02", "16.84", "60", "19.25"]


def test_overview_says_what_was_pruned_and_how_often_refinement_helps_and_the_best_cases(cells):
    assert overview_numbers(cells) == [*GRID, *MEANS, *LOWEST]
    assert "(swaps from wanda)" in page.overview(cells)[2]


def test_overview_counts_where_perplexity_falls_and_names_the_best_method(cells):
    worse = cells.assign(**{"perplexity/held_out": cells["perplexity/held_out"] + 100 * cells["optimum"]})
    assert overview_numbers(worse)[len(GRID) + 2 :][:2] == ["0", "4"]
    rival = cells.query("refinement == 'swaps' and pattern == '60%' and warmstart == 'magnitude'")
    rival = rival.assign(refinement="dsnot", method="dsnot", **{"perplexity/held_out": 12.0})
    cells = pd.concat([rival, cells], ignore_index=True)
    assert "12.00 at 60% (dsnot from magnitude)" in page.overview(cells)[2]


def test_overview_of_many_models_and_without_refinement_or_warm_starts(cells):
    three = pd.concat([cells.assign(model=name) for name in "abc"], ignore_index=True)
    assert overview_numbers(three) == ["60", "48", "2", "3", *MEANS[:2], "12", "12", *LOWEST]
    assert " of a on held_out" in page.overview(three)[2]
    unrefined = cells.query("refinement == 'none'")
    assert overview_numbers(unrefined) == ["60", "4", "2", "25.26", "60", "28.87"]
    cells = cells.query("refinement == 'swaps' and warmstart == 'wanda' and pattern == '60%'")
    assert overview_numbers(cells) == ["60", "1", "36.5", "29.2", "16.84", "60"]


def test_study_without_perplexity_refinement_or_figures(study, report):
    study = [replace(measured, perplexities={}, scores={}) for measured in study[:2]]
    cells, layers = tables.cells_table(study), tables.layers_table(study)
    smaller = replace(
        report, config={}, cells=cells, layers=layers, pictures=[], links=[{}], provenance={}, published=None
    )
    parsed = Page(page.render(smaller))
    assert overview_numbers(cells) == ["60", "1"]
    assert "60%" in "".join(parsed.text)
