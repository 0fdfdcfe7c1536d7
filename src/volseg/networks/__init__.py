"""What a network is: a description of its nodes and channels, without torch.

`description.py` has the nodes; `unet.py` and `segresnet.py` make the network of a configuration from them, and
`architectures.py` chooses between those by name; `as_json.py` stores descriptions.
"""
