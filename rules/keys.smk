"""The key of every stage: what decides its result, and the keys of the stages before it. `at` holds a job's wildcards."""


def key(script, settings, packages=("torch", "transformers"), after=()):
    """The one parameter of a rule: what its stage was told, the code that it runs, the versions that matter, and what
    the keys of the stages before it were: when one of those fails, what follows it must not pass for current."""
    if after:
        settings = settings | {"after": sha256("\n".join(after).encode()).hexdigest()[:16]}
    return stage_key(Path(workflow.basedir) / "scripts" / f"{script}.py", settings, packages)


def keyed(function, **known):
    """A `params` function: the key that `function` makes of a job's wildcards, as a dictionary, and what is known."""
    return lambda wildcards: function({**dict(wildcards.items()), **known})


@cache
def identity(path):
    """What tells a file from its other versions, for a key: its content, or its size and age where it is larger than
    what Snakemake compares by content."""
    file = Path(path)
    status = file.stat()
    return sha256(file.read_bytes()).hexdigest() if status.st_size <= 1e6 else [status.st_size, status.st_mtime_ns]


def identities(paths):
    """Those of files, with their names."""
    return {Path(path).name: identity(path) for path in paths}


def of_text(settings):
    """The settings of a text: the embedded one is the running Python's own sources."""
    drawn = {name: value for name, value in settings.items() if name != "propagate"}  # that is what captures do with it
    return drawn | ({"python": platform.python_version()} if settings["text"] == "embedded" else {})


def counts(at):
    """What masks have to keep."""
    method = at.get("method", at.get("refinement"))
    refinement = method and method.partition("+")[0]
    counted = study.counted(config, at["warmstart"], refinement)
    return {"pattern": PATTERNS[at["pattern"]].pattern.label, "counted": counted}


def started(at):
    """What makes a warm start: a criterion, or files that were made elsewhere."""
    name = at["warmstart"]
    files = start_files(name)
    return {"from": STARTS[name], "files": identities(files)} if files else {"criterion": name}


def model_key(at):
    return key("model", config["models"][at["model"]] | {"files": identities(model_files(at["model"]))})


def samples_key(at):
    text = config["calibrations"][at["calibration"]]
    return key(
        "samples",
        {**of_text(text), "seed": int(at["seed"]), "files": identities(text_file(text))},
        packages=("torch", "transformers", "tokenizers", "datasets"),
        after=[model_key(at)],
    )


def capture_key(at):
    return key("capture", {"batch_size": config["batch_size"], **ACTIVATIONS, **COMPUTE}, after=[samples_key(at)])


def allocation_key(at):
    budget = PATTERNS[at["pattern"]]
    settings = {"pattern": budget.pattern.label, "layers": budget.layers, "owl": budget.owl}
    before = capture_key(at) if budget.owl else model_key(at)
    return key("allocation", settings, packages=("torch",), after=[before])


def allocation_keys(at):
    """The keys that stand before those of whatever follows an allocation, if there is one."""
    return [] if PATTERNS[at["pattern"]].uniform else [allocation_key(at)]


def warmstart_key(at):
    return key(
        "warmstart",
        {**counts({name: at[name] for name in ("pattern", "warmstart")}), **started(at), **COMPUTE},
        packages=("torch", "numba"),
        after=[capture_key(at), *allocation_keys(at)],
    )


def refine_key(at):
    return key(
        "refine",
        {**counts(at), **config["refinements"][at["refinement"]], **COMPUTE},
        packages=("torch", "numba"),
        after=[warmstart_key(at)],
    )


def reconstruct_key(at):
    settings = {**config["reconstructions"][at["reconstruction"]], **COMPUTE}
    return key("reconstruct", settings, packages=("torch",), after=[refine_key(at)])


def chain_key(at):
    return key(
        "chain",
        {
            **counts(at),
            **started(at),
            "batch_size": config["batch_size"],
            "refinement": config["refinements"][at["refinement"]],
            "reconstruction": config["reconstructions"].get(at.get("reconstruction")),
            **ACTIVATIONS,
            **COMPUTE,
        },
        packages=("torch", "transformers", "numba"),
        after=[samples_key(at), *allocation_keys(at)],
    )


def masked_key(at):
    """The key of the stage that made a cell's masks, by its method."""
    refinement, _, reconstruction = at["method"].partition("+")
    at = {**at, "refinement": refinement} | ({"reconstruction": reconstruction} if reconstruction else {})
    return chain_key(at) if config["calibrations"][at["calibration"]]["propagate"] == "pruned" else refine_key(at)


def masks_key(at):
    return key("masks", counts(at), packages=("torch", "safetensors"), after=[masked_key(at)])


def weighted_keys(at):
    """The key of the stage that made a cell's weights, if they are new and not made along with its masks."""
    refinement, _, reconstruction = at["method"].partition("+")
    if not reconstruction or config["calibrations"][at["calibration"]]["propagate"] == "pruned":
        return []
    return [reconstruct_key({**at, "refinement": refinement, "reconstruction": reconstruction})]


def assemble_key(at):
    settings = {"pattern": PATTERNS[at["pattern"]].label}
    before = [masks_key(at), *weighted_keys(at)]
    return key("assemble", settings, packages=("torch", "safetensors"), after=before)


def evaluated_key(at):
    """The key of the stage that made what is evaluated."""
    if at["variant"] == "dense":
        return model_key(at)
    names = ("calibration", "seed", "pattern", "warmstart", "method")
    cell = {"model": at["model"], **dict(zip(names, Path(at["variant"]).parts, strict=True))}
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


def measured_keys(variant):
    """The keys of the stages that measured a variant: its layers' errors, and what it is as a model."""
    at = {"model": variant.model, "variant": variant.folder.partition("/")[2]}
    keys = [perplexity_key(at | {"text": text}) for text in TEXTS] + [harness_key(at)] * HARNESS
    if not isinstance(variant, study.Dense):
        cell = {**variant.coordinates(), "method": variant.method}
        keys += [masked_key(cell), *weighted_keys(cell)]
    return keys


@cache
def study_key():
    """That of the tables, of which a study has one set."""
    return key(
        "tables",
        {
            "cells": [described(variant) for variant in VARIANTS],
            "blocks": [len(losses(variant)) for variant in VARIANTS],
            "curves": [len(curves(variant)) for variant in VARIANTS],
            "texts": TEXTS,
            "harness": HARNESS,
            "published": config["published"],
            "files": identities(PUBLISHED),
        },
        packages=("pandas",),
        after=[before for variant in VARIANTS for before in measured_keys(variant)],
    )


def tables_key(_at):
    return study_key()


def figures_key(at):
    return key("figures", {"texts": TEXTS, **config["figures"]}, packages=("matplotlib",), after=[tables_key(at)])


def report_key(at):
    packages = ("sparseswaps", "torch", "transformers", "datasets", "lm_eval", "snakemake")
    template = Path(workflow.basedir, "sparseswaps", "report", "report.html.j2")
    settings = {"config": config, "folders": FOLDERS, "template": identity(template)}
    return key("report", settings, packages, after=[figures_key(at)])
