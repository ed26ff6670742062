"""What shows a run, from what its record takes or its folder holds.

`layout`: which panes a run has. `board`: what they show; replay. `sinks`: what `--sinks` names, each in a thread of its
own: `visdom` (its messages: `visdom_messages`), `summary` (the page), `services` (TensorBoard, Weights & Biases).
`training_report`: what a training run says of itself.
"""
