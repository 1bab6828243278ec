from sparseswaps.embedded.tasks import TASKS


def evaluated_key(at):
    """The key of the stage that made what is evaluated."""
    if at["variant"] == "dense":
        return model_key(at)
    names = ("calibration", "seed", "pattern", "warmstart", "method")
    cell = dict(zip(names, at["variant"].split("/"), strict=True)) | {"model": at["model"]}
    cell["seed"] = cell["seed"].removeprefix("seed")
    return assemble_key(cell) if has_checkpoint(at["variant"]) else masks_key(cell)


def perplexity_key(at):
    text = config["evaluation"]["perplexity"][at["text"]]
    settings = {
        **of_text(text),
        "files": identities(text_file(text)),
        "batch_size": config["batch_size"],
        "checkpoint": has_checkpoint(at["variant"]),
        **COMPUTE,
    }
    packages = ("torch", "transformers", "tokenizers", "datasets")
    return key("perplexity", settings, packages, after=[evaluated_key(at)])


def tasks_key(_at):
    return key("tasks", {"python": platform.python_version()}, packages=())


def harness_key(at):
    settings = {
        **config["evaluation"]["lm_eval"],
        "files": identities(task_files(config["evaluation"]["lm_eval"]["include"])),
        "checkpoint": has_checkpoint(at["variant"]),
        **COMPUTE,
    }
    packages = ("torch", "transformers", "lm_eval", "datasets", "accelerate")
    return key("harness", settings, packages, after=[evaluated_key(at), tasks_key(at)])


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
