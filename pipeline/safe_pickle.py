"""Reads pickles of unknown origin: only the classes of a list are built, and nothing else is run."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


class AttributeBag:
    """Stands in for PyG's containers: it stores their state and runs nothing of theirs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = dict(kwargs)

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        self.state = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a PyG ``Data``, written by PyG 1 or PyG 2."""
        store = self.state.get("_store")
        if isinstance(store, AttributeBag):
            mapping = store.state.get("_mapping")
            return dict(mapping) if isinstance(mapping, dict) else {}
        return dict(self.state)


def _load_storage(content: bytes) -> Any:
    """Read the numbers of a tensor, where ``torch.storage`` itself would unpickle anything."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "object"): object,
    ("__builtin__", "object"): object,
    ("copy_reg", "_reconstructor"): None,
    ("copyreg", "_reconstructor"): None,
    ("_codecs", "encode"): None,
    **{
        (module, name): AttributeBag
        for module, names in {
            "torch_geometric.data": ("Data",),
            "torch_geometric.data.data": ("Data", "BaseData", "DataEdgeAttr", "DataTensorAttr"),
            "torch_geometric.data.storage": ("BaseStorage", "NodeStorage", "EdgeStorage", "GlobalStorage"),
        }.items()
        for name in names
    },
    **{
        (f"numpy.{core}.multiarray", name): getattr(np._core.multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def _reconstructor(cls: type, base: type, state: Any) -> Any:
    """Build an empty AttributeBag, the only class that needs this function of old pickles."""
    if cls is not AttributeBag:
        raise pickle.UnpicklingError(f"refused to rebuild {getattr(cls, '__name__', cls)!s}")
    return cls()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that a pickle of protocol 2 holds as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED[("copyreg", "_reconstructor")] = _ALLOWED[("copy_reg", "_reconstructor")] = _reconstructor
_ALLOWED[("_codecs", "encode")] = _encode_latin1


class RefusedClassError(pickle.UnpicklingError):
    """A pickle asks for something outside the allow-list."""


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function that a pickle names, where it is allowed: one of the list, or a type of number."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[(module, name)]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            storage = getattr(torch.storage if module == "torch.storage" else torch, name, None)
            if isinstance(storage, type):
                return storage
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "numpy.dtypes" and name.endswith("DType") and isinstance(getattr(np.dtypes, name, None), type):
            return getattr(np.dtypes, name)
        raise RefusedClassError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the pickle."""
        raise RefusedClassError("persistent id")


def safe_loads(content: bytes) -> Any:
    """Read a pickle of tensors, arrays, plain containers and PyG's containers; the last are read as ``AttributeBag``.

    Raises:
        RefusedClassError: the pickle asks for anything else, which the message names.
    """
    return _SafeUnpickler(io.BytesIO(content)).load()
