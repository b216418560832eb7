"""Deployment: export and verify points, evaluate exported files, upscale images."""
