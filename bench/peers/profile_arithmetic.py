"""Language models of GGUF files in float32 with the attention of a profile in place of their own, in PyTorch.

For bench/attention_profiles. Weights and everything but attention are float32. Rows and weights are a profile's integers
exactly, and so are scores (at most 127·127·256 < 2^24, which float32 holds); weighted values are added in float32 under
one maximum of the row, where the contract folds tiles in order: that changes a result by rounding alone.
"""

import math

import numpy
import torch
from gguf import GGUFReader, dequantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOG2E = 1.4426950408889634
INF = float("inf")
ROWS = 512  # queries that are worked on at once
UNSEEN = -2.0**30
# Of src/exact/CANON.md, section 5.
WEIGHT_ONE = 254.0
C2, C1, C0 = 57.59375, -172.125, 368.5
# Scales of keys and of values (of a token, or static: of a channel), tokens of a tile, levels of a weight.
PROFILES = {"A": ("token", "token", 64, 65535.0), "A8": ("token", "token", 128, 255.0),
            "B": ("static", "static", 128, WEIGHT_ONE), "C": ("token", "static", 128, WEIGHT_ONE),
            "E": ("static", "token", 128, 255.0)}


def weight_table():
    """The weight w of the exponent e = 15360 - i, for i = 0 … 12289: it depends on e alone."""
    def half(values):
        return values.astype(numpy.float16).astype(numpy.float32)

    exponent = 15360 - numpy.arange(12290)
    h = exponent.astype(numpy.uint16).view(numpy.float16).astype(numpy.float32)
    u = (0x3C00 | (exponent & 1023)).astype(numpy.uint16).view(numpy.float16).astype(numpy.float32)
    g = half(half(numpy.float32(C2) * u + numpy.float32(C1)) * u + numpy.float32(C0))
    weights = numpy.rint(h * g)
    assert weights[0] == WEIGHT_ONE == weights.max() and (numpy.diff(weights) <= 0).all() and weights[-2] == 0
    return torch.tensor(weights, dtype=torch.float32, device=DEVICE)


