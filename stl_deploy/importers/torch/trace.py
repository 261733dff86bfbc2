"""What a PyTorch module computes, recorded while it runs on a sample: every tensor knows where it is from.

Modules with a meaning of their own (``nn.Linear``, a spiking neuron, ...) are steps of the record; any
other function of a tensor that depends on the input must be one that is known here, such as flatten or
indexing by time. What is not is a problem, and so is control flow that looks at values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stl_deploy.errors import Problem
from stl_deploy.ir.synapses import Shape

SAME = {"clone", "detach", "detach_", "contiguous", "float", "double", "to", "type", "type_as"}
SAME |= {"requires_grad_", "cpu", "cuda", "alias"}
RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "ravel"}
FACTS = {
    "size",
    "dim",
    "numel",
    "stride",
    "is_floating_point",
    "is_complex",
    "nelement",
    "ndimension",
}
FACTS |= {
    "zeros_like",
    "new_zeros",
    "get_device",
    "is_contiguous",
    "__len__",
    "__format__",
    "__repr__",
}
FACTS |= {"element_size", "data_ptr", "is_pinned", "register_hook", "__hash__", "is_nonzero_static"}
ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
SCALES = {"mul", "__mul__", "__rmul__", "multiply"}
DIVIDES = {"div", "__truediv__", "true_divide", "divide"}
RECORDS = {"stack", "cat", "concat", "concatenate"}
PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
READOUTS = {"sum": "sum", "mean": "mean", "max": "max", "amax": "max"}
INSTEAD = "use what docs/import-snntorch.md lists (How it is read), or do it outside the network"
REMEDIES = {
    **dict.fromkeys(
        ("softmax", "log_softmax", "argmax", "softmin"),
        "return what goes into it; the class with the largest value is chosen",
    ),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "linear", "einsum"), "use nn.Linear"),
    **dict.fromkeys(("conv1d", "conv2d"), "use nn.Conv1d or nn.Conv2d"),
    **dict.fromkeys(("sub", "__sub__", "subtract"), "add the second times -1: a + (-1) * b"),
    **dict.fromkeys(
        RECORDS - {"stack"},
        "join channels by torch.cat(..., dim=1) of tensors [batch, channels, ...], or the steps that "
        "are returned by torch.stack",
    ),
}
STATES = (
    "spk",
    "syn_exc",
    "syn_inh",
    "syn",
    "mem",
)  # of a neuron, in the order that forward takes them
MADE_HERE = -1  # ``at`` of a module that stands for a function, and is none of the network's


class Moved(NamedTuple):
    """A step from the sample to what is read of it: its axes in another order, or another shape.

    ``ordered`` says whether all values behind the first axis keep their order.
    """

    kind: Literal["permute", "reshape"]
    sizes: tuple[int, ...]
    ordered: bool = True

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """``x`` after it."""
        return x.transpose(self.sizes) if self.kind == "permute" else x.reshape(self.sizes)


@dataclass(frozen=True, eq=False)
class Value:
    """Where a tensor is from.

    kind: "input" (``at`` the time step, None for the whole sample), "neuron" (output ``at`` of call
    ``call`` of ``name``), "module" or "op" (``name``, of ``args``), "record" (``args`` one a step), or
    "unknown", of which a problem has been noted. ``at`` of a record is the axis of time, None where there
    is none any more; its ``facts`` then say what was made of the steps, an entry of ``READOUTS``.
    ``shape`` is that of the tensor. ``facts`` of an input are the ``Moved`` that make it of the sample.
    """

    kind: str
    shape: Shape
    name: str = ""
    args: tuple[Value, ...] = ()
    at: int | None = None
    call: int = 0
    facts: Any = None


@dataclass
class Call:
    """One call of a spiking neuron: its input, where its states come from, None where nowhere."""

    given: Value
    states: tuple[Value | None, ...]


@dataclass
class Trace:
    """Everything recorded; ``calls`` of each neuron by name, ``returned`` what the module gave."""

    modules: dict[str, nn.Module]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    returned: list[Value | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Recorder(TorchFunctionMode):
    """Follows tensors through functions; ``inside`` counts modules whose own functions do not matter."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.trace = Trace(dict(net.named_modules()))
        self.known: dict[int, tuple[Tensor, Value]] = {}
        self.inside = 0
        self.where: list[str] = []
        self.count: dict[str, int] = {}

    def value(self, tensor: Any) -> Value | None:
        """Where a tensor is from, None for what does not depend on the input."""
        found = self.known.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return found[1] if found is not None and found[0] is tensor else None

    def know(self, tensor: Tensor, value: Value) -> None:
        """Remember it; the tensor is kept, so that no other gets its identity."""
        self.known[id(tensor)] = tensor, value

    def complain(self, what: str, remedy: str = "") -> None:
        """Note a problem once, at the module that is running."""
        where = next((name for name in reversed(self.where) if name), "forward")
        problem = Problem(where, what, remedy)
        if problem not in self.trace.problems:
            self.trace.problems.append(problem)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        used = [v for x in tensors((args, kwargs)) if (v := self.value(x)) is not None]
        if not used:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name == "__iter__":
            return iter(self._follow("unbind", args[0].unbind(0), args, kwargs, used))
        if name in ("__bool__", "item", "tolist", "__int__", "__float__", "numpy", "__index__"):
            self.complain(
                f"looks at values of a tensor ({name}), so that what it computes may depend on them",
                "write it without control flow on values",
            )
            return func(*args, **kwargs)
        if name == "__setitem__":
            self.complain("writes into a tensor that depends on the input", "make a new tensor")
        out = func(*args, **kwargs)
        if name in FACTS or name == "__get__" or not list(tensors(out)):
            return out
        return self._follow(name, out, args, kwargs, used)

    def _follow(self, name: str, out: Any, args: Any, kwargs: Any, used: list[Value]) -> Any:
        """Remember where ``out`` is from; what is not understood becomes "unknown"."""
        results = list(tensors(out))
        if any(value.kind == "unknown" for value in used):
            for tensor in results:
                self.know(tensor, Value("unknown", tuple(tensor.shape)))
            return out
        if name in ("unbind", "split", "chunk") and self._whole_input(used):
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if name == "unbind" and axis in (0, 1):
                facts = used[0].facts
                for t, tensor in enumerate(results):
                    here = Value("input", tuple(tensor.shape), at=t, call=axis, facts=facts)
                    self.know(tensor, here)
                return out
        several = len(results) > 1 and name != "max"  # which also says where the maximum is
        value = None if several else self._known_op(name, results[0], args, kwargs, used)
        if value is None:
            what = f"{name} of a tensor that depends on the input is not understood"
            self.complain(what, REMEDIES.get(name, INSTEAD))
            value = Value("unknown", tuple(results[0].shape))
        for i, tensor in enumerate(results):
            self.know(tensor, value if i == 0 else Value("unknown", tuple(tensor.shape)))
        return out

    def _whole_input(self, used: list[Value]) -> bool:
        return len(used) == 1 and used[0].kind == "input" and used[0].at is None

    def _known_op(
        self, name: str, out: Tensor, args: Any, kwargs: Any, used: list[Value]
    ) -> Value | None:
        shape, first = tuple(out.shape), used[0]
        numbers = [x for x in (*args, *kwargs.values()) if isinstance(x, int | float)]
        alone = len(used) == 1 and len(list(tensors((args, kwargs)))) == 1
        if name in SAME and alone and _keeps_values(out, args[0]):
            return Value(
                first.kind, shape, first.name, first.args, first.at, first.call, first.facts
            )
        if name in RESHAPES and alone:
            return _reshaped(first, shape)
        if name == "__getitem__" and self._whole_input(used):
            return _at_a_time(first, args[1], shape)
        if name in PERMUTES and alone and self._whole_input(used):
            return _permuted(first, name, args[1:], kwargs)
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        joins = name in RECORDS and name != "stack" and isinstance(axis, int)
        if joins and len(shape) > 1 and axis in (1, 1 - len(shape)):
            if len(used) == len(list(tensors((args, kwargs)))):
                return Value("op", shape, self._name("cat"), tuple(used), facts=("cat",))
            return None
        if name in RECORDS and (axis in (None, 0) or (name, axis) == ("stack", 1)):
            together = len(used) == len(list(tensors((args, kwargs))))
            time = (axis or 0) if name == "stack" else None
            return Value("record", shape, args=tuple(used), at=time) if together else None
        if first.kind == "record" and first.at is not None and len(used) == 1:
            return self._of_steps(name, first, args, kwargs, shape)
        if name in ADDS and kwargs.get("alpha", 1) != 1:
            return None
        if name in ADDS and len(used) == 2 and used[0].shape == used[1].shape == shape:
            return Value("op", shape, self._name("add"), tuple(used), facts=("add",))
        if name in ADDS and alone and numbers == [0]:
            return first
        if name in ADDS and len(used) == 1 and shape == first.shape and self._zeros(args):
            return first
        if name in SCALES and alone and len(numbers) == 1:
            return self._op("scale", first, shape, float(numbers[0]))
        rounded = kwargs.get("rounding_mode") is not None
        if name in DIVIDES and not rounded and alone and len(numbers) == 1 and numbers[0]:
            return self._op("scale", first, shape, 1 / float(numbers[0]))
        if name in ("max_pool2d", "_max_pool2d", "avg_pool2d") and alone:
            return self._pool(name, first, shape, args, kwargs)
        drops = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else False))
        if name.endswith("dropout") and alone and not drops:
            return first
        return None

    def _zeros(self, args: Any) -> bool:
        """Whether all tensors but one, whose origin is known, are full of zeros."""
        others = [x for x in tensors(args) if self.value(x) is None]
        return len(others) == 1 and not bool(others[0].any())

    def _of_steps(
        self, name: str, first: Value, args: Any, kwargs: Any, shape: Shape
    ) -> Value | None:
        """What a function makes of a record whose axis of time is there."""
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        axes = [axis] if isinstance(axis, int) else axis
        found = list(tensors((args, kwargs)))
        if name in READOUTS and len(found) == 1:
            ndim = len(first.shape)
            over = isinstance(axes, list | tuple) and [a % ndim for a in axes] == [first.at]
            return Value("record", shape, args=first.args, facts=READOUTS[name]) if over else None
        if name == "__getitem__" and len(found) == 1:
            return _steps_of(first, args[1], shape)
        if name not in SCALES | DIVIDES or kwargs.get("rounding_mode") is not None:
            return None
        other = next((x for x in (*args, *kwargs.values()) if self.value(x) is None), None)
        factors = _by_step(other, first)
        if factors is None or (name in DIVIDES and 0 in factors):
            return None
        scaled = [
            self._op("scale", part, part.shape, 1 / factor if name in DIVIDES else factor)
            for part, factor in zip(first.args, factors, strict=True)
        ]
        return Value("record", shape, args=tuple(scaled), at=first.at)

    def _op(self, kind: str, first: Value, shape: Shape, fact: Any) -> Value:
        return Value("op", shape, self._name(kind), (first,), facts=(kind, fact))

    def _pool(self, name: str, first: Value, shape: Shape, args: Any, kwargs: Any) -> Value:
        keys: tuple[str, ...] = ("kernel_size", "stride", "padding")
        if "avg" in name:
            keys += ("ceil_mode", "count_include_pad", "divisor_override")
        else:
            keys += ("dilation", "ceil_mode", "return_indices")
        given = dict(zip(keys, args[1:], strict=False)) | kwargs
        cls = nn.AvgPool2d if "avg" in name else nn.MaxPool2d
        module = cls(**{k: v for k, v in given.items() if k in keys})
        return Value("module", shape, self._name("pool"), (first,), at=MADE_HERE, facts=module)

    def _name(self, kind: str) -> str:
        self.count[kind] = self.count.get(kind, 0) + 1
        name = f"{kind}_{self.count[kind]}"
        return name


