"""Networks only: one file a paper, plain PyTorch, no files read."""
