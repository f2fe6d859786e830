"""The shape of a model, in one frozen dataclass: GPT-2 and Llama are two settings of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

Positions = Literal["none", "learned", "sinusoidal", "rope"]
Norm = Literal["layernorm", "rmsnorm"]
NormPosition = Literal["pre", "post"]
Feedforward = Literal["gelu", "swiglu"]


MOST_LAYERS = 10_000  # more would fill the memory, layer by layer, before anything could refuse them


class ConfigError(ValueError):
    """A setting that does not make sense; the message says which, what was expected and what to do."""


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the shape of a GPT.

    Letters used for these sizes all through the package: V vocabulary, C channels, L layers,
    H heads, Hkv key/value heads, hd = C / H head size.

    Raises `ConfigError` where a value is impossible, or two values do not fit together.
    """

    vocab_size: int  # V: rows of the embedding table
    block_size: int  # the longest sequence that the model can attend over, in tokens
    n_layer: int = 4  # L: blocks
    n_head: int = 4  # H: query heads in each attention layer
    n_kv_head: int | None = None  # Hkv: key/value heads; None: as many as query heads
    n_embd: int = 128  # C: channels of the residual stream
    d_ff: int | None = None  # hidden units of the MLP; None: 4 C for GELU, about 8/3 C for SwiGLU
    pos: Positions = "rope"
    norm: Norm = "rmsnorm"
    norm_position: NormPosition = "pre"
    mlp: Feedforward = "swiglu"
    bias: bool = False  # biases in the linear layers and in LayerNorm
    tie_weights: bool = False  # the output head shares the token embedding's table
    qk_norm: bool = False  # RMSNorm on each head's queries and keys
    dropout: float = 0.0  # probability of dropping an activation while training
    norm_eps: float = 1e-5  # added to the variance, inside the root
    rope_theta: float = 10000.0  # base of the rotary wavelengths

    def __post_init__(self) -> None:
        """Fill in the defaults that follow from other fields, then check every field."""
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", default_d_ff(self.n_embd, self.mlp))
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "d_ff"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")
        if self.n_layer > MOST_LAYERS:
            raise ConfigError(f"n_layer is {self.n_layer}; expected at most {MOST_LAYERS:,}")
        for name, kind in (("pos", Positions), ("norm", Norm), ("norm_position", NormPosition), ("mlp", Feedforward)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {get_args(kind)}")
        for name in ("bias", "tie_weights", "qk_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_embd {self.n_embd} does not divide into n_head {self.n_head} heads; "
                "make n_embd a multiple of n_head"
            )
        if self.n_head % self.kv_heads:
            raise ConfigError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.kv_heads}; "
                "each key/value head serves the same number of query heads"
            )
        if self.pos == "rope" and self.head_size % 2:
            raise ConfigError(
                f"rotary positions turn pairs of channels, but the head size is {self.head_size}; "
                "make n_embd / n_head even"
            )
        if self.pos == "sinusoidal" and self.n_embd % 2:
            raise ConfigError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}; expected a probability in [0, 1)")
        if not self.norm_eps > 0 or not self.rope_theta > 0:
            raise ConfigError(f"norm_eps {self.norm_eps} and rope_theta {self.rope_theta} must be positive")

    @property
    def head_size(self) -> int:
        """hd, the channels of one head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Hkv, as a plain int."""
        assert self.n_kv_head is not None
        return self.n_kv_head

    @property
    def ff_size(self) -> int:
        """Hidden units of the MLP, as a plain int."""
        assert self.d_ff is not None
        return self.d_ff

    @classmethod
    def gpt2(cls, **changes: Any) -> GPTConfig:
        """GPT-2 small (Radford et al. 2019), 124,439,808 parameters, with any field changed."""
        return cls(**{**GPT2, **changes})

    @classmethod
    def llama(cls, **changes: Any) -> GPTConfig:
        """Llama 7B (Touvron et al. 2023), with any field changed."""
        return cls(**{**LLAMA, **changes})

    def replace(self, **changes: Any) -> GPTConfig:
        """A copy with some fields changed. Sizes that follow from others are worked out anew."""
        fields = self.to_dict()
        if "n_head" in changes and self.n_kv_head == self.n_head:
            fields["n_kv_head"] = None
        if {"n_embd", "mlp"} & changes.keys() and self.d_ff == default_d_ff(self.n_embd, self.mlp):
            fields["d_ff"] = None
        return type(self)(**{**fields, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> GPTConfig:
        """The inverse of `to_dict`. Raises `ConfigError` for a key that is unknown or missing."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(sorted(known))}")
        if missing := sorted({"vocab_size", "block_size"} - set(fields)):
            raise ConfigError(f"missing setting {', '.join(missing)}")
        return cls(**fields)


def default_d_ff(n_embd: int, mlp: Feedforward) -> int:
    """Hidden units of the MLP where none are given.

    4 C for GELU, as in GPT-2. SwiGLU has three matrices instead of two, so 2/3 of that keeps the parameter
    count (Shazeer 2020), rounded up to a multiple of 16.
    """
    return 4 * n_embd if mlp == "gelu" else -(-8 * n_embd // 3 // 16) * 16


GPT2: dict[str, Any] = dict(
    vocab_size=50257,
    block_size=1024,
    n_layer=12,
    n_head=12,
    n_embd=768,
    d_ff=3072,
    pos="learned",
    norm="layernorm",
    norm_position="pre",
    mlp="gelu",
    bias=True,
    tie_weights=True,
    dropout=0.0,
    norm_eps=1e-5,
)
LLAMA: dict[str, Any] = dict(
    vocab_size=32000,
    block_size=2048,
    n_layer=32,
    n_head=32,
    n_embd=4096,
    d_ff=11008,
    pos="rope",
    norm="rmsnorm",
    norm_position="pre",
    mlp="swiglu",
    bias=False,
    tie_weights=False,
    dropout=0.0,
    norm_eps=1e-6,
)
