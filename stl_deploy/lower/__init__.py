"""From a float graph to the integer network of a chip."""
