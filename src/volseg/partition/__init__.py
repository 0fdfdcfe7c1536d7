"""How a volume is cut, as arithmetic alone: blocks, windows, ghosts, slabs, bricks, tiles, and what lies where."""
