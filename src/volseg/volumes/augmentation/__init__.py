"""Augmentation of whole volumes: the changed image of any box is a function of volume, draw and box alone.

A `Draw` has the random numbers of one change of one case and follows from (seed, step, place). A view is what it makes
of the volume: as large as the volume, or a crop of it. Any way of cutting the view gives the same bits, so each rank
makes its own block, from those voxels of the volume that it comes from (`SpatialMap.source_box`). Arithmetic only: no
torch, no communication.
"""
