"""Recurrent networks: the cells written out, a language model over them, and a translator with attention.

A cell's weights are kept as torch's nn.RNN, nn.LSTM and nn.GRU keep them. So the plain loops here and torch's fused
ones run on the same numbers, and every model can use either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfs.attention import causal_mask, scaled_dot_product_attention
from llmfs.config import MOST_LAYERS, ConfigError

Cell = Literal["rnn", "lstm", "gru"]
State = tuple[Tensor, ...]  # (h,) or, for an LSTM, (h, c); each (B, C), or (L, B, C) for all layers
S = TypeVar("S", bound="_Settings")


# --- the cells, one step each ----------------------------------------------------------------------------


class Weights(NamedTuple):
    """One layer's weights in one direction. G, the parts of a cell: 1 (rnn), 4 (lstm) or 3 (gru)."""

    w_ih: Tensor  # (G C, in): reads the input
    w_hh: Tensor  # (G C, C): reads the state
    b_ih: Tensor  # (G C,)
    b_hh: Tensor  # (G C,); a second bias is of use in the GRU alone


Step = Callable[[Tensor, State, Weights], State]


def rnn_step(x: Tensor, state: State, w: Weights) -> State:
    """x (B, in), state (h,) -> (h,), (B, C): the new state is a bent mixture of input and old state (Elman 1990)."""
    (h,) = state
    return (torch.tanh(F.linear(x, w.w_ih, w.b_ih) + F.linear(h, w.w_hh, w.b_hh)),)


def lstm_step(x: Tensor, state: State, w: Weights) -> State:
    """x (B, in), state (h, c) -> (h, c), each (B, C).

    The memory c is changed by sums and products alone (Hochreiter & Schmidhuber 1997, with the forget gate of Gers
    et al. 2000). The order of the parts is torch's: input, forget, candidate, output.
    """
    h, c = state
    parts = F.linear(x, w.w_ih, w.b_ih) + F.linear(h, w.w_hh, w.b_hh)  # (B, 4C)
    i, f, g, o = parts.chunk(4, dim=-1)  # each (B, C)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x: Tensor, state: State, w: Weights) -> State:
    """x (B, in), state (h,) -> (h,), (B, C): one gate says how much of the old state stays (Cho et al. 2014).

    The order of the parts is torch's: reset, update, candidate. As there, the reset gate meets the state behind its
    matrix, not before it as in the paper.
    """
    (h,) = state
    x_r, x_z, x_n = F.linear(x, w.w_ih, w.b_ih).chunk(3, dim=-1)  # each (B, C)
    h_r, h_z, h_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, dim=-1)  # each (B, C)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return ((1 - z) * n + z * h,)


STEPS: dict[Cell, Step] = {"rnn": rnn_step, "lstm": lstm_step, "gru": gru_step}
PARTS: dict[Cell, int] = {"rnn": 1, "lstm": 4, "gru": 3}  # G
FUSED: dict[Cell, type[Any]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
ONE_STEP: dict[Cell, type[Any]] = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}


def scan(step: Step, x: Tensor, state: State, w: Weights, *, backward: bool = False) -> tuple[Tensor, State]:
    """One layer over time: x (B, T, in), state of (B, C) -> h at every time (B, T, C), and the last state.

    backward: read from right to left; the outputs still stand at the time of their input.
    """
    outputs: list[Tensor] = []
    for t in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
        state = step(x[:, t], state, w)  # each (B, C)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backward else outputs, dim=1), state


def written_out(module: nn.RNNBase, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """What torch's nn.RNN, nn.LSTM or nn.GRU computes, in plain steps and with its own weights.

    x (B, T, in) -> outputs (B, T, D C) and the states, (h,) or (h, c), each (L D, B, C). D is 2 for a bidirectional
    module, else 1. state: as returned; None: zeros. Raises ValueError for a module with settings that are not
    written out here: biases left out, ReLU, projections, or the batch on the second axis.
    """
    cell = _cell_of(module)
    directions = 2 if module.bidirectional else 1
    B, n_states = x.shape[0], module.num_layers * directions
    if state is None:
        state = (x.new_zeros(n_states, B, module.hidden_size),) * (2 if cell == "lstm" else 1)
    last: list[State] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            weights = Weights(*(getattr(module, name) for name in module._all_weights[k]))
            out, end = scan(STEPS[cell], x, tuple(s[k] for s in state), weights, backward=direction == 1)
            outputs.append(out)
            last.append(end)
        x = torch.cat(outputs, dim=-1)  # (B, T, D C): what came from the left, then what came from the right
        if layer + 1 < module.num_layers:
            x = F.dropout(x, module.dropout, module.training)
    return x, tuple(torch.stack(each) for each in zip(*last))


def _cell_of(module: nn.RNNBase) -> Cell:
    """Which cell a torch module has. Refuses what `written_out` does not do."""
    cell = next((name for name, kind in FUSED.items() if isinstance(module, kind)), None)
    if cell is None:
        raise ValueError(f"expected an nn.RNN, nn.LSTM or nn.GRU, got a {type(module).__name__}")
    if not module.bias or not module.batch_first or module.proj_size or getattr(module, "nonlinearity", "") == "relu":
        raise ValueError(
            f"{module} is not written out here; make it with bias=True, batch_first=True, no projection and tanh"
        )
    return cell


# --- configs ---------------------------------------------------------------------------------------------


class _Settings:
    """What the configs share: copies, and plain values in and out."""

    def replace(self: S, **changes: Any) -> S:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[S], fields: dict[str, Any]) -> S:
        """The inverse of `to_dict`. Raises `ConfigError` for a key that is unknown or missing."""
        known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(fields) - set(known)):
            raise ConfigError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(sorted(known))}")
        needed = {name for name, f in known.items() if f.default is dataclasses.MISSING}
        if missing := sorted(needed - set(fields)):
            raise ConfigError(f"missing setting {', '.join(missing)}")
        return cls(**fields)


