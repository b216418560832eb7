"""Images: one reader, bicubic reduction, crops and patches."""
