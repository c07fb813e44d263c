"""The training run that all recipes share.

`preparation` and `lessons` make models and data; `training_run` puts the parts together; `loop` takes the steps, with
`batches`, `strategy` (one process or many), `saving` and `training_state`. `capture` stores what a teacher predicts.
"""