@dataclass(frozen=True)
class RNNConfig(_Settings):
    """Everything that decides the shape of an `RNNLM`. Raises `ConfigError` for a value that is impossible."""

    vocab_size: int  # V: rows of the embedding table
    block_size: int  # tokens: how much `generate` reads at most at a time; `forward` itself takes any length
    cell: Cell = "lstm"
    n_layer: int = 1  # L: cells on top of each other
    n_embd: int = 128  # C: channels of an embedding, and of a state
    attention: bool = False  # look back at every earlier output before predicting
    dropout: float = 0.0  # probability of dropping an embedding's or output's channel while training

    def __post_init__(self) -> None:
        """Check every field."""
        _check(self, "vocab_size", "block_size", "n_layer", "n_embd")
        if self.n_layer > MOST_LAYERS:
            raise ConfigError(f"n_layer is {self.n_layer}; expected at most {MOST_LAYERS:,}")
        if not isinstance(self.attention, bool):
            raise ConfigError(f"attention is {self.attention!r}; expected True or False")


@dataclass(frozen=True)
class Seq2SeqConfig(_Settings):
    """Everything that decides the shape of a `Seq2SeqAttention`. Raises `ConfigError` for an impossible value."""

    vocab_size: int  # V: of source and target alike
    cell: Cell = "lstm"
    n_embd: int = 128  # C: channels of an embedding, and of a state in each direction
    pad_id: int = 0  # fills up sources at their right end
    dropout: float = 0.0  # probability of dropping a channel before the output while training

    def __post_init__(self) -> None:
        """Check every field."""
        _check(self, "vocab_size", "n_embd")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ConfigError(f"pad_id {self.pad_id} is no token of a vocabulary of {self.vocab_size}")


def _check(config: RNNConfig | Seq2SeqConfig, *sizes: str) -> None:
    """Refuse sizes, cells and probabilities that are impossible."""
    for name in sizes:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")
    if config.cell not in get_args(Cell):
        raise ConfigError(f"cell is {config.cell!r}; expected one of {get_args(Cell)}")
    if not 0.0 <= config.dropout < 1.0:
        raise ConfigError(f"dropout is {config.dropout}; expected a probability in [0, 1)")


# --- a language model ------------------------------------------------------------------------------------