def _keeps_values(out: Tensor, before: Any) -> bool:
    """Whether a cast rounds nothing away that a float32 holds."""
    same = isinstance(before, Tensor) and before.dtype == out.dtype
    return same or out.dtype in (torch.float32, torch.float64)


def _reshaped(first: Value, shape: Shape) -> Value | None:
    """A reshape that leaves the batch alone; None for another."""
    if first.shape == shape:
        return first
    if first.kind == "input":
        # What comes in may be given in any shape of the same values.
        facts = first.facts
        if first.at is None:
            facts = (*(facts or ()), Moved("reshape", shape))
        return Value("input", shape, at=first.at, call=first.call, facts=facts)
    if len(shape) < 1 or not first.shape or shape[0] != first.shape[0]:
        return None
    if len(shape) == 2 and shape[1] == math.prod(first.shape[1:]):
        return Value("op", shape, "flatten", (first,), facts=("flatten", None))
    return None


def _permuted(first: Value, name: str, args: Any, kwargs: Any) -> Value | None:
    """The sample with time or batch elsewhere; None where the values of a step change their order."""
    # Which axes go where is what the function does to axes of sizes of their own.
    probe = torch.empty(tuple(range(2, 2 + len(first.shape))), device="meta")
    moved = getattr(torch.Tensor, name)(probe, *args, **kwargs)
    axes = tuple(size - 2 for size in moved.shape)
    if not _ordered(axes[2:], first.shape):
        return None
    shape = tuple(first.shape[axis] for axis in axes)
    moved_axes = Moved("permute", axes, _ordered(axes[1:], first.shape))
    return Value("input", shape, facts=(*(first.facts or ()), moved_axes))


