"""How close the integers are to the float model, and every backend to the reference."""
