"""STL-SNNs in PyTorch: the layers of the official code, networks from a description, training."""