class RNNState:
    """What an `RNNLM` keeps of the text so far, as `KVCache` does for a GPT: `forward` reads it and renews it.

    Without attention it has the same size however long the text is.
    """

    def __init__(self) -> None:
        self.length = 0  # tokens read so far
        self.state: State | None = None  # of every layer, each (L, B, C)
        self.memory: Tensor | None = None  # (B, S, C): every output so far, for a model with attention

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; rows (B',) int64. Beam search needs this at every step."""
        if self.state is not None:
            self.state = tuple(s.index_select(1, rows) for s in self.state)
        if self.memory is not None:
            self.memory = self.memory.index_select(0, rows)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError unless that is all or none of them."""
        if length == 0:
            self.length, self.state, self.memory = 0, None, None
        elif length != self.length:
            raise ValueError(
                f"a recurrent state of {self.length} tokens cannot go back to {length}: it keeps no earlier state"
            )

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        tensors = (*(self.state or ()), *(() if self.memory is None else (self.memory,)))
        return sum(t.nbytes for t in tensors)


class RNNLM(nn.Module):
    """A recurrent language model (Mikolov et al. 2010): embed, step through time, predict.

    It takes and gives what a `GPT` does, so that it is trained, measured and sampled by the same functions. `fused`
    says who steps: torch's own loop, or `written_out`.
    """

    def __init__(self, config: RNNConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.fused = config, True
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        between = config.dropout if config.n_layer > 1 else 0.0
        self.rnn = FUSED[config.cell](config.n_embd, config.n_embd, config.n_layer, batch_first=True, dropout=between)
        self.look_back = LookBack(config.n_embd) if config.attention else None
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._init_weights(generator)

    @torch.no_grad()
    def _init_weights(self, generator: torch.Generator | None) -> None:
        """Every channel starts near unit size, and every state keeps its length from step to step."""
        nn.init.normal_(self.embed.weight, generator=generator)
        _init_cells(self.rnn, self.config.cell, generator)
        if self.look_back is not None:
            for linear in self.look_back.children():
                _init_linear(linear, generator)
        nn.init.normal_(self.lm_head.weight, std=0.02, generator=generator)  # the first logits are nearly equal

    def forward(self, ids: Tensor, state: RNNState | None = None) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V): at each position, a score for every possible next token.

        state: what is known of the earlier tokens; this call goes on from there and leaves in it what is known
        after its own. No gradient flows through it from call to call.
        """
        x = self.drop(self.embed(ids))  # (B, T, C)
        before = None if state is None else state.state
        x, after = self._step_through(x, before)  # (B, T, C)
        x = self.drop(x)
        if state is not None:
            state.state, state.length = tuple(s.detach() for s in after), state.length + ids.shape[1]
        if self.look_back is not None:
            memory = x if state is None or state.memory is None else torch.cat((state.memory, x), dim=1)  # (B, S, C)
            if state is not None:
                state.memory = memory.detach()
            x = self.look_back(x, memory)[0]  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)

    def _step_through(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if not self.fused:
            return written_out(self.rnn, x, state)
        # torch gives and takes a tuple for an LSTM, and a bare tensor for the others.
        bare = self.config.cell != "lstm"
        out, after = self.rnn(x, state[0] if bare and state is not None else state)
        return out, (after,) if bare else after

    def new_state(self) -> RNNState:
        """An empty state, for `forward` to fill."""
        return RNNState()

    def n_params(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters())


class LookBack(nn.Module):
    """Attention of a recurrent model over its own outputs so far.

    Each output asks, all outputs up to it answer, and what is found is added to the one that asked. Its scores are
    the scaled dot products of `llmfs.attention`, with one head.
    """

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.k_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.v_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.o_proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, C), the last T of memory (B, S, C) -> (B, T, C), and the weights (B, T, S)."""
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        found, weights = scaled_dot_product_attention(q, k, v, causal_mask(x.shape[1], memory.shape[1], x.device))
        return x + self.o_proj(found), weights


# --- from one sequence to another ------------------------------------------------------------------------


class AdditiveAttention(nn.Module):
    """A small network scores each pair of query and key: v · tanh(W q + U k) (Bahdanau et al. 2015)."""

    def __init__(self, n_query: int, n_key: int, n_hidden: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(n_query, n_hidden, bias=False)
        self.k_proj = nn.Linear(n_key, n_hidden, bias=False)
        self.score = nn.Linear(n_hidden, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """One query a row: query (B, n_query), keys (B, S, n_hidden) from k_proj, values (B, S, n_values).

        real (B, S) bool, False: padding, which gets no weight. -> (B, n_values), and the weights (B, S).
        """
        scores = self.score(torch.tanh(self.q_proj(query)[:, None] + keys))[..., 0]  # (B, S)
        weights = scores.masked_fill(~real, -math.inf).softmax(dim=-1)  # (B, S)
        return (weights[:, None] @ values)[:, 0], weights


class Seq2SeqAttention(nn.Module):
    """Reads a source in both directions, then writes a target, looking at the source anew before each token.

    The model of Bahdanau et al. 2015 with a cell of choice, with tanh in place of its maxout layer, and with a decoder
    that starts from the last states of both directions; the paper's starts from one.
    """

    def __init__(self, config: Seq2SeqConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        V, n = config.vocab_size, config.n_embd
        self.embed = nn.Embedding(V, n)
        self.encoder = FUSED[config.cell](n, n, batch_first=True, bidirectional=True)
        n_states = 2 if config.cell == "lstm" else 1  # h, and an LSTM's c
        self.bridges = nn.ModuleList(nn.Linear(2 * n, n) for _ in range(n_states))
        self.attention = AdditiveAttention(n, 2 * n, n)
        self.decoder = ONE_STEP[config.cell](3 * n, n)
        self.combine = nn.Linear(4 * n, n, bias=False)
        self.drop = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(n, V, bias=False)
        self._init_weights(generator)

    @torch.no_grad()
    def _init_weights(self, generator: torch.Generator | None) -> None:
        nn.init.normal_(self.embed.weight, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module, generator)
            elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
                _init_cells(module, self.config.cell, generator)
        nn.init.normal_(self.lm_head.weight, std=0.02, generator=generator)

    def forward(self, src: Tensor, tgt: Tensor) -> tuple[Tensor, Tensor]:
        """src (B, S), filled up with pad_id, tgt (B, T) int64 -> logits (B, T, V) and weights (B, T, S).

        Logits t are for the token behind tgt[:, :t + 1]; weights t say where in the source the model looked for it.
        """
        source, state = self.encode(src)
        all_logits, all_weights = [], []
        for t in range(tgt.shape[1]):
            logits, weights, state = self.step(tgt[:, t], state, source)
            all_logits.append(logits)
            all_weights.append(weights)
        return torch.stack(all_logits, dim=1), torch.stack(all_weights, dim=1)

    def encode(self, src: Tensor) -> tuple[Source, State]:
        """src (B, S) -> the source as the decoder needs it, and the state that the decoder starts from.

        Raises ValueError for a row of nothing but padding, or padding that is not on the right.
        """
        real = src != self.config.pad_id  # (B, S)
        lengths = real.sum(dim=1)  # (B,)
        if (lengths == 0).any() or (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError("every source needs a token, and padding (pad_id) stands on the right alone")
        # Packed, so that the direction from the right starts at each row's last real token.
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(src), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, end = self.encoder(packed)
        values, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=src.shape[1])  # (B, S, 2C)
        state = self.first_state(end if self.config.cell == "lstm" else (end,))
        return Source(values, self.attention.k_proj(values), real), state

    def first_state(self, ends: State) -> State:
        """The encoder's last states, each (2, B, C) -> those that the decoder starts from, each (B, C)."""
        both = (torch.cat((end[0], end[1]), dim=-1) for end in ends)  # (B, 2C): from the left, from the right
        return tuple(torch.tanh(bridge(end)) for bridge, end in zip(self.bridges, both))

    def step(self, token: Tensor, state: State, source: Source) -> tuple[Tensor, Tensor, State]:
        """The last token (B,) and the state -> logits (B, V), weights (B, S), the next state."""
        x = self.embed(token)  # (B, C)
        found, weights = self.attention(state[0], source.keys, source.values, source.real)  # (B, 2C), (B, S)
        decoder = Weights(*self.decoder.parameters())
        state = STEPS[self.config.cell](torch.cat((x, found), dim=-1), state, decoder)
        out = torch.tanh(self.combine(torch.cat((state[0], found, x), dim=-1)))  # (B, C)
        return self.lm_head(self.drop(out)), weights, state

    def n_params(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters())