def _ordered(axes: tuple[int, ...], shape: Shape) -> bool:
    """Whether values along ``axes`` of a tensor of ``shape`` stand as they did."""
    long = [axis for axis in axes if shape[axis] > 1]
    return long == sorted(long)


def _at_a_time(first: Value, index: Any, shape: Shape) -> Value | None:
    """The input at one time step: ``x[t]`` or ``x[:, t]``."""

    def step(at: int, axis: int) -> Value:
        return Value("input", shape, at=at, call=axis, facts=first.facts)

    if isinstance(index, int):
        return step(index, 0)
    rest = isinstance(index, tuple) and len(index) >= 2 and index[0] == slice(None)
    if rest and isinstance(index[1], int) and all(i in (slice(None), ...) for i in index[2:]):
        return step(index[1], 1)
    leads = isinstance(index, tuple) and len(index) > 0 and isinstance(index[0], int)
    if leads and all(i in (slice(None), ...) for i in index[1:]):
        return step(index[0], 0)
    return None


def _steps_of(first: Value, index: Any, shape: Shape) -> Value | None:
    """One step of a record, or some of its steps, as ``x[index]`` takes them along its axis of time."""
    whole = isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)
    along = index[1] if whole and first.at == 1 else index if first.at == 0 else None
    if isinstance(along, int):
        return first.args[along]
    if isinstance(along, slice):
        return Value("record", shape, args=first.args[along], at=first.at)
    return None


