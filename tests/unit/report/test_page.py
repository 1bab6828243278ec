import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from helpers import make_study
from matplotlib.figure import Figure

from sparseswaps.report import figures, tables
from sparseswaps.report import page as report

VOID = {"meta", "img", "br", "link", "input", "hr"}
CONFIG = {"model": {"name": "pico", "source": "</pre><script>alert('&')</script>"}, "patterns": ["60%", "2:4"]}
STAGES = pd.DataFrame(
    {"stage": ["capture", "refine"], "jobs": [2, 96], "seconds": [12.5, 801.25], "peak_memory_mb": [512.0, None]}
)
BYTES = pd.DataFrame([{"model": "pico", "dense": 4_000_000, "masks": 125_000}])


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
def frames():
    study = make_study()
    return tables.cells_table(study), tables.layers_table(study)


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    stem = tmp_path_factory.mktemp("figures") / "one"
    figures.save(Figure(figsize=(2, 1)), stem, dpi=150)
    return stem.with_suffix(".png").read_bytes()


@pytest.fixture(scope="module")
def html(frames, png):
    cells, layers = frames
    drawn = [("A <title>", 'caption "quoted" & more', png)]
    published = pd.DataFrame([["pico", "60%", "wanda", "swaps", "perplexity/held_out", 17.0, "a paper"]])
    published = tables.beside_published(cells, published.set_axis(tables.PUBLISHED, axis=1))
    provenance = {"commit": "abc<def>"}
    parts = tables.summary(cells), cells, layers, drawn, STAGES, provenance
    return report.render(CONFIG, *parts, BYTES, published)


def test_page_is_well_formed_and_self_contained(html):
    page = Page(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert "http" not in html
    assert "//" not in re.sub(r"base64,[^\"]*|^//.*$", "", html, flags=re.M)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors == set(re.findall(r' id="(\w+)"', html))


def test_everything_is_in_the_page(html, frames):
    page = Page(html)
    rows = [[text.strip() for text in row] for row in page.rows]
    # the model, the calibration and the seed are the same throughout: said once, no columns of their own
    assert ["60%", "wanda", "8.02", "25.26", "16.84"] in rows
    assert ["60%", "wanda", "36.5"] in rows
    assert rows.count(["60%", "wanda", "20.0"]) == 1  # swaps per row
    assert ["wanda", "swaps", "perplexity/held_out", "256", "17.00", "16.84", "-0.16", "a paper"] in [
        r[3:] for r in rows
    ]
    assert ["60%", "wanda", "1", "mlp.down_proj", "192", "512"] in [row[:6] for row in rows]
    assert ["refine", "96", "801.2", "-"] in rows
    assert sum(row[2:3] == ["swaps-5"] for row in rows) == 4  # all models, ...
    assert sum(row[3:4] == ["mlp.down_proj"] for row in rows) == 2 * 2 * 2  # ... but layers to the optimum only
    assert "abc<def>" in page.text
    assert 'caption "quoted" & more' in page.text
    assert 'width="300" height="150"' in html  # 2 x 1 inches at 150 dpi


def test_what_zeros_are_worth(html, frames):
    page = Page(html)
    at = page.rows.index(["model", "dense weights (MB)", "mask file (MB)"])
    assert page.rows[at + 1] == ["pico", "4", "0.125"]


def test_config_is_escaped_and_still_yaml(html):
    page = Page(html)
    assert "alert" not in "".join(re.findall("<script>(.*?)</script>", html, flags=re.S))
    (text,) = [text for text in page.text if "alert" in text]
    assert yaml.safe_load(text) == CONFIG


def test_best_values_are_bold(html):
    bold = re.findall("<td[^>]*><b>(.*?)</b>", html)
    accuracies = ["30.0", "40.0", "20.0"]  # the mean and two tasks, a tie between the warm starts
    assert bold == ["16.84", "19.25", *(value for value in accuracies for _ in range(4))]  # wanda, of either pattern


def test_overview(frames):
    cells = frames[0]
    text = report.overview(cells)
    sentences = [
        "16 pruned models: 1 model, 1 calibration, 1 seed, 2 patterns, 2 warm starts, 3 refinements.",
        "Refinement (swaps) lowers the layers' error by 44.2% on average (35.3% on held-out text), and perplexity on"
        " held_out in 4 of 4 cases.",  # 0.95 times the mean of 56.5 and 36.5, and 0.8 of that
        "At 60% from wanda, refinement lowers the layers' error by 36.5% on average and perplexity (seqlen 256) from"
        " 25.26 to 16.84 (dense 8.02).",
        "At 2:4 from wanda, refinement lowers the layers' error by 32.9% on average and perplexity (seqlen 256) from"
        " 28.87 to 19.25 (dense 8.02).",
    ]
    assert text == " ".join(sentences)
    worse = cells.assign(**{"perplexity/held_out": cells["perplexity/held_out"] + 100 * cells["optimum"]})
    assert "in 0 of 4 cases" in report.overview(worse)
    assert "but raises perplexity (seqlen 256) from 25.26 to 116.84" in report.overview(worse)
    dsnot = cells.query("refinement == 'swaps' and pattern == '60%' and warmstart == 'magnitude'")
    dsnot = dsnot.assign(refinement="dsnot", method="dsnot", **{"perplexity/held_out": 12.0})
    assert "from 25.26 to 16.84 (dense 8.02); dsnot from magnitude ends at 12.00. At 2:4" in report.overview(
        pd.concat([dsnot, cells], ignore_index=True)
    )
    nothing_refined = cells[cells["refinement"] != "swaps"].query("max_swaps != 5 and max_swaps != 1")
    assert report.overview(nothing_refined).endswith("0 refinements.")


def test_study_without_perplexity_refinement_or_figures():
    study = [replace(measured, perplexities={}, scores={}) for measured in make_study()[:2]]
    cells, layers = tables.cells_table(study), tables.layers_table(study)
    page = Page(report.render({}, tables.summary(cells), cells, layers, [], STAGES, {}, BYTES))
    assert "1 pruned model: 1 model" in "".join(page.text)
    only_refined = tables.cells_table(make_study()[4:5])
    assert report.overview(only_refined).endswith("on held-out text).")
