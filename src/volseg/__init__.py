"""volseg: 3D U-Nets on whole volumes, split over MPI ranks."""

__version__ = "0.1.0"
