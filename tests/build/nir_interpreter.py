"""NIR graphs, read plainly: an interpreter that shares no code with the product.

It walks a ``nir.NIRGraph`` node by node and step by step in float64, in numpy and Python loops. Nothing
is multiplied out, merged or reshaped first, and nothing of ``stl_deploy`` is imported, so a mistake in
the importer or in the float executor cannot be repeated here.

    spikes, margin = run(graph, raster, dt)
    output = outputs(graph, raster, dt)

``raster`` is [N, T, *shape of the Input], or one for each Input by name; ``spikes`` holds uint8
[N, T, *shape] for every node that spikes. Nodes inside nested graphs are named ``graph.node``. ``margin`` is
the smallest distance of a value from its threshold that was met: draws with a tiny one are decided by
rounding. ``output`` is float64 [N, T, *shape] of what arrives at the Output.

Conventions, as in docs/import-nir.md. One step of each node, by forward Euler:

    LIF        v += dt/tau (v_leak - v + r x)
    CubaLIF    i += dt/tau_syn (w_in x - i), then v += dt/tau_mem (v_leak - v + r i)
    IF         v += dt r x; where r is 1 for all neurons, v += x
    Threshold  keeps nothing: v = x
    LI, CubaLI, I  as LIF, CubaLIF and IF, but nothing resets them; v is what leaves them

A spike is v > threshold, strictly. In the same step v becomes v_reset, or v - v_threshold where the
node's metadata says ``reset: "subtract"``. Everything starts at 0. Values on several edges into a node add
up, and an edge that stands twice counts twice. Zeros of the padding count in an AvgPool2d, and a Flatten
flattens everything. What leaves a Delay is what arrived delay/dt steps before, zeros at first.

Within one step a population receives the spikes that others send in this step. What it sends itself without a
Delay arrives in the next step; with one, after the Delay. Any other loop without a Delay means nothing.
"""

import nir
import numpy as np

SPIKING = (nir.LIF, nir.IF, nir.CubaLIF, nir.Threshold)
SILENT = (nir.LI, nir.I, nir.CubaLI)
NEURONS = (*SPIKING, *SILENT)


def run(graph, raster, dt=1e-4):
    """Spikes of every population, and the smallest distance from a threshold; see above."""
    network = _ran(graph, raster, dt)
    spikes = {n: np.stack([step[n] for step in network.sent], axis=1) for n in network.spiking}
    return {name: s.astype(np.uint8) for name, s in spikes.items()}, network.margin


def outputs(graph, raster, dt=1e-4):
    """What arrives at the Output in every step; see above."""
    return np.stack(_ran(graph, raster, dt).out, axis=1)


def _ran(graph, raster, dt):
    network = _Network(graph, dt)
    rasters = raster if isinstance(raster, dict) else dict.fromkeys(network.inputs, raster)
    rasters = {name: x.astype(np.float64) for name, x in rasters.items()}
    for t in range(next(iter(rasters.values())).shape[1]):
        network.step({name: x[:, t] for name, x in rasters.items()})
    return network


def flat(graph, prefix=""):
    """Nodes by name and (source, target) edges, with the nodes of nested graphs among them."""
    nodes, edges = {}, []
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            inner_nodes, inner_edges = flat(node, f"{prefix}{name}.")
            nodes |= inner_nodes
            edges += inner_edges
        else:
            nodes[prefix + name] = node
    for source, target in graph.edges:
        edges.append(
            (_end(graph, source, nir.Output, prefix), _end(graph, target, nir.Input, prefix))
        )
    return nodes, edges


def _end(graph, name, kind, prefix):
    """The node at which an edge to or from ``name`` ends: of a nested graph, its Input or Output."""
    node = graph.nodes[name]
    if not isinstance(node, nir.NIRGraph):
        return prefix + name
    (port,) = [key for key, inner in node.nodes.items() if isinstance(inner, kind)]
    return _end(node, port, kind, f"{prefix}{name}.")


