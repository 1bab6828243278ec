rule tables:
    """Gather every measurement of the study: by cell, by layer, by number of swaps, and a summary for people."""
    input:
        losses=losses(),
        curves=curves(),
        epochs=epochs(),
        perplexity=[f"<results>/{v.folder}/perplexity/{text}.json" for v in GRID.variants for text in TEXTS],
        scores=[f"<results>/{v.folder}/lm_eval.json" for v in GRID.variants if HARNESS],
        drift=of_cells("drift.csv") if STUDY.evaluation.drift else [],
        published=PUBLISHED,
    output:
        cells=table_files("cells"),
        layers=multiext("<report>/tables/layers", ".csv", ".md", ".tex"),
        curves=multiext("<report>/tables/curves", ".csv", ".md", ".tex"),
        epochs=multiext("<report>/tables/epochs", ".csv", ".md", ".tex"),
        drift=multiext("<report>/tables/drift", ".csv", ".md", ".tex"),
        summary=table_files("summary"),
        comparison=table_files("comparison"),
        published=table_files("published") if PUBLISHED else [],
    log:
        "<logs>/<study>/tables.log",
    benchmark:
        "<logs>/<study>/tables.tsv"
    conda:
        REPORT_ENVIRONMENT
    resources:
        **resources("tables"),
    params:
        **provenance("tables"),
    script:
        "../scripts/tables.py"


rule figures:
    """Draw the study's figures from its tables."""
    input:
        cells="<report>/tables/cells.csv",
        layers="<report>/tables/layers.csv",
        curves="<report>/tables/curves.csv",
        epochs="<report>/tables/epochs.csv",
        drift="<report>/tables/drift.csv",
    output:
        figures=report(
            directory("<report>/figures"),
            patterns=["{model,[^/]+}/{figure,.+}.png"],
            caption="../docs/captions/figure.rst",
            category="Figures",
            labels={"model": "{model}", "figure": "{figure}"},
        ),
    log:
        "<logs>/<study>/figures.log",
    benchmark:
        "<logs>/<study>/figures.tsv"
    conda:
        REPORT_ENVIRONMENT
    resources:
        **resources("figures"),
    params:
        **provenance("figures"),
    script:
        "../scripts/figures.py"


rule report:
    """Write the report: one HTML page with everything in it."""
    input:
        models=expand("<results>/{model}/model.json", model=STUDY.models),
        samples=[f"<results>/{draw}/samples.safetensors" for draw in DRAWS],
        # The page says how large they are. A study has them even where nothing is evaluated.
        masks=of_cells("masks.safetensors"),
        checkpoints=checkpoints(),
        cells="<report>/tables/cells.csv",
        layers="<report>/tables/layers.csv",
        published=PUBLISHED,
        figures="<report>/figures",
    output:
        page=report("<report>/report.html", caption="../docs/captions/page.rst", category="Report"),
        provenance="<report>/provenance.json",
    log:
        "<logs>/<study>/report.log",
    benchmark:
        "<logs>/<study>/report.tsv"
    conda:
        REPORT_ENVIRONMENT
    resources:
        **resources("report"),
    params:
        **provenance("report"),
    script:
        "../scripts/report.py"
