"""What a run takes before it begins: passes over programs, and the search for a plan. No torch, no MPI.

`training_pass.py` and `segmenting_pass.py` go through the steps for memory, `work.py` for operations and messages, to
which `time_model.py` gives seconds; `resolutions.py` plans a training run at several resolutions.
"""
