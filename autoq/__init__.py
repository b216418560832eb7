"""autoq finds the Pareto-best ways to quantize a super-resolution network for a target."""

__version__ = "0.1.0"
