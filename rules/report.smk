# The report's cells: every cell of the grid, and every model as it is without pruning.
VARIANTS = [{"model": model, "pattern": "dense", "variant": "dense"} for model in config["models"]] + [
    {**cell.wildcards(), "variant": CELL.format(**cell.wildcards()).removeprefix(f"results/{cell.model}/")}
    for cell in CELLS
]
TEXTS = list(config["evaluation"]["perplexity"])
HARNESS = bool(config["evaluation"]["lm_eval"]["tasks"])


def losses(cell):
    """The refinement tables of all blocks of a cell; none for a dense model."""
    blocks = [] if cell["pattern"] == "dense" else BLOCKS[cell["model"]]
    return [CELL.format(**cell) + f"/losses/{block}.csv" for block in blocks]


def described(cell):
    """What the tables say of a cell beyond its measurements."""
    if cell["pattern"] == "dense":
        return {"model": cell["model"], "pattern": "dense"}
    named = {key: cell[key] for key in ("model", "calibration", "seed", "warmstart", "refinement")}
    budget = config["refinements"][cell["refinement"]]["max_swaps"]
    if budget == 0:
        named["refinement"] = "none"
    return {**named, "pattern": PATTERNS[cell["pattern"]].label, "max_swaps": budget}


rule tables:
    """Gather every measurement of the study in one table by cell, one by layer, and a summary for people."""
    input:
        losses=[path for cell in VARIANTS for path in losses(cell)],
        perplexity=[f"{VARIANT}/perplexity/{text}.json".format(**cell) for cell in VARIANTS for text in TEXTS],
        harness=[f"{VARIANT}/lm_eval.json".format(**cell) for cell in VARIANTS if HARNESS],
    output:
        multiext(REPORT + "/tables/cells", ".csv", ".md", ".tex"),
        multiext(REPORT + "/tables/layers", ".csv", ".md", ".tex"),
        multiext(REPORT + "/tables/summary", ".csv", ".md", ".tex"),
    log:
        f"logs/reports/{config['name']}/tables.log",
    benchmark:
        f"logs/reports/{config['name']}/tables.tsv"
    conda:
        ENVIRONMENT
    params:
        key=key(
            "tables",
            {
                "cells": [described(cell) for cell in VARIANTS],
                "blocks": [len(losses(cell)) for cell in VARIANTS],
                "texts": TEXTS,
                "harness": HARNESS,
            },
            packages=("pandas",),
        ),
    script:
        "../scripts/tables.py"


rule figures:
    """Draw the study's figures from its tables."""
    input:
        cells=REPORT + "/tables/cells.csv",
        layers=REPORT + "/tables/layers.csv",
    output:
        directory(REPORT + "/figures"),
    log:
        f"logs/reports/{config['name']}/figures.log",
    benchmark:
        f"logs/reports/{config['name']}/figures.tsv"
    conda:
        ENVIRONMENT
    params:
        key=key("figures", {"texts": TEXTS}, packages=("matplotlib",)),
    script:
        "../scripts/figures.py"


rule report:
    """Write the report: one HTML page with everything in it."""
    input:
        models=expand(MODEL + "/model.json", model=config["models"]),
        cells=REPORT + "/tables/cells.csv",
        layers=REPORT + "/tables/layers.csv",
        figures=REPORT + "/figures",
        template=workflow.source_path("../sparseswaps/report.html.j2"),
    output:
        REPORT + "/report.html",
    log:
        f"logs/reports/{config['name']}/report.log",
    benchmark:
        f"logs/reports/{config['name']}/report.tsv"
    conda:
        ENVIRONMENT
    params:
        key=key(
            "report",
            {"config": config},
            packages=("sparseswaps", "torch", "transformers", "datasets", "lm_eval", "snakemake"),
        ),
    script:
        "../scripts/report.py"
