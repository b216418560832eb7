"""Operating system and hardware: CPU features, GPU, resource limits, atomic files, output redirection."""
