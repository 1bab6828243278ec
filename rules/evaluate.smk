rule perplexity:
    """Measure the perplexity of a model on one text."""
    input:
        unpack(evaluation_inputs),
        text=lambda wildcards: text_files(STUDY.evaluation.perplexity[wildcards.text]),
    output:
        perplexity="<results>/{model}/{variant}/perplexity/{text}.json",
    log:
        "<logs>/{model}/{variant}/perplexity.{text}.log",
    benchmark:
        "<logs>/{model}/{variant}/perplexity.{text}.tsv"
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("perplexity"),
        gpu=GPU,
    params:
        **provenance("perplexity"),
    script:
        "../scripts/perplexity.py"


rule harness:
    """Score a model on the configured tasks with lm-eval's own harness."""
    input:
        unpack(evaluation_inputs),
        include=task_files(STUDY.evaluation.lm_eval.include),
    output:
        scores="<results>/{model}/{variant}/lm_eval.json",
    log:
        "<logs>/{model}/{variant}/harness.log",
    benchmark:
        "<logs>/{model}/{variant}/harness.tsv"
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("harness"),
        gpu=GPU,
    params:
        **provenance("harness"),
    script:
        "../scripts/harness.py"


rule drift:
    """Measure the relative error of every block's output in a cell, on held-out calibration sequences."""
    input:
        unpack(lambda wildcards: checkpoint_or_masks(wildcards.method, "<results>/<cell>")),
        model="<results>/{model}/model.json",
        samples="<results>/<draw>/samples.safetensors",
    output:
        drift=report(
            "<results>/<cell>/drift.csv",
            caption="../docs/captions/drift.rst",
            category="Errors by block",
            labels={
                "model": "{model}",
                "calibration": "{calibration}, seed {seed}",
                "pattern": "{pattern}",
                "method": "{warmstart}, {method}",
            },
        ),
    log:
        "<logs>/<cell>/drift.log",
    benchmark:
        "<logs>/<cell>/drift.tsv"
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("drift"),
        gpu=GPU,
    params:
        **provenance("drift"),
    script:
        "../scripts/drift.py"
