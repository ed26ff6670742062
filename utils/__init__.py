"""All that runs around the models, by floor: `machine`, `data`, `runs`, `pretrained` and `reporting`, `training` and
`sampling`, `metrics`. A package imports those of lower floors only.
"""
