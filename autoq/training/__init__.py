"""Training: quantization-aware training (QAT), its losses, and float training from scratch."""
