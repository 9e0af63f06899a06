"""Training in several processes: who they are, whose weights are where, and checkpoints in parts.

Existing engines do the work: torchrun starts the processes, FSDP2 keeps the weights, DCP writes them.
"""
