"""A decoder-only transformer over bytes, parallel along `tp` (Megatron-style) and `pp`.

The parallel groups come in through constructors; nothing is read from globals. Every full weight is
a function of (seed, name) alone, so any topology holds the same model and gives the same logits.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from parallel_topology import ParallelGroup

BOS, EOS, PAD = 256, 257, 258  # 0..255 are the bytes themselves; 259..263 are spare


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The sizes, seed and dtype of a model. No parallelism: that is the topology's business."""

    hidden: int = 192
    heads: int = 24
    layers: int = 8
    ffn: int = 768
    vocab: int = 264  # 256 bytes and 8 special tokens; splits over tp 2, 3, 4, 6, 8, 12, 24
    max_seq: int = 256
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "layers", "ffn", "vocab", "max_seq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden {self.hidden} is not divisible by 2 x heads {self.heads}: "
                "rotary positions turn pairs of features within each head"
            )

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def require_divisible(self, *, tp: int, pp: int) -> None:
        """Check that the model can be split over `tp` ranks and `pp` stages.

        Raises:
            ValueError: a sharded size is not a multiple of `tp`, or a stage would have no layer.
        """
        for name in ("heads", "ffn", "vocab"):
            if getattr(self, name) % tp:
                raise ValueError(f"{name} {getattr(self, name)} is not divisible by tp {tp}")
        if self.layers < pp:
            raise ValueError(f"layers {self.layers} is fewer than pp {pp}: a stage would be empty")


def encode(*texts: bytes) -> Tensor:
    """Each text as BOS and its bytes, padded on the right: `[batch, longest + 1]`, int64."""
    width = max(map(len, texts), default=0)
    return torch.tensor([[BOS, *text, *[PAD] * (width - len(text))] for text in texts], dtype=torch.int64)


def seeded_weight(config: TransformerConfig, name: str, *shape: int, std: float | None = None) -> Tensor:
    """The full weight called `name`, the same on every rank and under every topology.

    `std` is 1 / sqrt(fan-in) unless given, so that activations and logits stay of order 1.
    """
    # Not `hash(name)`: Python salts it in each process. Drawn in float32 on the CPU whatever the
    # dtype and default device, so that models differing only in those have the same weights.
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
    weight = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return (weight * (shape[-1] ** -0.5 if std is None else std)).to(config.dtype)


