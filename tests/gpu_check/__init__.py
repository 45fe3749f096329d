"""What a card really does: `make gpu-check`, or `python -m tests.gpu_check --random`."""
