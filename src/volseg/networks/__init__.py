"""What a network is: a description of its nodes and channels, without torch.

`description.py` has the nodes, `unet.py` makes the U-Net of a configuration from them, `as_json.py` stores them.
"""
