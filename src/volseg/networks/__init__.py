"""What a network is: a description of its operations and tensors, without torch."""
