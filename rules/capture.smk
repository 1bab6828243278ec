# A model's blocks are captured in one pass and so by one job, whose outputs are as many as the model has blocks. One
# rule a model, since a rule's outputs cannot be a function of its wildcards.
for MODEL_NAME in config["models"]:

    rule:
        """Run the calibration text through the model; keep the Gram matrices of every block's distinct inputs."""
        name:
            f"capture_{MODEL_NAME}"
        input:
            model=f"<results>/{MODEL_NAME}/model.json",
            samples=f"<results>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/samples.safetensors",
        output:
            expand(
                "<results>/{model}/{{calibration}}/seed{{seed}}/gram/{block}.safetensors",
                model=MODEL_NAME,
                block=BLOCKS[MODEL_NAME],
            ),
        log:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/capture.log",
        benchmark:
            f"<logs>/{MODEL_NAME}/{{calibration}}/seed{{seed}}/capture.tsv"
        wildcard_constraints:
            calibration=PROPAGATES["dense"],
        conda:
            ENVIRONMENT
        threads: config["threads"]
        resources:
            **resources("capture", model=MODEL_NAME),
            gpu=GPU,
        params:
            key=keyed(capture_key, model=MODEL_NAME),
        script:
            "../scripts/capture.py"
