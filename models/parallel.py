"""Training in several processes that torchrun started: who does what, and how all of them end as one.

Everything here is a plain call where there is one process. Each process has a share of every batch;
sums over the batch (gradients, statistics of BatchNorm, losses) are sums over the processes as well, so
that their number changes the order of sums and nothing else. The first process, rank 0, alone prints
and writes. torch.distributed is the transport: gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stl_deploy.errors import BackendError, InputError, Problem, StlError

T = TypeVar("T")


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; the first is 0."""
    return dist.get_rank() if world() > 1 else 0


def share(size: int) -> slice:
    """This process's part of a batch of ``size``; parts differ by one at most, and may be empty."""
    return slice(size * rank() // world(), size * (rank() + 1) // world())


def total(value: Tensor) -> Tensor:
    """The sum of every process's ``value``, which stays as it is; not for gradients."""
    if world() == 1:
        return value
    out = value.detach().clone()
    dist.all_reduce(out)
    return out


class _Sum(torch.autograd.Function):
    """``total``, differentiable: every process's loss depends on every process's value."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(_ctx: Any, *grads: Any) -> Tensor:
        return total(grads[0].contiguous())


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """``functional.batch_norm`` in training over the shares [b, C, ...] of all processes.

    Returns the output, and mean and unbiased variance [C] of the whole batch. Variances are those of
    what the mean was taken from already, because E[x^2] - E[x]^2 would cancel.
    """
    over = [d for d in range(x.dim()) if d != 1]
    view = [1, -1, *[1] * (x.dim() - 2)]
    count = float(total(torch.tensor(x.numel() // x.shape[1], dtype=x.dtype, device=x.device)))
    if count < 2:
        raise ValueError(f"expected more than 1 value per channel when training, got {count:.0f}")
    summed: Tensor = _Sum.apply(x.sum(over))  # type: ignore[no-untyped-call]
    mean = summed / count
    centred = x - mean.view(view)
    squares: Tensor = _Sum.apply(centred.square().sum(over))  # type: ignore[no-untyped-call]
    factor = weight * (squares / count + eps).rsqrt()
    out = centred * factor.view(view) + bias.view(view)
    return out, mean.detach(), squares.detach() / (count - 1)


def wrapped(model: nn.Module, device: str) -> nn.Module:
    """``model`` whose gradients are averaged over the processes, all beginning with the first's.

    What learns must be marked before. Buffers need no broadcast: BatchNorm's follow statistics that all
    processes have.
    """
    if world() == 1:
        return model
    ids = [torch.device(device).index] if device.startswith("cuda") else None
    with warnings.catch_warnings():
        # PyTorch 2.13 has another name for it, which older ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def check_same(what: str, value: object) -> None:
    """Raise BackendError in all processes unless ``value`` is the same in each."""
    if world() == 1:
        return
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    if any(v != found[0] for v in found):
        differing = ", ".join(str(r) for r, v in enumerate(found) if v != found[0])
        raise BackendError(
            Problem(
                what,
                f"processes {differing} differ from process 0",
                "give all nodes the same arguments, data, and versions of PyTorch and stl-deploy",
            )
        )


def digest(model: nn.Module) -> str:
    """Of all parameters and buffers, bit for bit."""
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process; only there it is called. Errors are those of all."""
    made = together(make if rank() == 0 else lambda: None)
    if world() == 1:
        return made  # type: ignore[return-value]
    box: list[Any] = [made]
    dist.broadcast_object_list(box, src=0)
    value: T = box[0]
    return value


def together(do: Callable[[], T]) -> T:
    """``do()`` in every process; where it fails in one, all of them fail.

    The first process it failed in raises and prints its error, the others raise the same in silence.
    """
    error: Exception | None = None
    result: Any = None
    try:
        result = do()
    except Exception as raised:
        error = raised
    if world() == 1:
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]
    code = 0 if error is None else error.exit_code if isinstance(error, StlError) else 1
    if isinstance(error, OSError):
        code = 2
    codes: list[Any] = [None] * world()
    dist.all_gather_object(codes, code)
    failed = [r for r, c in enumerate(codes) if c]
    if not failed:
        return result  # type: ignore[no-any-return]
    if failed[0] == rank() and error is not None:
        _speak()
        raise error
    _hush()
    kind = InputError if codes[failed[0]] == 2 else BackendError
    raise kind(Problem(f"process {failed[0]}", "failed"))


def ready() -> None:
    """Return where every process got here; where one could not, its error is that of all."""
    global _preparing
    _preparing = False  # together may raise, and that is known to all then
    together(lambda: None)


_preparing = False  # what fails before ``ready`` is not known to the others


@contextmanager
def joined(wanted: str) -> Iterator[None]:
    """Be one of the processes that torchrun started, if it did, on the ``--device`` that is wanted.

    What runs inside prepares by itself, says ``ready`` and then works with the others.
    """
    if not _launched():
        yield
        return
    gpus = wanted != "cpu" and torch.cuda.is_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        what = f"the processes do not find each other: {error}"
        raise BackendError(Problem("torchrun", what)) from None
    global _preparing
    _preparing = True
    try:
        yield
        # Who leaves earlier closes connections that threads of the others still read, and they abort.
        dist.barrier()
    except Exception as error:
        raise _shared(error) from None
    dist.destroy_process_group()


def _shared(error: Exception) -> Exception:
    """``error``, after the other processes know; one process says it."""
    if _preparing:
        try:
            together(functools.partial(_raise, error))
        except Exception as first:
            return first
    if isinstance(error, StlError):
        return error  # of all processes
    if not _is_lost(error):
        _speak()
        return error
    return BackendError(
        Problem(
            "torchrun",
            "another process of this run ended",
            "what happened is said by itself or by torchrun; --resume continues from the last "
            "finished epoch",
        )
    )


def _raise(error: Exception) -> None:
    raise error


def device_of(wanted: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` as a device of PyTorch; every process of a node has a GPU of its own.

    Raises InputError where there is none, or fewer than processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "cpu"
    if not gpus:
        what = "PyTorch finds no GPU, or is built without CUDA"
        raise InputError(Problem("--device cuda", what, "give --device cpu"))
    here = int(os.environ["LOCAL_RANK"]) if _launched() else 0
    if here >= gpus:
        count = os.environ.get("LOCAL_WORLD_SIZE", here + 1)
        raise InputError(
            Problem(
                "torchrun --nproc-per-node",
                f"starts {count} processes on a node of {gpus} GPUs",
                f"start {gpus} at most, or give --device cpu",
            )
        )
    torch.cuda.set_device(here)
    return f"cuda:{here}"


def only_first_speaks() -> None:
    """Let every process that torchrun started but the first print nothing."""
    if _launched() and os.environ["RANK"] != "0":
        _hush()


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _is_lost(error: Exception) -> bool:
    """Whether it says that a peer went away; gloo raises plain RuntimeErrors."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    lost = isinstance(error, dist.DistError)
    return lost or (isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words))


def _hush() -> None:
    """Python's streams lead nowhere from now on."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process


def _speak() -> None:
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