class _Network:
    """The nodes with their state, for one batch of samples."""

    def __init__(self, graph, dt):
        self.nodes, edges = flat(graph)
        self.dt = dt
        self.sources = {name: [a for a, b in edges if b == name] for name in self.nodes}
        self.populations = [n for n, node in self.nodes.items() if isinstance(node, NEURONS)]
        self.spiking = [n for n in self.populations if isinstance(self.nodes[n], SPIKING)]
        sources = {a for a, _ in edges}
        (self.end,) = (
            n for n, x in self.nodes.items() if isinstance(x, nir.Output) and n not in sources
        )
        self.out = []  # of every step so far
        self.inputs = _inputs(self.nodes, edges)
        self.shapes = _shapes(self.nodes, edges)
        self.v, self.i = {}, {}
        self.sent, self.given = [], []  # of every step so far: spikes, inputs
        self.margin = np.inf

    def step(self, inputs):
        """One more step, for ``inputs`` [N, *shape] by name."""
        samples = len(next(iter(inputs.values())))
        if not self.sent:
            for name in self.populations:
                self.v[name] = self.i[name] = np.zeros((samples, *self.shapes[name]))
        self.sent.append({})
        self.given.append(inputs)
        for name in self.populations:
            self.spikes(name, len(self.sent) - 1)
        self.out.append(self.arriving(self.end, self.end, len(self.sent) - 1))

    def spikes(self, name, t):
        """The spikes of a population in step ``t``, which are computed once."""
        now = self.sent[t]
        if name not in now:
            now[name] = None  # on its way
            now[name] = self.fire(name, self.arriving(name, name, t))
        if now[name] is None:
            raise ValueError(f"{name} is in a loop without a Delay")
        return now[name]

    def arriving(self, name, reader, t, late=0):
        """The sum of what arrives at a node in step ``t``, ``late`` steps before it reaches ``reader``."""
        zeros = np.zeros((len(self.v[self.populations[0]]), *self.before(name)))
        total = zeros
        for source in self.sources[name]:
            node = self.nodes[source]
            if isinstance(node, NEURONS):
                at = t - 1 if source == reader and not late else t
                total = total + (self.spikes(source, at) if at >= 0 else zeros)
            elif source in self.inputs:
                total = total + (self.given[t][source] if t >= 0 else zeros)
            elif isinstance(node, nir.Delay):
                steps = int(np.rint(np.max(np.asarray(node.delay) / self.dt)))
                if t >= steps:
                    total = total + self.arriving(source, reader, t - steps, late + steps)
            else:
                value = self.arriving(source, reader, t, late)
                total = total + linear(node, value, self.dt)
        return total

    def before(self, name):
        """The shape of what arrives at a node."""
        return self.shapes[self.sources[name][0]]

    def fire(self, name, x):
        """One step of the neurons of a node."""
        node, shape, dt = self.nodes[name], self.shapes[name], self.dt

        def each(values):
            """A parameter for each neuron; a single value serves for all."""
            values = np.asarray(values, np.float64)
            return np.full(shape, values.item()) if values.size == 1 else values.reshape(shape)

        v = self.v[name]
        if isinstance(node, nir.Threshold):
            self.margin = min(self.margin, np.abs(x - each(node.threshold)).min())
            return np.where(x > each(node.threshold), 1.0, 0.0)
        if isinstance(node, nir.IF | nir.I):
            v = v + (x if np.all(node.r == 1) else dt * each(node.r) * x)
        elif isinstance(node, nir.LIF | nir.LI):
            v = v + dt / each(node.tau) * (each(node.v_leak) - v + each(node.r) * x)
        else:
            i = self.i[name]
            i = self.i[name] = i + dt / each(node.tau_syn) * (each(node.w_in) * x - i)
            v = v + dt / each(node.tau_mem) * (each(node.v_leak) - v + each(node.r) * i)
        if isinstance(node, SILENT):
            self.v[name] = v
            return v
        threshold = each(node.v_threshold)
        self.margin = min(self.margin, np.abs(v - threshold).min())
        subtract = node.metadata.get("reset", "zero") == "subtract"
        after = v - threshold if subtract else each(node.v_reset)
        self.v[name] = np.where(v > threshold, after, v)
        return np.where(v > threshold, 1.0, 0.0)


def _inputs(nodes, edges):
    """The Inputs of the whole graph; those of nested graphs have edges into them."""
    targets = {b for _, b in edges}
    return [n for n, x in nodes.items() if isinstance(x, nir.Input) and n not in targets]


