"""One module a stage, named as the stage: its `run` makes the stage's artifacts from files and settings.

`run(inputs, outputs, settings, context)` takes paths by name (a path, or a list of paths), the settings that
`workflow.stages` gives for the job, and a `context.Context`. It returns the line of result for the log.
"""