def _by_step(other: Any, first: Value) -> list[float] | None:
    """The numbers, one for each step of a record, with which ``other`` multiplies it."""
    steps = len(first.args)
    if isinstance(other, int | float):
        return [float(other)] * steps
    if not isinstance(other, Tensor) or other.ndim > len(first.shape) or first.at is None:
        return None
    sizes = [1] * (len(first.shape) - other.ndim) + list(other.shape)
    if any(n != 1 for axis, n in enumerate(sizes) if axis != first.at):
        return None
    values = other.detach().double().flatten().tolist()
    return values * steps if len(values) == 1 else values if len(values) == steps else None


def applied(module: nn.Module, name: str, first: Value, shape: Shape) -> Value:
    """What a module with a meaning of its own makes of ``first``; of a record, step by step."""
    if first.kind == "unknown":
        return Value("unknown", shape)
    if first.kind == "record" and first.at is not None and isinstance(module, nn.Linear):
        size = *shape[: first.at], *shape[first.at + 1 :]
        parts = [Value("module", size, name, (part,), facts=module) for part in first.args]
        return Value("record", shape, args=tuple(parts), at=first.at)
    return Value("module", shape, name, (first,), facts=module)


def tensors(what: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, list | tuple):
        for part in what:
            yield from tensors(part)
    elif isinstance(what, dict):
        yield from tensors(list(what.values()))


