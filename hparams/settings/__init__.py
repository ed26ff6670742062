"""Groups of settings, each with what its flags mean, and the stages of the scripts, which are made of groups.

`models` what is trained · `sampling` which trained models are loaded and what is drawn · `metrics` what is compared ·
`training` how the loop runs · `stages` what every script has, and the training scripts · `experiments` their stages ·
`tools` commands without a stage.
"""
