"""The people who judge, and the simulated annotators who stand in for them. Nothing here imports torch."""
