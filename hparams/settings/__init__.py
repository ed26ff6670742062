"""Groups of settings, each with what its flags mean, and the stages of the scripts, which are made of groups.

`models` what is trained and drawn from · `training` how the loop runs · `stages` what every script has, and the
training scripts · `experiments` what is loaded, compared, made · `tools` commands without a stage.
"""