class Model:
    """The weights of a GGUF file (Llama's architecture or Gemma 3's), and what a pass over them needs to know."""

    def __init__(self, path, layers=None):
        reader = GGUFReader(path)

        def field(key, default=None):
            return reader.fields[key].contents() if key in reader.fields else default

        name = field("general.architecture")
        self.gemma = name == "gemma3"
        self.layers = min(field(f"{name}.block_count"), layers or 1 << 20)
        self.dim, self.context = field(f"{name}.embedding_length"), field(f"{name}.context_length")
        self.heads, self.kv_heads = field(f"{name}.attention.head_count"), field(f"{name}.attention.head_count_kv")
        self.head_dim = field(f"{name}.attention.key_length", self.dim // self.heads)
        self.eps = field(f"{name}.attention.layer_norm_rms_epsilon")
        self.window = field(f"{name}.attention.sliding_window", 0) if self.gemma else 0
        self.local = [self.gemma and layer % 6 != 5 for layer in range(self.layers)]
        self.bos = field("tokenizer.ggml.bos_token_id")
        self.adds_bos = bool(field("tokenizer.ggml.add_bos_token", self.gemma))
        self.score_scale = numpy.float32(LOG2E / math.sqrt(self.head_dim))
        self.weights = {tensor.name: self.read(tensor) for tensor in reader.tensors}
        self.embedding = self.weights["token_embd.weight"]
        self.output = self.weights.get("output.weight", self.embedding)
        self.make_turns(float(field(f"{name}.rope.freq_base")))

    def read(self, tensor):
        x = torch.from_numpy(numpy.array(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)).to(DEVICE)
        if not self.gemma and (".attn_q.w" in tensor.name or ".attn_k.w" in tensor.name):
            # Files of Llama's architecture hold the two channels of a rotated pair side by side.
            x = x.view(x.shape[0] // self.head_dim, self.head_dim // 2, 2, -1).transpose(1, 2).reshape(x.shape)
        return x.contiguous()

    def make_turns(self, base):
        """Angle steps, cosines and sines, by whether a layer is local."""
        pair = numpy.arange(self.head_dim // 2)
        self.steps = {False: base ** (-2.0 * pair / self.head_dim), True: 10000.0 ** (-2.0 * pair / self.head_dim)}
        self.turns = {}
        for local, step in self.steps.items():
            angle = numpy.arange(self.context)[:, None] * step[None]
            self.turns[local] = tuple(torch.tensor(f(angle), dtype=torch.float32, device=DEVICE)
                                      for f in (numpy.cos, numpy.sin))

    def layer_window(self, layer):
        return self.window if self.local[layer] else 0


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def queries_keys_values(model, layer, x):
    """q [B][K][G][T][D], k and v [B][K][T][D] of a layer's normalised input."""
    batch, tokens, _ = x.shape
    heads, kv_heads, dim = model.heads, model.kv_heads, model.head_dim

    def weight(name):
        return model.weights[f"blk.{layer}.{name}.weight"]

    q = (x @ weight("attn_q").T).view(batch, tokens, heads, dim).transpose(1, 2)
    k = (x @ weight("attn_k").T).view(batch, tokens, kv_heads, dim).transpose(1, 2)
    v = (x @ weight("attn_v").T).view(batch, tokens, kv_heads, dim).transpose(1, 2).contiguous()
    if model.gemma:
        q, k = rms_norm(q, weight("attn_q_norm"), model.eps), rms_norm(k, weight("attn_k_norm"), model.eps)
    cos, sin = (part[:tokens] for part in model.turns[model.local[layer]])
    q = rotate(q, cos, sin).view(batch, kv_heads, heads // kv_heads, tokens, dim)
    return q, rotate(k, cos, sin), v


def forward(model, tokens, attend):
    """The last hidden states of tokens [B][T]; attend(layer, q, k, v) has q's shape."""
    batch, count = tokens.shape
    x = model.embedding[tokens] * (math.sqrt(model.dim) if model.gemma else 1.0)
    for layer in range(model.layers):
        def weight(name, layer=layer):
            return model.weights[f"blk.{layer}.{name}.weight"]

        q, k, v = queries_keys_values(model, layer, rms_norm(x, weight("attn_norm"), model.eps))
        out = attend(layer, q, k, v).reshape(batch, model.heads, count, model.head_dim)
        y = out.transpose(1, 2).reshape(batch, count, -1) @ weight("attn_output").T
        x = x + (rms_norm(y, weight("post_attention_norm"), model.eps) if model.gemma else y)
        normalised = rms_norm(x, weight("ffn_norm"), model.eps)
        gate = normalised @ weight("ffn_gate").T
        gate = (torch.nn.functional.gelu(gate, approximate="tanh") if model.gemma else torch.nn.functional.silu(gate))
        y = (gate * (normalised @ weight("ffn_up").T)) @ weight("ffn_down").T
        x = x + (rms_norm(y, weight("post_ffw_norm"), model.eps) if model.gemma else y)
    return rms_norm(x, model.weights["output_norm.weight"], model.eps)


def losses(model, hidden, tokens):
    """Of every token of a window but its first, in nats, [B][T - 1]."""
    batch, count = tokens.shape
    out = torch.empty(batch, count - 1, device=DEVICE)
    for row in range(batch):
        for begin in range(0, count - 1, 1024):
            end = min(begin + 1024, count - 1)
            logits = hidden[row, begin:end] @ model.output.T
            following = logits.gather(1, tokens[row, begin + 1:end + 1, None])[:, 0]
            out[row, begin:end] = torch.logsumexp(logits, -1) - following
    return out.double()


def attend_float(model, layer, q, k, v):
    """Profile F."""
    batch, kv_heads, group, tokens, dim = q.shape
    window = model.layer_window(layer)
    out, scale = torch.empty_like(q), float(numpy.float32(1 / math.sqrt(dim)))
    for begin in range(0, tokens, ROWS):
        end, first = min(tokens, begin + ROWS), max(0, begin - window + 1) if window else 0
        scores = q[:, :, :, begin:end].reshape(batch, kv_heads, -1, dim) @ k[:, :, first:end].transpose(-1, -2)
        scores = scores.view(batch, kv_heads, group, end - begin, -1) * scale
        row = torch.arange(begin, end, device=DEVICE)[:, None]
        column = torch.arange(first, end, device=DEVICE)[None]
        seen = column <= row
        if window:
            seen &= column > row - window
        weights = torch.softmax(scores.masked_fill_(~seen, -INF), -1).view(batch, kv_heads, -1, end - first)
        out[:, :, :, begin:end] = (weights @ v[:, :, first:end]).view(batch, kv_heads, group, end - begin, dim)
    return out


class Clamped:
    """Counts, by kind, the values that lie beyond the int8 range of their static scale."""

    def __init__(self):
        self.counts = {}

    def add(self, kind, x):
        beyond, all_of_them = self.counts.get(kind, (0, 0))
        self.counts[kind] = (beyond + (x.abs() > 127.5).sum(), all_of_them + x.numel())

    def shares(self):
        return {kind: float(beyond) / all_of_them for kind, (beyond, all_of_them) in self.counts.items()}


def query_rows(x):
    """int8 of rows with a float32 scale each."""
    largest = x.abs().amax(-1, keepdim=True)
    return torch.round(x * torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))), largest / 127.0


def token_rows(x):
    """int8 of rows with a bf16 scale each."""
    scale = (x.abs().amax(-1, keepdim=True) / 127.0).bfloat16().float()
    inverse = torch.where(scale > 0, 1.0 / scale, torch.zeros_like(scale))
    return torch.round(x * inverse).clamp_(-127, 127), scale


def static_rows(x, inverse, sink_inverse, kind, clamped):
    """int8 of rows by the scales of their channels, and of the sink by its factor on them."""
    x = x * inverse[None, :, None]
    x[:, :, 0] = x[:, :, 0] * sink_inverse[None]
    if clamped is not None:
        clamped.add(kind, x[:, :, 1:])
        clamped.add("sink_" + kind, x[:, :, :1])
    return torch.round(x.clamp_(-127, 127))


class Context:
    """Rows [B][K][T][…] in two parts: the sink's, and those of positions 1 and on, padded to whole tiles."""

    def __init__(self, rows, tile):
        self.sink, rest = rows[:, :, 0], rows[:, :, 1:]
        padding = -rest.shape[2] % tile if rest.shape[2] else tile
        self.rest = torch.nn.functional.pad(rest, (0, 0, 0, padding)) if padding else rest.contiguous()


class Quantised:
    """Queries, keys and values of a layer in a profile's integers."""

    def __init__(self, model, profile, scales, q, k, v, clamped):
        self.keys, self.values, self.tile, self.levels = PROFILES[profile]
        self.scales = scales
        k = k - scales["offset"][None, :, None]
        if self.keys == "token":
            self.q, q_scale = query_rows(q)
            self.q_scale = q_scale * float(model.score_scale)
            keys, k_scale = token_rows(k)
            self.k_scale = Context(k_scale, self.tile)
        else:
            x = q * scales["q_factor"][None, :, None, None]
            largest = x.abs().amax(-1, keepdim=True)
            self.step = (torch.trunc(largest * float(numpy.float32(2**22 / 127))) + 1).clamp_(16, 2**22)
            self.q = torch.round((x * (4194304.0 / self.step)).clamp_(-127, 127))
            self.q_scale = self.step * 2.0**-22
            keys = static_rows(k, scales["k_inverse"], scales["sink_k_inverse"], "k", clamped)
        if self.values == "token":
            values, v_scale = token_rows(v)
            self.v_scale = Context(v_scale, self.tile)
        else:
            values = static_rows(v, scales["v_inverse"], scales["sink_v_inverse"], "v", clamped)
        self.k, self.v = Context(keys, self.tile), Context(values, self.tile)

    def weigh(self, scores, sink_scores, rows, columns, seen):
        """Weights of scores [B][K][G][R][tiles][tile] in each tile's own unit, the tiles' maxima, the sink's score."""
        q_scale = self.q_scale[:, :, :, rows]
        if self.keys == "token":
            k_scale = self.k_scale.rest[..., 0][:, :, None, None, columns]
            scores = scores.mul_((q_scale * k_scale).view(scores.shape[:2] + (-1,) + scores.shape[3:]))
            maxima = scores.masked_fill_(~seen, -INF).amax(-1)
            unit = torch.where(maxima == -INF, torch.zeros_like(maxima), maxima)
            sink = sink_scores * (q_scale[..., 0] * self.k_scale.sink[..., 0][:, :, None, None])
            return torch.exp2(scores.sub_(unit[..., None])), maxima, sink
        largest = scores.masked_fill_(~seen, UNSEEN).amax(-1)
        maxima = torch.where(largest == UNSEEN, torch.full_like(largest, -INF), largest * q_scale)
        sink = (sink_scores * q_scale[..., 0]) * self.scales["sink_k_scale"][None, :, None, None]
        below = scores.sub_(largest[..., None])
        if self.values == "token":
            weights = torch.exp2(below.mul_(q_scale[..., None]))
        else:
            step = self.step[:, :, :, rows].to(torch.int32)
            lowest = torch.div(torch.full_like(step, 50331648), step, rounding_mode="floor")[..., None]
            difference = torch.maximum(below.to(torch.int32), -lowest) * step[..., None]
            # -round(difference / 2^12), ties to even.
            weights = TABLE[-((difference + 2047 + ((difference >> 12) & 1)) >> 12)]
        return weights.masked_fill_(~seen, 0.0), maxima, sink

    def normalise(self, weights, factors, sink_factor, columns):
        """Weights times their tile's factor with the values' scales in them, the sink's, and what they are divided by."""
        if self.values == "token":
            # One level of a weight is a tile's own; the sum is that of weights before they are rounded.
            sums = torch.round(weights * 2.0**23).sum(-1, dtype=torch.float64).float() * 2.0**-23
            total = (sums * factors).sum(-1) + sink_factor
            v_scale = self.v_scale.rest[..., 0][:, :, None, None, columns]
            weights = weights.mul_(v_scale.view(v_scale.shape[:2] + (1, 1) + weights.shape[4:]))
            largest = weights.amax(-1)
            inverse = torch.where(largest > 0, self.levels / largest, torch.zeros_like(largest))
            weights = torch.round(weights.mul_(inverse[..., None])).mul_((largest / self.levels * factors)[..., None])
            return weights, sink_factor * self.v_scale.sink[..., 0][:, :, None, None], total
        if self.keys == "token":
            weights = torch.round(weights.mul_(self.levels))
        total = (weights.sum(-1) * factors).sum(-1) + self.levels * sink_factor
        sink = self.levels * sink_factor * self.scales["sink_v_scale"][None, :, None, None]
        return weights.mul_(factors[..., None]), sink, total

    def attend(self, begin, end, window):
        """The rows begin … end - 1 of the result."""
        batch, kv_heads, group, _, dim = self.q.shape
        rows, tile = slice(begin, end), self.tile
        first = max(0, (begin - window) // tile) if window else 0
        last = max((end - 1 + tile - 1) // tile, first + 1)
        columns, shape = slice(first * tile, last * tile), (batch, kv_heads, group, end - begin)
        position = torch.arange(begin, end, device=DEVICE)[:, None]
        column = torch.arange(columns.start, columns.stop, device=DEVICE)[None] + 1
        seen, sees_sink = column <= position, torch.ones_like(position[:, 0], dtype=torch.bool)
        if window:
            seen, sees_sink = seen & (column > position - window), position[:, 0] < window
        q = self.q[:, :, :, rows].reshape(batch, kv_heads, -1, dim)
        scores = (q @ self.k.rest[:, :, columns].transpose(-1, -2)).view(shape + (last - first, tile))
        weights, maxima, sink = self.weigh(scores, (q @ self.k.sink[..., None]).view(shape), rows, columns,
                                           seen.view(end - begin, last - first, tile))
        sink = sink.masked_fill(~sees_sink, -INF)
        largest = torch.maximum(maxima.amax(-1), sink)
        weights, sink, total = self.normalise(weights, torch.exp2(maxima - largest[..., None]),
                                              torch.exp2(sink - largest), columns)
        out = (weights.view(batch, kv_heads, group * (end - begin), -1) @ self.v.rest[:, :, columns]).view(shape + (dim,))
        out = (out + sink[..., None] * self.v.sink[:, :, None, None]) / total[..., None]
        return out * self.scales["v_scale"][None, :, None, None] if self.values == "static" else out


def attend_profile(model, profile, calibration, clamped=None):
    """The attention of a profile other than F, as forward() takes it."""
    def attend(layer, q, k, v):
        quantised, out = Quantised(model, profile, calibration[layer], q, k, v, clamped), torch.empty_like(q)
        tokens = q.shape[3]
        for begin in range(0, tokens, ROWS):
            end = min(tokens, begin + ROWS)
            out[:, :, :, begin:end] = quantised.attend(begin, end, model.layer_window(layer))
        return out

    return attend


TABLE = weight_table()
