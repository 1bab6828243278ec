# With `propagate: pruned`, block k's inputs come from the pruned blocks before it: a chain, and so one job for a cell.
# Like capture, one rule a model; and another where weights are reconstructed as well.
for MODEL_NAME, METHOD in product(config["models"], ("{refinement}", "{refinement}+{reconstruction}")):

    rule:
        """Calibrate, mask and refine block after block, each on the outputs of those that are pruned already."""
        name:
            f"chain{'_rebuilt' * ('+' in METHOD)}_{MODEL_NAME}"
        input:
            unpack(partial(allocated, model=MODEL_NAME)),
            start=lambda wildcards: start_files(wildcards.warmstart),
            model=f"<results>/{MODEL_NAME}/model.json",
            samples=f"<results>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/samples.safetensors",
        output:
            **chained(MODEL_NAME, METHOD),
        log:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/{{pattern}}/{{warmstart}}/{METHOD}/chain.log",
        benchmark:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/{{pattern}}/{{warmstart}}/{METHOD}/chain.tsv"
        wildcard_constraints:
            calibration=PROPAGATES["pruned"],
        conda:
            ENVIRONMENT
        threads: config["threads"]
        resources:
            **resources("chain", model=MODEL_NAME),
            gpu=GPU,
        params:
            key=keyed(chain_key, model=MODEL_NAME),
        script:
            "../scripts/chain.py"
