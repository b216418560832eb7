"""Trace a network to a torch.fx graph, check it against the eager network, and insert quantizers."""