class Source(NamedTuple):
    """A source that has been read."""

    values: Tensor  # (B, S, 2C): each token, as it is known from the left and from the right
    keys: Tensor  # (B, S, C): the same, as the attention compares it
    real: Tensor  # (B, S) bool, False: padding


@torch.no_grad()
def translate(model: Seq2SeqAttention, src: Tensor, n: int, *, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Write the likeliest token n times, for src (B, S) -> ids (B, n) int64 and where it looked, (B, n, S).

    start: the token that stands before every target. A row that has written `stop` goes on with it.
    """
    source, state = model.encode(src)
    token = torch.full((len(src),), start, device=src.device)
    written, looked = [], []
    ended = torch.zeros_like(token, dtype=torch.bool)
    for _ in range(n):
        logits, weights, state = model.step(token, state, source)
        token = torch.where(ended, stop, logits.argmax(dim=-1))  # (B,)
        ended = ended | (token == stop)
        written.append(token)
        looked.append(weights)
    return torch.stack(written, dim=1), torch.stack(looked, dim=1)


# --- initial weights -------------------------------------------------------------------------------------


def _init_linear(linear: nn.Module, generator: torch.Generator | None) -> None:
    assert isinstance(linear, nn.Linear)
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _init_cells(module: nn.RNNBase | nn.RNNCellBase, cell: Cell, generator: torch.Generator | None) -> None:
    """Orthogonal matrices from state to state, which neither stretch nor shrink it (Saxe et al. 2014).

    The LSTM's forget gates start open: at zero they would halve the memory at each step (Jozefowicz et al. 2015).
    """
    size = module.hidden_size
    for name, p in module.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.normal_(p, std=p.shape[1] ** -0.5, generator=generator)
        elif name.startswith("weight_hh"):
            for part in p.split(size):  # one for each part of the cell, (C, C)
                nn.init.orthogonal_(part, generator=generator)
        else:
            nn.init.zeros_(p)
            if cell == "lstm" and name.startswith("bias_ih"):
                p[size : 2 * size] = 1.0
