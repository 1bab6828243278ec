# With `propagate: pruned`, block k's inputs come from the pruned blocks before it: a chain, and so one job for a cell.
# Like capture, one rule a model.
for MODEL_NAME in config["models"]:

    rule:
        """Calibrate, mask and refine block after block, each on the outputs of those that are pruned already."""
        name:
            f"chain_{MODEL_NAME}"
        input:
            model=f"<results>/{MODEL_NAME}/model.json",
            samples=f"<results>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/samples.safetensors",
        output:
            masks=update(chained(MODEL_NAME, "masks/{block}.safetensors")),
            losses=update(chained(MODEL_NAME, "losses/{block}.csv")),
        log:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/{{pattern}}/{{warmstart}}/{{refinement}}/chain.log",
        benchmark:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/{{pattern}}/{{warmstart}}/{{refinement}}/chain.tsv"
        wildcard_constraints:
            calibration=PROPAGATES["pruned"],
        conda:
            ENVIRONMENT
        threads: config["threads"]
        resources:
            **resources("chain", model=MODEL_NAME),
            gpu=GPU,
        params:
            key=lambda wildcards: key(
                "chain",
                {
                    "pattern": PATTERNS[wildcards.pattern].label,
                    "criterion": wildcards.warmstart,
                    "batch_size": config["batch_size"],
                    **config["refinements"][wildcards.refinement],
                    **ACTIVATIONS,
                    **COMPUTE,
                },
                packages=("torch", "transformers", "numba"),
            ),
        script:
            "../scripts/chain.py"
