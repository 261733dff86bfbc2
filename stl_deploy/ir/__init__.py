"""What a network is: float graph, integer network, synapses, and their execution in float64."""
