"""Arithmetic on one rank's tensors: no communication, no layouts."""
