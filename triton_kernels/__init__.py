"""Kernels for token log-probs and LoRA-expert routing."""
