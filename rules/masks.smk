def masked_key(at):
    """The key of the stage that made a cell's masks, by its method."""
    refinement, _, reconstruction = at["method"].partition("+")
    at = {**at, "refinement": refinement} | ({"reconstruction": reconstruction} if reconstruction else {})
    return chain_key(at) if config["calibrations"][at["calibration"]]["propagate"] == "pruned" else refine_key(at)


def masks_key(at):
    return key("masks", counts(at), packages=("torch", "safetensors"), after=[masked_key(at)])


rule masks:
    """Put the masks of all blocks into one file, each of its tensor's shape, and check what they keep."""
    input:
        unpack(allocated),
        model="<results>/{model}/model.json",
        masks=masks_of_blocks,
    output:
        "<results>/<cell>/masks.safetensors",
    log:
        "<logs>/<cell>/masks.log",
    benchmark:
        "<logs>/<cell>/masks.tsv"
    conda:
        ENVIRONMENT
    resources:
        **resources("masks"),
    params:
        key=keyed(masks_key),
    script:
        "../scripts/masks.py"
