"A device that is not there: its tensors live on the CPU, refuse to mix, and count what would make the processor wait"

from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("pretended", _Backend())
THERE = torch.device("pretended", 0)


class Pretended(torch.Tensor):
    "A tensor of the CPU that says it is on a GPU"

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=THERE,
            requires_grad=real.requires_grad,
        )

    def __init__(self, real):
        self.host = real

    def __repr__(self):
        return f"pretended {self.host!r}"

    def __reduce_ex__(self, protocol):
        return self.host.__reduce_ex__(protocol)  # files are read on the CPU, as `map_location` says

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def real(x):
    return x.host if isinstance(x, Pretended) else x


waits = Counter()


def run(function, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    device = kwargs.get("device")
    there = any(isinstance(x, Pretended) for x in tensors)
    to = torch.device(device).type == "pretended" if device is not None else there
    moves = function in (aten._to_copy.default, aten.copy_.default)
    scalars = all(
        x.dim() == 0 for x in tensors if not isinstance(x, Pretended)
    )  # PyTorch takes numbers of the CPU with any tensor
    indexed = function in (
        aten.index.Tensor,
        aten.index_put.default,
        aten.index_put_.default,
        aten._index_put_impl_.default,
    )  # and its indices
    if there and not moves and not scalars and not (indexed and isinstance(args[0], Pretended)):
        devices = [f"{'pretended' if isinstance(x, Pretended) else 'cpu'} {tuple(x.shape)}" for x in tensors]
        raise RuntimeError(f"{function} mixes devices: {', '.join(devices)}")
    if there and function in WAITS:
        waits[str(function)] += 1
    if indexed and there and any(i is not None and i.dtype == torch.bool for i in args[1]):
        waits["boolean index"] += 1
    if moves and len({*(isinstance(x, Pretended) for x in tensors), to}) > 1 and not kwargs.get("non_blocking"):
        waits["to the device" if to else "from the device"] += 1
    kwargs = {k: torch.device("cpu") if k == "device" and v is not None else real(v) for k, v in kwargs.items()}
    out = function(*tree_map(real, args), **kwargs)
    if function._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    return tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) and to else x, out)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    "Python's numbers are put on a device beneath PyTorch's dispatcher; here, seen"

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            function in (torch.tensor, torch.as_tensor)
            and kwargs.get("device") is not None
            and not isinstance(args[0], torch.Tensor)
        ):
            return function(*args, **kwargs | dict(device="cpu")).to(kwargs["device"])
        if function is torch.Tensor.new_tensor and isinstance(args[0], Pretended):
            return torch.tensor(*args[1:], **dict(dtype=args[0].dtype) | kwargs).to(args[0].device)
        if function is torch.Tensor.tolist and isinstance(args[0], Pretended):
            waits["tolist"] += 1
            return args[0].host.tolist()
        if function is torch.Tensor.__getitem__ and isinstance(args[0], Pretended) and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1])
        return function(*args, **kwargs)


@contextmanager
def pretending():
    "In here tensors can be made on, and moved to, `pretended`; yields what made the processor wait"
    waits.clear()
    with _Factories(), _Numbers():
        yield waits


class Kernels:
    "The CPU's kernels for tensors that say they are elsewhere; without syncs, as on a GPU"

    def __getattr__(self, name):
        from xvr import raymarch_cpu

        def call(*args, **kwargs):
            with torch.utils._python_dispatch._disable_current_modes():
                out = getattr(raymarch_cpu, name)(*tree_map(real, args), **tree_map(real, kwargs))
            return tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, out)

        return call
