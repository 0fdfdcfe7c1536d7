"""What is done: the steps of a rank as one list, which is run, planned, timed and named after.

`build.py` makes a program from a network's description and what was chosen; `step.py` says what steps, ops and tensors
are. A program has no sizes: these come from a layout when it is run (`nn.fused.runner`) or gone through (`planning`).
"""
