"""A point put to use: exported, verified, evaluated, upscaling images."""
