"""What a policy costs: size, operations, memory, latency."""
