"""Loss and gradients of a batch as CUDA graphs: one launch in place of a thousand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

# Calls of a kind before it is captured: by then libraries have chosen their kernels, and what is
# compiled is compiled, with and without what is due only now and then.
_WARM_UP = 4


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    batch: Tensor  # read at every replay
    loss: Tensor  # written at every replay, as the gradients are
    gradients: list[Tensor | None]


class GraphedGradients:
    """Calls a function some times, then captures it, and replays it from then on.

    A context: what is called within it runs on a stream of its own, as capturing demands.

    Args:
        compute: Maps the numbers of a batch (B,) to a loss, a scalar, and leaves its gradient in
            the parameters, the old ones dropped. It must not wait for the device.
        parameters: These parameters.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], parameters: list[torch.nn.Parameter]
    ) -> None:
        self._compute = compute
        self._parameters = parameters
        self._graphs: dict[Hashable, _Graph] = {}
        self._calls: Counter[Hashable] = Counter()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._stack.enter_context(torch.cuda.stream(self._stream))
        # What is fastest here is looked for once, when a kind of batch is new.
        self._stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.close()
        torch.cuda.current_stream().wait_stream(self._stream)

    def __call__(self, batch: Tensor, kind: Hashable) -> tuple[Tensor, bool]:
        """The loss, and whether a graph was replayed for it.

        Args:
            batch: Numbers (B,).
            kind: What else the work depends on; with the length of the batch it names the graph.
        """
        key = (len(batch), kind)
        self._calls[key] += 1
        if self._calls[key] <= _WARM_UP:
            return self._compute(batch), False
        if key not in self._graphs:
            self._graphs[key] = self._capture(batch)
        graph = self._graphs[key]
        graph.batch.copy_(batch)
        graph.graph.replay()
        for parameter, gradient in zip(self._parameters, graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.loss, True

    def _capture(self, batch: Tensor) -> _Graph:
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        with torch.cuda.graph(graph, stream=self._stream):
            loss = self._compute(held)
        return _Graph(graph, held, loss, [parameter.grad for parameter in self._parameters])
