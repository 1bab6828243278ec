localrules:
    plan,


rule plan:
    """Print what the study needs, by its models' config.json alone: jobs, memory, disk, time."""
    log:
        "<logs>/<study>/plan.log",
    conda:
        ENVIRONMENT
    params:
        key=key("plan", {"config": config}, packages=()),
    script:
        "../scripts/plan.py"
