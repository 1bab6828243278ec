from sparseswaps.embedded.tasks import TASKS


rule perplexity:
    """Perplexity of a model on one text."""
    input:
        unpack(evaluated),
        text=lambda wildcards: text_file(config["evaluation"]["perplexity"][wildcards.text]),
    output:
        "<results>/{model}/{variant}/perplexity/{text}.json",
    log:
        "<logs>/{model}/{variant}/perplexity.{text}.log",
    benchmark:
        "<logs>/{model}/{variant}/perplexity.{text}.tsv"
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **resources("perplexity"),
        gpu=GPU,
    params:
        key=keyed(perplexity_key),
    script:
        "../scripts/perplexity.py"


rule tasks:
    """Make the embedded lm-eval tasks from held-out text."""
    output:
        expand("<results>/tasks/{task}.{ending}", task=TASKS, ending=["yaml", "jsonl"]),
    log:
        "<logs>/tasks.log",
    benchmark:
        "<logs>/tasks.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("tasks"),
    params:
        key=keyed(tasks_key),
    script:
        "../scripts/tasks.py"


rule harness:
    """Score a model on the configured tasks with lm-eval's own harness."""
    input:
        unpack(evaluated),
        tasks=rules.tasks.output,
        include=task_files(config["evaluation"]["lm_eval"]["include"]),
    output:
        "<results>/{model}/{variant}/lm_eval.json",
    log:
        "<logs>/{model}/{variant}/harness.log",
    benchmark:
        "<logs>/{model}/{variant}/harness.tsv"
    conda:
        ENVIRONMENT
    threads: config["threads"]
    resources:
        **resources("harness"),
        gpu=GPU,
    params:
        key=keyed(harness_key),
    script:
        "../scripts/harness.py"