def record(
    net: nn.Module,
    sample: Tensor,
    is_neuron: Callable[[nn.Module], bool],
    is_step: Callable[[nn.Module], bool],
) -> Trace:
    """Run ``net`` on ``sample`` in evaluation mode, without gradients, and record it."""
    recorder = Recorder(net)
    was_training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad(), _hooked(net, recorder, is_neuron, is_step):
            # A view is a tensor of its own, so that the caller's stays unknown.
            mine = sample.detach().clone()
            recorder.know(mine, Value("input", tuple(mine.shape)))
            with recorder:
                out = net(mine)
    finally:
        for module, mode in was_training.items():
            module.training = mode
    recorder.trace.returned = [recorder.value(tensor) for tensor in tensors(out)]
    return recorder.trace


@contextmanager
def _hooked(
    net: nn.Module,
    recorder: Recorder,
    is_neuron: Callable[[nn.Module], bool],
    is_step: Callable[[nn.Module], bool],
) -> Iterator[None]:
    """Hooks on every module that tell the recorder where it is and what steps give."""
    handles = []
    for name, module in net.named_modules():
        leaf = is_neuron(module) or is_step(module)
        if any(name.startswith(f"{other}.") for other in _leaves(net, is_neuron, is_step)):
            continue
        before, after = _watch(name, module, recorder, leaf, is_neuron(module))
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaves(
    net: nn.Module, is_neuron: Callable[[nn.Module], bool], is_step: Callable[[nn.Module], bool]
) -> list[str]:
    return [name for name, m in net.named_modules() if is_neuron(m) or is_step(m)]


def _watch(
    name: str, module: nn.Module, recorder: Recorder, leaf: bool, neuron: bool
) -> tuple[Any, Any]:
    held: list[Any] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.where.append(name)
        if leaf and not recorder.inside and neuron:
            held.append(_held_states(module))
        recorder.inside += leaf

    def after(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        recorder.inside -= leaf
        recorder.where.pop()
        if leaf and not recorder.inside:
            inputs = [recorder.value(x) for x in args] + [
                recorder.value(x) for x in kwargs.values()
            ]
            if neuron:
                _neuron_called(name, recorder, args, kwargs, held.pop(), out)
            elif inputs and inputs[0] is not None:
                recorder.know(out, applied(module, name, inputs[0], tuple(out.shape)))

    return before, after


def _held_states(module: nn.Module) -> dict[str, Tensor]:
    return {key: getattr(module, key) for key in STATES if hasattr(module, key)}


def _neuron_called(
    name: str, recorder: Recorder, args: Any, kwargs: Any, held: dict[str, Tensor], out: Any
) -> None:
    """Note a call of a neuron; states that were not given are those that it held."""
    given = recorder.value(args[0]) if args else None
    calls = recorder.trace.calls.setdefault(name, [])
    keys = list(held)
    passed = dict(zip(keys, args[1:], strict=False)) | {
        k: v for k, v in kwargs.items() if k in held
    }
    states = {key: passed[key] if passed.get(key) is not None else held[key] for key in keys}
    if given is None:
        recorder.where.append(name)
        recorder.complain("its input does not depend on the network's input")
        recorder.where.pop()
        given = Value("unknown", ())
    for state in states.values():
        if (
            recorder.value(state) is None
            and not calls
            and state.numel()
            and bool((state != 0).any())
        ):
            recorder.where.append(name)
            recorder.complain("does not start from states of zero", "reset it before")
            recorder.where.pop()
    calls.append(Call(given, tuple(recorder.value(state) for state in states.values())))
    module = recorder.trace.modules[name]
    results = {"spk": next(tensors(out))} | {
        key: getattr(module, key) for key in keys if key != "spk"
    }
    for tensor in tensors(out):
        results |= {"spk": tensor} if tensor is next(tensors(out)) else {}
    for i, (_key, tensor) in enumerate(results.items()):
        value = Value("neuron", tuple(tensor.shape), name, at=i, call=len(calls) - 1)
        recorder.know(tensor, value)
