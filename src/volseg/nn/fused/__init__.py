"""Programs executed: `runner.py` is the loop, `backend.py` says who computes, the rest is what steps do and share.

Of each convolution its raw output is in memory and nothing else. The normalised, activated tensor is an `Activation`
(`kernels.rows`), the raw tensor and two coefficients per channel, and the next kernel computes it as it reads. Backward
does the same again, so neither the pre-activation nor the activated tensor is kept, and nothing has to be inverted.
"""
