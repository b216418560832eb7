"""A network as one torch.fx graph: traced, compared with the eager network, quantizers inserted."""
