"""Run folders, and the job that works in one.

`job`: what is ambient to a running command. `shards`: long work in part files. `record`: what a run writes as it goes
(`logged`: files that outlive a full disk, and reading them); `sink`: the interface of what shows it. `results`:
`results.json`. `run_folder`: what lies where. `checkpoints`: model files and training states; `retention`: which of
them stay, and what they take. `preflight`: what can be found missing before anything is built.
"""
