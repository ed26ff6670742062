"""Typed settings, presets by data set, and the command line made from them. Imports nothing else of ours, and no torch.

`errors` what ends a script with one line · `launch` what torchrun says · `script` how a script starts and fails ·
`fields` what one setting is · `settings` groups and stages · `presets` values by data set · `saved` hparams.yaml ·
`folders` names of run folders · `derived` values that follow from others · `checks` what does not fit together ·
`notes` what is said though it is no error · `same_command` which command goes on with a run · `resolve` from typed
flags to a stage · `cli` reading flags.
"""
