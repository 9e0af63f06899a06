"""Training on a Ray cluster: Ray places processes and notices their deaths; what they do, other rooms know."""
