"""What a script needs of the machine that runs it. Knows no runs.

`devices` picks device and precision; `compiling` applies torch.compile; `cuda_graphs` captures and replays CUDA graphs;
`distributed` joins torchrun's processes; `evaluation` switches networks to evaluation and back; `seeding` derives
random streams; `signals` turns signals into an orderly end; `files` writes files whole and locks them; `progress` shows
how far work has come; `stopwatch` divides a loop's time among its phases.
"""
