"""Networks as torch modules: plain ones, those that a program trains or segments with, and those on disk."""
