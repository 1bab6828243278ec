rule tables:
    """Gather every measurement of the study: by cell, by layer, by number of swaps, and a summary for people."""
    input:
        losses=[path for variant in VARIANTS for path in losses(variant)],
        perplexity=[f"<results>/{v.folder}/perplexity/{text}.json" for v in VARIANTS for text in TEXTS],
        harness=[f"<results>/{v.folder}/lm_eval.json" for v in VARIANTS if HARNESS],
        curves=[path for variant in VARIANTS for path in curves(variant)],
        published=PUBLISHED,
    output:
        multiext("<report>/tables/cells", ".csv", ".md", ".tex"),
        multiext("<report>/tables/layers", ".csv", ".md", ".tex"),
        multiext("<report>/tables/curves", ".csv", ".md", ".tex"),
        multiext("<report>/tables/summary", ".csv", ".md", ".tex"),
        multiext("<report>/tables/comparison", ".csv", ".md", ".tex"),
        multiext("<report>/tables/published", ".csv", ".md", ".tex") if PUBLISHED else [],
    log:
        "<logs>/<study>/tables.log",
    benchmark:
        "<logs>/<study>/tables.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("tables"),
    params:
        key=keyed(tables_key),
    script:
        "../scripts/tables.py"


rule figures:
    """Draw the study's figures from its tables."""
    input:
        cells="<report>/tables/cells.csv",
        layers="<report>/tables/layers.csv",
        curves="<report>/tables/curves.csv",
    output:
        directory("<report>/figures"),
    log:
        "<logs>/<study>/figures.log",
    benchmark:
        "<logs>/<study>/figures.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("figures"),
    params:
        key=keyed(figures_key),
    script:
        "../scripts/figures.py"


rule report:
    """Write the report: one HTML page with everything in it."""
    input:
        models=expand("<results>/{model}/model.json", model=config["models"]),
        samples=[f"<results>/{draw}/samples.safetensors" for draw in DRAWS],
        # Their sizes are read; a study has them even where nothing is evaluated, and the page says what they took.
        masks=pruned("masks.safetensors"),
        checkpoints=checkpoints(),
        cells="<report>/tables/cells.csv",
        layers="<report>/tables/layers.csv",
        published=PUBLISHED,
        figures="<report>/figures",
    output:
        page="<report>/report.html",
        provenance="<report>/provenance.json",
    log:
        "<logs>/<study>/report.log",
    benchmark:
        "<logs>/<study>/report.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("report"),
    params:
        key=keyed(report_key),
    script:
        "../scripts/report.py"
