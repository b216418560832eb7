"""Costs of a policy: size, operations, memory, latency."""
