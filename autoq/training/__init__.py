"""Training: QAT, its losses, and float networks from scratch."""