def _shapes(nodes, edges):
    """The shape of what leaves each node, found by sending zeros through it."""
    shapes = {
        name: tuple(int(n) for n in nodes[name].input_type["input"])
        for name in _inputs(nodes, edges)
    }
    while True:
        new = [(a, b) for a, b in edges if a in shapes and b not in shapes]
        if not new:
            return shapes
        for source, target in new:
            node, zeros = nodes[target], np.zeros((1, *shapes[source]))
            same = isinstance(node, (*NEURONS, nir.Delay))
            shapes[target] = zeros.shape[1:] if same else linear(node, zeros, 1.0).shape[1:]


def linear(node, x, dt):
    """What a node without memory makes of x [N, ...]."""
    if isinstance(node, nir.Affine | nir.Linear):
        out = np.zeros((len(x), len(node.weight)))
        for o, row in enumerate(np.asarray(node.weight, np.float64)):
            out[:, o] = (x * row).sum(axis=1)
        return out + node.bias if isinstance(node, nir.Affine) else out
    if isinstance(node, nir.Scale):
        scale = np.asarray(node.scale, np.float64)
        return x * (scale.item() if scale.size == 1 else scale.reshape(x.shape[1:]))
    if isinstance(node, nir.Conv1d):
        (stride, _), (dilation, _) = _two(node.stride), _two(node.dilation)
        padding = _word(node.padding)
        padding = padding if isinstance(padding, str) else (0, _two(padding)[0])
        row, weight = x[:, :, None, :], np.asarray(node.weight)[:, :, None, :]
        options = (1, stride), padding, (1, dilation), node.groups
        return convolution(row, weight, node.bias, *options)[:, :, 0, :]
    if isinstance(node, nir.Conv2d):
        options = node.stride, _word(node.padding), node.dilation
        return convolution(x, np.asarray(node.weight), node.bias, *options, node.groups)
    if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
        return pooled(node, x)
    if isinstance(node, nir.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, nir.Input | nir.Output):
        return x
    raise TypeError(f"no meaning is known for {type(node).__name__}")


def convolution(x, weight, bias, stride, padding, dilation, groups):
    """Cross-correlation of x [N, C, H, W] with weight [O, C/groups, kh, kw], one place at a time."""
    outputs, inside, kh, kw = weight.shape
    (sy, sx), (dy, dx) = _two(stride), _two(dilation)
    reach = (kh - 1) * dy, (kw - 1) * dx
    if isinstance(padding, str):
        padding = (0, 0) if padding == "valid" else (reach[0] // 2, reach[1] // 2)
    py, px = _two(padding)
    n, channels, height, width = x.shape
    framed = np.zeros((n, channels, height + 2 * py, width + 2 * px))
    framed[:, :, py : py + height, px : px + width] = x
    rows = (framed.shape[2] - reach[0] - 1) // sy + 1
    columns = (framed.shape[3] - reach[1] - 1) // sx + 1
    out, groups = np.zeros((n, outputs, rows, columns)), int(groups)
    for g in range(groups):
        mine = framed[:, g * inside : (g + 1) * inside]
        own = slice(g * outputs // groups, (g + 1) * outputs // groups)
        for y in range(rows):
            for z in range(columns):
                top, left = y * sy, z * sx
                seen = mine[:, :, top : top + reach[0] + 1 : dy, left : left + reach[1] + 1 : dx]
                out[:, own, y, z] = (seen[:, None] * weight[own]).sum(axis=(2, 3, 4)) + bias[own]
    return out


def pooled(node, x):
    """Sums of windows of x [N, C, H, W], or their averages."""
    (kh, kw), (sy, sx), (py, px) = map(_two, (node.kernel_size, node.stride, node.padding))
    n, channels, height, width = x.shape
    framed = np.zeros((n, channels, height + 2 * py, width + 2 * px))
    framed[:, :, py : py + height, px : px + width] = x
    rows, columns = (framed.shape[2] - kh) // sy + 1, (framed.shape[3] - kw) // sx + 1
    out = np.zeros((n, channels, rows, columns))
    for y in range(rows):
        for z in range(columns):
            out[:, :, y, z] = framed[:, :, y * sy : y * sy + kh, z * sx : z * sx + kw].sum((2, 3))
    return out / (kh * kw) if isinstance(node, nir.AvgPool2d) else out


def _two(value):
    """A number, or two, as two."""
    values = [int(v) for v in np.ravel(value)]
    return values[0], values[-1]


def _word(padding):
    return padding.decode() if isinstance(padding, bytes) else padding
