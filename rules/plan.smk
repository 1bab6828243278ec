localrules:
    plan,


rule plan:
    """Print what the study needs, by its models' config.json alone: jobs, memory, disk, time."""
    log:
        "<logs>/<study>/plan.log",
    conda:
        ENVIRONMENT
    params:
        study=STUDY.dump(),
    script:
        "../scripts/plan.py"
