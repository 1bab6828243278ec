"""One module a stage, named as the stage: its `run(inputs, outputs, settings, context)` makes the stage's artifacts.

`run` takes paths by name (a path, or a list of paths), the settings that `workflow.stages` gives for the job, and a
`context.Context`, and returns the line of result for the log. `block` is no stage: the stages of one block share it.
"""
