"""Functions of tensors that Python runs a few times, and from then on a list of what they did.

`torch.func` and autograd take longer over a step of small models than the step's arithmetic does.
Below both of them a step is some hundred calls of torch's operators, the same ones whenever arrays
have the same shapes: so they are written down once, and made again one after the other.
"""

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

AFTER = 8  # calls with the same shapes, by which it is likely that more of them come


class Recorded:
    """A function of nested tensors that gives a list of tensors; `recorded(...)` gives the same.

    The function looks at shapes, never at numbers, and draws none. Results have the same bits
    either way, but no history for autograd.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]]) -> None:
        self.function = function
        self._calls: Counter[Any] = Counter()
        self._known: dict[Any, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, *arguments: Any) -> Sequence[Tensor]:
        """Call it, or do what it does."""
        tensors = tree_leaves(arguments)
        key = tuple((x.shape, x.stride(), x.dtype) for x in tensors)
        if key in self._known:
            with torch.inference_mode():
                return self._known[key](*tensors)
        self._calls[key] += 1
        if self._calls[key] <= AFTER:
            return self.function(*arguments)
        with _Recorder(tensors) as recorder:
            results = self.function(*arguments)
        self._known[key] = recorder.written(results)
        return results


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down calls of operators, as a graph from some tensors on."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._nodes: MutableMapping[Tensor, fx.Node] = WeakTensorKeyDictionary()
        for number, x in enumerate(tensors):
            self._nodes[x] = self._graph.placeholder(f"x{number}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every operator passes here."""
        found = func(*args, **(kwargs or {}))
        node = self._graph.call_function(func, *tree_map(self._node_of, (args, kwargs)))
        if isinstance(found, Tensor):
            self._nodes[found] = node
            return found
        for place, one in enumerate(found):
            if isinstance(one, Tensor):
                self._nodes[one] = self._graph.call_function(getitem, (node, place))
        return found

    def written(self, results: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """A function of the tensors that makes the results."""
        self._graph.output([self._node_of(one) for one in results])
        return fx.GraphModule(self._constants, self._graph).forward

    def _node_of(self, x: Any) -> Any:
        """Where a tensor comes from; anything else as it is."""
        if not isinstance(x, Tensor):
            return x
        if x not in self._nodes:
            name = f"constant{len(self._constants)}"
            self._constants[name] = x
            self._nodes[x] = self._graph.get_attr(name)
        return self._nodes[x]
