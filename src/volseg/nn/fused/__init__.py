"""Convolution, normalisation and activation as one operation that holds one tensor: what the convolution gave.

The normalised, activated tensor is never held: it is an `Activation` (`kernels.rows`), the raw tensor and two
coefficients per channel, and the next kernel computes it as it reads. Backward does the same again, so neither the
pre-activation nor the activated tensor is kept, and nothing has to be inverted.
"""
