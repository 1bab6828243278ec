rule chain:
    """With `propagate: pruned`, prune block after block, each on the outputs of the pruned blocks before it.

    A job for each cell, which writes one file for each block into each folder. `weights` stays empty where the kept
    weights are not reconstructed.
    """
    input:
        unpack(allocation_file),
        start=start_files,
        model="<results>/{model}/model.json",
        samples="<results>/<draw>/samples.safetensors",
    output:
        masks=directory("<results>/<cell>/masks"),
        losses=directory("<results>/<cell>/losses"),
        curves=directory("<results>/<cell>/curves"),
        weights=directory("<results>/<cell>/weights"),
    log:
        "<logs>/<cell>/chain.log",
    benchmark:
        "<logs>/<cell>/chain.tsv"
    wildcard_constraints:
        calibration=PROPAGATES["pruned"],
    conda:
        ENVIRONMENT
    threads: STUDY.threads
    resources:
        **resources("chain"),
        gpu=GPU,
    params:
        **provenance("chain"),
    script:
        "../scripts/chain.py"
