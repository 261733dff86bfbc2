"""What a PyTorch module computes, recorded while it runs on a sample: every tensor knows where it is from.

Modules with a meaning of their own (``nn.Linear``, a spiking neuron, ...) are steps of the record; any
other function of a tensor that depends on the input must be one that is known here, such as flatten or
indexing by time. What is not is a problem, and so is control flow that looks at values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stl_deploy.errors import Problem
from stl_deploy.importers.torch.families import Family, family_of, is_neuron
from stl_deploy.importers.torch.spikingjelly_layers import all_steps, factors, plain
from stl_deploy.importers.torch.values import (
    MADE_HERE,
    Value,
    along_batch,
    at_a_time,
    by_step,
    by_steps,
    has_parts,
    has_steps,
    keeps_values,
    moved_to,
    permuted,
    repeated,
    reshaped,
    selected,
    steps_of,
    tensors,
)
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
EACH = (nn.Linear, nn.Identity, nn.Dropout)  # work on the last axis, or on each number
READOUTS = {"sum": "sum", "mean": "mean", "max": "max", "amax": "max"}
APART = {"__getitem__", "select", "flatten", "view", "reshape", *READOUTS}
FROM = {"rsub", "__rsub__"}
DIVIDES = {"div", "__truediv__", "true_divide", "divide"}
REPEATS = {"repeat", "expand", "expand_as", "broadcast_to"}
RECORDS = {"stack", "cat", "concat", "concatenate"}
PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
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
        self.layers: dict[tuple[str, Shape], nn.Module] = {}
        self.apart: dict[tuple[int, int], tuple[Value, Value | None]] = {}

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
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if name == "unbind":
            used = [self.with_steps(value) if value.kind == "module" else value for value in used]
        if name == "unbind" and len(used) == 1 and has_steps(used[0]) and axis == used[0].at:
            for part, tensor in zip(used[0].args, results, strict=True):
                self.know(tensor, part)
            return out
        if name == "unbind" and self._whole_input(used) and axis in (0, 1):
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
        if name in APART and first.kind == "module":
            first = self.with_steps(first)
            used = [first, *used[1:]]
        numbers = [x for x in (*args, *kwargs.values()) if isinstance(x, int | float)]
        alone = len(used) == 1 and len(list(tensors((args, kwargs)))) == 1
        if name in SAME and alone and keeps_values(out, args[0]):
            return Value(
                first.kind, shape, first.name, first.args, first.at, first.call, first.facts
            )
        if name in REPEATS and alone:
            return repeated(first, shape)
        if name in RESHAPES and alone:
            return self._reshaped(name, first, args, kwargs, shape)
        if name == "select" and alone and len(args) == 3:
            name, args = "__getitem__", (args[0], selected(first, *args[1:]))
        if name == "__getitem__" and self._whole_input(used):
            return at_a_time(first, args[1], shape)
        if name in PERMUTES and alone and self._whole_input(used):
            return permuted(first, name, args[1:], kwargs)
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
        if has_steps(first) and len(used) == 1:
            return self._of_steps(name, first, args, kwargs, shape)
        if name in ADDS and kwargs.get("alpha", 1) != 1:
            return None
        if name in ADDS | SCALES and len(used) == 2 and all(map(has_parts, used)):
            return self._each_step("add" if name in ADDS else "and", used[0], used[1], shape)
        if name in ADDS and len(used) == 2 and used[0].shape == used[1].shape == shape:
            return Value("op", shape, self._name("add"), tuple(used), facts=("add",))
        if name in ADDS and alone and numbers == [0]:
            return first
        if name in ADDS and len(used) == 1 and shape == first.shape and self._zeros(args):
            return first
        if name in SCALES and len(used) == 2 and used[0].shape == used[1].shape == shape:
            return Value("op", shape, self._name("and"), tuple(used), facts=("and",))
        if name in FROM and alone and numbers == [1]:
            return Value("op", shape, self._name("not"), (first,), facts=("not",))
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

    def _each_step(self, kind: str, one: Value, other: Value, shape: Shape) -> Value | None:
        """The sum or product of two records, step by step."""
        if one.shape != other.shape or one.at != other.at or len(one.args) != len(other.args):
            return None
        parts = tuple(
            Value("op", a.shape, self._name(kind), (a, b), facts=(kind,))
            for a, b in zip(one.args, other.args, strict=True)
        )
        return Value("record", shape, args=parts, at=one.at)

    def _reshaped(
        self, name: str, first: Value, args: Any, kwargs: Any, shape: Shape
    ) -> Value | None:
        """A reshape of what has steps, or of what has none."""
        steps = shape[0] if shape else 0
        if name == "unsqueeze" and first.kind != "input":
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return Value("record", shape, args=(first,), at=axis) if axis in (0, 1) else None
        if has_steps(first) and first.shape != shape:
            return self._steps_reshaped(first, shape)
        apart = len(shape) > 1 and first.shape == (steps * shape[1], *shape[2:])
        if apart and first.kind != "input":
            # What stood along the batch, one step behind the other, is taken apart again.
            parts = [self._step_of(first, t, steps) for t in range(steps)]
            found = [part for part in parts if part is not None]
            if len(found) == steps:
                return Value("record", shape, args=tuple(found), at=0)
        return reshaped(first, shape)

    def _steps_reshaped(self, first: Value, shape: Shape) -> Value | None:
        """A record with its steps along the batch, or with each of its steps reshaped."""
        if first.at == 0 and shape == (first.shape[0] * first.shape[1], *first.shape[2:]):
            return Value("record", shape, args=first.args)
        if len(shape) > 1 and shape[:2] == first.shape[:2] and first.at is not None:
            size = (*shape[: first.at], *shape[first.at + 1 :])
            parts = [reshaped(part, size) for part in first.args]
            found = tuple(part for part in parts if part is not None)
            if len(found) == len(parts):
                return Value("record", shape, args=found, at=first.at)
        return None

    def _step_of(self, value: Value, t: int, steps: int) -> Value | None:
        """Step ``t`` of what was computed of a whole input whose steps stand along the batch.

        None where it comes from something else. What is asked for again is the same value.
        """
        key = id(value), t
        if key not in self.apart:
            self.apart[key] = value, self._made_step(value, t, steps)
        return self.apart[key][1]

    def _made_step(self, value: Value, t: int, steps: int) -> Value | None:
        shape = (value.shape[0] // steps, *value.shape[1:])
        if value.kind == "input" and value.at is None:
            return Value("input", shape, at=t, call=0, facts=moved_to(value, (steps, *shape)))
        if value.kind == "record" and along_batch(value):
            return value.args[t] if len(value.args) == steps else None
        if value.kind not in ("module", "op"):
            return None
        parts = [self._step_of(part, t, steps) for part in value.args]
        found = tuple(part for part in parts if part is not None)
        if len(found) != len(parts):
            return None
        return Value(value.kind, shape, value.name, found, value.at, value.call, value.facts)

    def applied(self, module: nn.Module, name: str, first: Value, shape: Shape) -> Value:
        """What a module with a meaning of its own makes of ``first``; of a record, step by step."""
        if first.kind == "unknown":
            return Value("unknown", shape)
        if all_steps(module):
            first = self.with_steps(first)
        if not has_parts(first):
            before = first.shape[1:]
            return Value("module", shape, name, (first,), facts=self._plain(module, name, before))
        if not all_steps(module) and not along_batch(first) and not isinstance(module, EACH):
            return Value("module", shape, name, (first,), facts=module)
        steps = len(first.args)
        if first.at is None:
            size = (shape[0] // steps, *shape[1:])
        else:
            size = *shape[: first.at], *shape[first.at + 1 :]
        facts = self._plain(module, name, first.args[0].shape[1:])
        parts = [Value("module", size, name, (part,), facts=facts) for part in first.args]
        by_step = factors(module)
        if by_step is not None:
            pairs = zip(parts, by_step, strict=True)
            parts = [self._op("scale", part, size, factor) for part, factor in pairs]
        return Value("record", shape, args=tuple(parts), at=first.at)

    def with_steps(self, value: Value) -> Value:
        """``value`` with its steps along the first axis taken apart; as it is where they cannot be.

        Layers that work on the last axis, or on each number, may have been given a whole sample.
        """
        if value.kind == "input" and value.at is None:
            return by_steps(value)
        if value.kind != "module" or not isinstance(value.facts, EACH):
            return value
        key = id(value), -1
        if key not in self.apart:
            first = self.with_steps(value.args[0])
            made = None
            if has_steps(first) and first.at == 0:
                parts = tuple(
                    Value("module", value.shape[1:], value.name, (part,), facts=value.facts)
                    for part in first.args
                )
                made = Value("record", value.shape, args=parts, at=0)
            self.apart[key] = value, made
        return self.apart[key][1] or value

    def _plain(self, module: nn.Module, name: str, before: Shape) -> nn.Module:
        """The layer of PyTorch that ``module`` is, one object for all steps."""
        return self.layers.setdefault((name, before), plain(module, before))

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
            return steps_of(first, args[1], shape)
        numbers = [x for x in (*args, *kwargs.values()) if isinstance(x, int | float)]
        if name in FROM and len(found) == 1 and numbers == [1]:
            parts = [
                Value("op", part.shape, self._name("not"), (part,), facts=("not",))
                for part in first.args
            ]
            return Value("record", shape, args=tuple(parts), at=first.at)
        if name not in SCALES | DIVIDES or kwargs.get("rounding_mode") is not None:
            return None
        other = next((x for x in (*args, *kwargs.values()) if self.value(x) is None), None)
        factors = by_step(other, first)
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


def record(
    net: nn.Module,
    sample: Tensor,
    is_step: Callable[[nn.Module], bool],
) -> Trace:
    """Run ``net`` on ``sample`` in evaluation mode, without gradients, and record it."""
    recorder = Recorder(net)
    was_training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad(), _hooked(net, recorder, is_step):
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
    is_step: Callable[[nn.Module], bool],
) -> Iterator[None]:
    """Hooks on every module that tell the recorder where it is and what steps give."""
    handles = []
    for name, module in net.named_modules():
        leaf = is_neuron(module) or is_step(module)
        if any(name.startswith(f"{other}.") for other in _leaves(net, is_step)):
            continue
        family = family_of(module)
        before, after = _watch(name, module, recorder, leaf, family)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaves(net: nn.Module, is_step: Callable[[nn.Module], bool]) -> list[str]:
    return [name for name, m in net.named_modules() if is_neuron(m) or is_step(m)]


def _watch(
    name: str, module: nn.Module, recorder: Recorder, leaf: bool, family: Family | None
) -> tuple[Any, Any]:
    held: list[Any] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.where.append(name)
        if leaf and not recorder.inside and family is not None:
            held.append(_held_states(module, family))
        recorder.inside += leaf

    def after(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        recorder.inside -= leaf
        recorder.where.pop()
        if leaf and not recorder.inside:
            inputs = [recorder.value(x) for x in args] + [
                recorder.value(x) for x in kwargs.values()
            ]
            if family is not None:
                _neuron_called(name, family, recorder, args, kwargs, held.pop(), out)
            elif inputs and inputs[0] is not None:
                recorder.know(out, recorder.applied(module, name, inputs[0], tuple(out.shape)))

    return before, after


def _held_states(module: nn.Module, family: Family) -> dict[str, Any]:
    return {key: getattr(module, key) for key in family.held(module)}


def _neuron_called(
    name: str,
    family: Family,
    recorder: Recorder,
    args: Any,
    kwargs: Any,
    held: dict[str, Any],
    out: Any,
) -> None:
    """Note a call of a neuron, or those of all its steps; states that were not given are those it held."""
    given = recorder.value(args[0]) if args else None
    calls = recorder.trace.calls.setdefault(name, [])
    keys = list(held)
    passed = dict(zip(keys, args[1:], strict=False)) | {
        k: v for k, v in kwargs.items() if k in held
    }
    states = {key: passed[key] if passed.get(key) is not None else held[key] for key in keys}
    recorder.where.append(name)
    if given is None:
        recorder.complain("its input does not depend on the network's input")
        given = Value("unknown", ())
    for state in states.values():
        if recorder.value(state) is None and not calls and _is_set(state):
            recorder.complain("does not start from states of zero", "reset it before")
    recorder.where.pop()
    first = tuple(recorder.value(state) for state in states.values())
    module = recorder.trace.modules[name]
    results = {"spk": next(tensors(out))} | {
        key: getattr(module, key) for key in keys if key != "spk"
    }
    for tensor in tensors(out):
        results |= {"spk": tensor} if tensor is next(tensors(out)) else {}
    if family.all_steps(module):
        _all_steps_called(name, recorder, given, first, results)
        return
    calls.append(Call(given, first))
    for i, tensor in enumerate(results.values()):
        value = Value("neuron", tuple(tensor.shape), name, at=i, call=len(calls) - 1)
        recorder.know(tensor, value)


def _is_set(state: Any) -> bool:
    """Whether a state is something else than the zeros of a neuron that was reset."""
    return isinstance(state, Tensor) and bool((state != 0).any())


def _all_steps_called(
    name: str,
    recorder: Recorder,
    given: Value,
    first: tuple[Value | None, ...],
    results: dict[str, Tensor],
) -> None:
    """Note the calls of a neuron that runs all steps in one, along axis 0; the states are the last ones."""
    calls = recorder.trace.calls[name]
    before = len(calls)
    spikes, *left = results.values()
    size = tuple(spikes.shape[1:])
    given = recorder.with_steps(given)
    if not has_steps(given) or given.at != 0:
        recorder.where.append(name)
        if given.kind != "unknown":
            recorder.complain(
                "runs all steps at once, and its input has no steps along its first axis",
                "give it [T, batch, ...], or make it with step_mode='s'",
            )
        recorder.where.pop()
        given = Value("record", tuple(spikes.shape), args=(Value("unknown", size),) * len(spikes))
    states, made = first, []
    for part in given.args:
        calls.append(Call(part, states))
        made.append(Value("neuron", size, name, at=0, call=len(calls) - 1))
        states = tuple(
            Value("neuron", size, name, at=1 + i, call=len(calls) - 1) for i in range(len(left))
        )
    recorder.know(spikes, Value("record", tuple(spikes.shape), args=tuple(made), at=0))
    for tensor, state in zip(left, states, strict=True):
        if isinstance(tensor, Tensor):
            recorder.know(tensor, state)  # type: ignore[arg-type]
    kept = getattr(recorder.trace.modules[name], "v_seq", None)  # v after every step
    if isinstance(kept, Tensor):
        every = tuple(
            Value("neuron", size, name, at=1, call=before + t) for t in range(len(given.args))
        )
        recorder.know(kept, Value("record", tuple(kept.shape), args=every, at=0))
