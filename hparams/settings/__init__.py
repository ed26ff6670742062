"""Groups of settings, each with what its flags mean, and the stages of the scripts, which are made of groups.

`data` which images · `models` what is trained · `sampling` how tokens are drawn · `training` how the loop runs ·
`stages` what every script has, and the training scripts · `experiments` what is loaded, compared, made · `tools`
commands without a stage.
"""