def stage_layers(layers: int, *, stage: int, stages: int) -> range:
    """The layers of one pipeline stage; the first `layers % stages` stages have one more.

    >>> [list(stage_layers(5, stage=stage, stages=3)) for stage in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    size, extra = divmod(layers, stages)
    start = stage * size + min(stage, extra)
    return range(start, start + size + (stage < extra))


class ColumnParallelLinear(nn.Module):
    """`[..., in]` on every rank -> `[..., out / tp]`, no communication (Shoeybi et al. 2019, 3).

    `parts` matrices stacked in one weight (q, k, v) are sharded one by one: each rank then has its
    share of every part, and `chunk(parts, dim=-1)` of the output separates them.
    """

    def __init__(self, weight: Tensor, *, tp: ParallelGroup, parts: int = 1) -> None:
        super().__init__()
        self.weight = _shard(weight, 0, tp, parts=parts)  # [out / tp, in]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class RowParallelLinear(nn.Module):
    """`[..., in / tp]` -> `[..., out]` on every rank, by one all-reduce."""

    def __init__(self, weight: Tensor, bias: Tensor, *, tp: ParallelGroup) -> None:
        super().__init__()
        self.weight = _shard(weight, 1, tp)  # [out, in / tp]
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        # The bias goes on after the sum: before it, it would be added `tp` times.
        return self.tp.all_reduce(F.linear(x, self.weight)) + self.bias


class VocabParallelEmbedding(nn.Module):
    """Tokens `[batch, seq]` -> `[batch, seq, hidden]`; each rank holds `vocab / tp` rows.

    A token outside the vocabulary becomes zeros: to raise would mean waiting for the device.
    """

    def __init__(self, weight: Tensor, *, tp: ParallelGroup) -> None:
        super().__init__()
        self.weight = _shard(weight, 0, tp)  # [vocab / tp, hidden]
        self.tp = tp

    def forward(self, tokens: Tensor) -> Tensor:
        rows = len(self.weight)
        local = tokens - self.tp.rank * rows
        elsewhere = (local < 0) | (local >= rows)
        embedded = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.tp.all_reduce(embedded.masked_fill(elsewhere.unsqueeze(-1), 0))


class VocabParallelHead(nn.Module):
    """`[batch, seq, hidden]` -> logits `[batch, seq, vocab]`, gathered from `vocab / tp` each."""

    def __init__(self, weight: Tensor, *, tp: ParallelGroup) -> None:
        super().__init__()
        self.weight = _shard(weight, 0, tp)  # [vocab / tp, hidden]
        self.tp = tp

    def forward(self, h: Tensor) -> Tensor:
        return self.tp.all_gather(F.linear(h, self.weight), dim=-1)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dim (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, config: TransformerConfig, name: str) -> None:
        super().__init__()
        # Away from 1, so that a forgotten or misplaced norm weight shows in the logits.
        weight = 1 + seeded_weight(config, f"{name}.weight", config.hidden, std=0.1)
        self.weight = nn.Parameter(weight, requires_grad=False)  # [hidden], on every rank
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary(nn.Module):
    """Turns feature pairs (i, i + size / 2) by an angle proportional to the position.

    RoPE, Su et al. 2021, arXiv:2104.09864. `[batch, heads / tp, seq, head_size]`, shape kept.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
        positions = torch.arange(config.max_seq, dtype=torch.float64)
        angles = torch.outer(positions, config.rope_base**-exponents)  # [max_seq, head_size / 2]
        self.register_buffer("cos", angles.cos().to(config.dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(config.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        seq = x.shape[-2]
        cos, sin = self.cos[:seq], self.sin[:seq]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class CausalAttention(nn.Module):
    """Multi-head attention, `heads / tp` heads on each rank: `[batch, seq, hidden]`, shape kept."""

    def __init__(self, config: TransformerConfig, name: str, *, tp: ParallelGroup) -> None:
        super().__init__()
        hidden = config.hidden
        self.head_size = config.head_size
        # A part's rows are head after head, so an even split of them is a split by head.
        qkv = seeded_weight(config, f"{name}.qkv.weight", 3 * hidden, hidden)
        out = seeded_weight(config, f"{name}.out.weight", hidden, hidden)
        out_bias = seeded_weight(config, f"{name}.out.bias", hidden, std=0.1)
        self.qkv = ColumnParallelLinear(qkv, tp=tp, parts=3)
        self.rotary = Rotary(config)
        self.out = RowParallelLinear(out, out_bias, tp=tp)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )  # [batch, heads / tp, seq, head_size] each
        mixed = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): `[..., hidden]` -> `[..., ffn / tp]` and back."""

    def __init__(self, config: TransformerConfig, name: str, *, tp: ParallelGroup) -> None:
        super().__init__()
        hidden, ffn = config.hidden, config.ffn
        up = seeded_weight(config, f"{name}.gate_up.weight", 2 * ffn, hidden)
        down = seeded_weight(config, f"{name}.down.weight", hidden, ffn)
        down_bias = seeded_weight(config, f"{name}.down.bias", hidden, std=0.1)
        self.gate_up = ColumnParallelLinear(up, tp=tp, parts=2)
        self.down = RowParallelLinear(down, down_bias, tp=tp)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP on a residual stream: two all-reduces over `tp`."""

    def __init__(self, config: TransformerConfig, name: str, *, tp: ParallelGroup) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config, f"{name}.attention_norm")
        self.attention = CausalAttention(config, f"{name}.attention", tp=tp)
        self.mlp_norm = RMSNorm(config, f"{name}.mlp_norm")
        self.mlp = MLP(config, f"{name}.mlp", tp=tp)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.attention_norm(h))
        return h + self.mlp(self.mlp_norm(h))


