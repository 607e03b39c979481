"""Recurrent nets: every variant of torch's modules and loops over cells, small, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

INSIDE, HIDDEN, OUT = 5, 8, 3


class Tagger(nn.Module):
    """A label for each step: encoder, recurrent layers, head."""

    def __init__(self, core: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Linear(INSIDE, core.input_size)
        self.core = core
        width = core.proj_size or core.hidden_size
        self.head = nn.Linear((2 if core.bidirectional else 1) * width, OUT)

    def forward(self, x: Tensor) -> Tensor:
        if not self.core.batch_first:
            x = x.transpose(0, 1)
        out, _ = self.core(torch.tanh(self.embed(x)))
        return self.head(out)


class Reader(nn.Module):
    """One label for a sequence, from the last state of the last layer (both directions of it)."""

    def __init__(self, core: nn.RNNBase, state: str = "none") -> None:
        super().__init__()
        self.core, self.state = core, state
        directions = 2 if core.bidirectional else 1
        width = core.proj_size or core.hidden_size
        self.head = nn.Linear(directions * width, OUT)
        if state == "learned":
            self.start = nn.Parameter(torch.randn(directions * core.num_layers, 1, width))
            if isinstance(core, nn.LSTM):
                self.cell = nn.Parameter(torch.randn(directions * core.num_layers, 1, core.hidden_size))

    def first_state(self, x: Tensor) -> Any:
        batch, core = x.shape[0], self.core
        rows = core.num_layers * (2 if core.bidirectional else 1)
        if self.state == "none":
            return None
        if self.state == "learned":
            start = self.start.expand(-1, batch, -1).contiguous()
            return (start, self.cell.expand(-1, batch, -1).contiguous()) if isinstance(core, nn.LSTM) else start
        start = torch.zeros(rows, batch, core.proj_size or core.hidden_size, dtype=x.dtype)
        return (start, x.new_zeros(rows, batch, core.hidden_size)) if isinstance(core, nn.LSTM) else start

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.core(x, self.first_state(x))
        h = last[0] if isinstance(self.core, nn.LSTM) else last
        return self.head(torch.cat((h[-2], h[-1]), dim=1) if self.core.bidirectional else h[-1])


class Packed(nn.Module):
    """Sequences of several lengths, packed; the answer joins every step with the last state."""

    def __init__(self, core: nn.RNNBase, in_order: bool) -> None:
        super().__init__()
        self.core, self.in_order = core, in_order
        self.embed = nn.Linear(INSIDE, core.input_size)
        self.head, self.last = nn.Linear(core.hidden_size, OUT), nn.Linear(core.hidden_size, OUT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lengths = [x.shape[1] - (i if self.in_order else i % 3) for i in range(len(x))]
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=self.in_order)
        out, state = self.core(packed)
        steps, _ = pad_packed_sequence(out, batch_first=True)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(steps), self.last(h[-1])


class Loop(nn.Module):
    """Cells, called step by step: two on top of each other."""

    def __init__(self, cell: Callable[[int, int], nn.RNNCellBase]) -> None:
        super().__init__()
        self.one, self.two = cell(INSIDE, HIDDEN), cell(HIDDEN, HIDDEN - 1)
        self.head = nn.Linear(HIDDEN - 1, OUT)

    def forward(self, x: Tensor) -> Tensor:
        first: Any = None
        second: Any = x.new_zeros(len(x), HIDDEN - 1)
        if isinstance(self.two, nn.LSTMCell):
            second = (second, torch.zeros_like(second))
        outputs = []
        for step in x.unbind(1):
            first = self.one(step, first)
            second = self.two(first[0] if isinstance(first, tuple) else first, second)
            outputs.append(second[0] if isinstance(second, tuple) else second)
        return self.head(torch.stack(outputs, dim=1))


class Translator(nn.Module):
    """The state of one net starts another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(INSIDE, HIDDEN, num_layers=2, batch_first=True)
        self.decoder = nn.GRU(INSIDE, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.head(self.decoder(x.flip(1), state)[0])


@dataclass(frozen=True, slots=True)
class Net:
    """A row of the zoo: how to build the net, the sizes of its groups, the share of its parameters that can move."""

    build: Callable[[], nn.Module]
    sizes: tuple[int, ...]
    coverage: float


NETS = {
    "lstm": Net(lambda: Tagger(nn.LSTM(6, 8)), (6, 8), 0.9948),
    "lstm, batch first": Net(lambda: Tagger(nn.LSTM(6, 8, batch_first=True)), (6, 8), 0.9948),
    "lstm, two layers": Net(lambda: Tagger(nn.LSTM(6, 8, 2, dropout=0.5)), (6, 8, 8), 0.9974),
    "lstm, no bias": Net(lambda: Tagger(nn.LSTM(6, 8, bias=False)), (6, 8), 0.9941),
    "lstm, bidirectional": Net(lambda: Tagger(nn.LSTM(6, 8, 2, bidirectional=True)), (6, 8, 8, 8, 8), 0.9989),
    "lstm, projected": Net(lambda: Tagger(nn.LSTM(6, 8, 2, proj_size=4)), (6, 8, 4, 8, 4), 0.9963),
    "lstm, projected, bidirectional": Net(
        lambda: Tagger(nn.LSTM(6, 8, proj_size=4, bidirectional=True)), (6, 8, 4, 8, 4), 0.9966
    ),
    "lstm, last state": Net(lambda: Reader(nn.LSTM(5, 8, 2, batch_first=True)), (8, 8), 0.9972),
    "lstm, last state of both": Net(lambda: Reader(nn.LSTM(5, 8, bidirectional=True, batch_first=True)), (8, 8), 0.997),
    "lstm, zero state": Net(
        lambda: Reader(nn.LSTM(5, 8, 2, proj_size=3, batch_first=True), "zero"), (8, 3, 8, 3), 0.9953
    ),
    "lstm, learned state": Net(lambda: Reader(nn.LSTM(5, 8, batch_first=True), "learned"), (8,), 0.9943),
    "lstm, packed": Net(lambda: Packed(nn.LSTM(6, 8, 2, batch_first=True), in_order=True), (8, 6, 8), 0.9949),
    "gru": Net(lambda: Tagger(nn.GRU(6, 8)), (6, 8), 0.9933),
    "gru, two layers": Net(lambda: Tagger(nn.GRU(6, 8, 2, batch_first=True)), (6, 8, 8), 0.9966),
    "gru, bidirectional": Net(lambda: Tagger(nn.GRU(6, 8, 2, bidirectional=True)), (6, 8, 8, 8, 8), 0.9986),
    "gru, last state": Net(lambda: Reader(nn.GRU(5, 8, 2, batch_first=True)), (8, 8), 0.9963),
    "gru, zero state": Net(lambda: Reader(nn.GRU(5, 8, 2, batch_first=True), "zero"), (8, 8), 0.9963),
    "gru, learned state": Net(lambda: Reader(nn.GRU(5, 8, batch_first=True), "learned"), (8,), 0.9924),
    "gru, packed": Net(lambda: Packed(nn.GRU(6, 8, batch_first=True), in_order=False), (8, 6), 0.9873),
    "gru, encoder and decoder": Net(Translator, (8, 8), 0.9981),
    "rnn": Net(lambda: Tagger(nn.RNN(6, 8)), (6, 8), 0.9843),
    "rnn, relu, bidirectional": Net(
        lambda: Reader(nn.RNN(5, 8, 2, nonlinearity="relu", bidirectional=True, batch_first=True)), (8, 8, 8, 8), 0.9958
    ),
    "lstm cells": Net(lambda: Loop(nn.LSTMCell), (8, 7), 0.9969),
    "gru cells": Net(lambda: Loop(nn.GRUCell), (8, 7), 0.996),
    "rnn cells": Net(lambda: Loop(nn.RNNCell), (8, 7), 0.9886),
}


def example(samples: int = 3, seed: int = 0) -> Tensor:
    """Sequences of seven steps, shape (samples, 7, INSIDE)."""
    return torch.randn(samples, 7, INSIDE, generator=torch.Generator().manual_seed(seed))


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[name].build().eval()
