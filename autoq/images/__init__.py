"""Images: file reader, bicubic downscaling, evaluation crops and training patches."""