class Transformer(nn.Module):
    """One rank's part of the model: its pipeline stage's layers, sharded over `tp`.

    Parameters keep their names in the whole model: `layers.3.attention.qkv.weight` on any stage.

    Raises:
        ValueError: the model cannot be split over groups of these sizes.
    """

    def __init__(self, config: TransformerConfig, *, tp: ParallelGroup, pp: ParallelGroup) -> None:
        super().__init__()
        config.require_divisible(tp=tp.size, pp=pp.size)
        self.config = config
        self.pp = pp
        table = (config.vocab, config.hidden)
        if pp.is_first:
            weight = seeded_weight(config, "embedding.weight", *table, std=1.0)
            self.embedding = VocabParallelEmbedding(weight, tp=tp)
        self.layers = nn.ModuleDict()  # not a list, which would number them from 0 on each stage
        for index in stage_layers(config.layers, stage=pp.rank, stages=pp.size):
            self.layers[str(index)] = DecoderLayer(config, f"layers.{index}", tp=tp)
        if pp.is_last:
            self.norm = RMSNorm(config, "norm")
            self.head = VocabParallelHead(seeded_weight(config, "head.weight", *table), tp=tp)

    def forward(self, tokens: Tensor) -> Tensor | None:
        """Run this rank's part on tokens `[batch, seq]`, int64, the same on every rank.

        Returns:
            Logits `[batch, seq, vocab]` on every rank of the last stage, None on the others.

        Raises:
            ValueError: `tokens` is longer than `max_seq`.
        """
        batch, seq = tokens.shape
        # Before any communication, and from what all ranks know: all raise, none waits for a peer.
        if seq > self.config.max_seq:
            raise ValueError(f"seq {seq} is longer than max_seq {self.config.max_seq}")
        if self.pp.is_first:
            h = self.embedding(tokens)
        else:
            shape = (batch, seq, self.config.hidden)
            h = self.pp.recv(torch.empty(shape, dtype=self.config.dtype, device=tokens.device))
        for layer in self.layers.values():
            h = layer(h)
        if not self.pp.is_last:
            self.pp.send(h)
            return None
        return self.head(self.norm(h))


def dense_logits(config: TransformerConfig, tokens: Tensor) -> Tensor:
    """The oracle: logits `[batch, seq, vocab]` written out plainly, sharing only the weights.

    Rotary positions are complex products and attention is a masked softmax here, so a mistake in
    the layers above has to be made twice, in different formulas, to pass unseen.
    """
    hidden, heads, size = config.hidden, config.heads, config.head_size
    batch, seq = tokens.shape

    def weight(name: str, *shape: int, std: float | None = None) -> Tensor:
        return seeded_weight(config, name, *shape, std=std).to(tokens.device)

    def linear(x: Tensor, name: str, out: int) -> Tensor:
        return x @ weight(f"{name}.weight", out, x.shape[-1]).T

    def norm(x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(dim=-1, keepdim=True) + config.norm_eps).sqrt()
        return x / rms * (1 + weight(f"{name}.weight", hidden, std=0.1))

    def rotate(x: Tensor) -> Tensor:  # [batch, seq, heads, size]
        frequency = config.rope_base ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)
        angle = torch.arange(seq, dtype=torch.float64)[:, None, None] * frequency
        turn = torch.polar(torch.ones_like(angle), angle).to(x.device)  # [seq, 1, size / 2]
        turned = torch.complex(*x.double().split(size // 2, dim=-1)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)

    future = torch.ones(seq, seq, dtype=torch.bool, device=tokens.device).triu(1)
    h = weight("embedding.weight", config.vocab, hidden, std=1.0)[tokens]
    for layer in (f"layers.{index}" for index in range(config.layers)):
        qkv = linear(norm(h, f"{layer}.attention_norm"), f"{layer}.attention.qkv", 3 * hidden)
        q, k, v = qkv.view(batch, seq, 3, heads, size).unbind(dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / size**0.5
        attention = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", attention, v).flatten(-2)
        h = h + linear(mixed, f"{layer}.attention.out", hidden)
        h = h + weight(f"{layer}.attention.out.bias", hidden, std=0.1)

        gate_up = linear(norm(h, f"{layer}.mlp_norm"), f"{layer}.mlp.gate_up", 2 * config.ffn)
        gate, up = gate_up.split(config.ffn, dim=-1)
        h = h + linear(gate * gate.sigmoid() * up, f"{layer}.mlp.down", hidden)
        h = h + weight(f"{layer}.mlp.down.bias", hidden, std=0.1)
    return linear(norm(h, "norm"), "head", config.vocab)


def _shard(weight: Tensor, dim: int, tp: ParallelGroup, *, parts: int = 1) -> nn.Parameter:
    """This rank's equal share, along `dim`, of each of the `parts` stacked in `weight`."""
    shares = [part.chunk(tp.size, dim)[tp.rank] for part in weight.chunk(parts, dim)]
    # `cat` copies, even a single share: a view would keep the whole weight in memory.
    return nn.Parameter(torch.cat(shares, dim), requires_grad=False)
