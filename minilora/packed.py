"""A frozen weight that stays packed, in 4 bits say: numbers are made of it where a product needs them, forward and
again backward, and no rule keeps them. QLoRA (Dettmers et al. 2023) saves memory there; LoRA beside it trains as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .autograd import Array
from .checks import Readers
from .nn import Parameter


class Packed(Parameter):
    """`array` is `unpack()`, a new array of `shape` and `dtype` each time; `nbytes` is what it takes packed.

    Raises `ValueError` where it is asked to train, or to hold other numbers.
    """

    __slots__ = ("_dtype", "_shape", "_unpack", "nbytes")

    def __init__(self, unpack: Callable[[], Array], shape: tuple[int, ...], dtype: Any, nbytes: int) -> None:
        self._unpack, self._shape, self._dtype, self.nbytes = unpack, shape, dtype, nbytes
        self.grad = self._node = None
        self._readers, self._requires_grad = Readers(), False

    @property
    def array(self) -> Array:
        return self._unpack()

    def keep(self) -> Callable[[], Array]:
        return self._unpack

    @property
    def data(self) -> Array:
        return self._unpack()

    @data.setter
    def data(self, array: Any) -> None:
        raise ValueError("A packed weight cannot be replaced: load the model without packing, or merge_and_unload.")

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            raise ValueError("A packed weight cannot train: load the model without packing, or train LoRA beside it.")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> Any:
        return self._dtype

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return math.prod(self._shape)

    def __len__(self) -> int:
        return self._shape[0]
