"""Tools that run a network and are compared with the reference, and where they live."""
