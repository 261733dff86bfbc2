"""PyTorch modules with snnTorch neurons."""
