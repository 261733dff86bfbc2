"""NIR graphs of any tool."""
