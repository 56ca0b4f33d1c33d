"""Times PyTorch's attention (cuDNN, bf16) on the shapes that `fieldprint bench attention` times.

usage: torch_attention.py [--repeats N]

32 query and 8 KV heads of size 128. Decode: one query a sequence over a cache of bf16 keys and values. Prefill: causal
self-attention. Anchors: 64 sequences of 8192 tokens with none, with 128 tokens more in every sequence's own cache
(plain concatenation), and with 128 tokens that all share, attended to apart and merged by their softmax sums (unfused
dual softmax). Prints one JSON object. A timed unit is a CUDA graph of calls that go round at least 256 MiB of random
inputs, so that none finds its inputs in the L2 cache and the launches cost no time of their own.
"""

import argparse
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128
DECODE = ((64, 8192), (16, 32768), (1, 131072), (256, 1024), (1, 8192), (4, 8192))
PREFILL = ((4, 4096), (1, 16384), (1, 32768))
ANCHORED, ANCHORS = (64, 8192), 128
ROTATE_BYTES = 256 << 20  # five times the L2 cache
LEAST_CALLS = 4  # of a graph
PREFILL_UNIT_US = 20e3  # long enough for the power limit to act, as it does on a real load
TOLERANCE = 0.01


def microseconds(calls, repeats, least_calls=LEAST_CALLS):
    """Median time of a call over replays of a graph that goes round the calls, by CUDA events."""
    count = -(-max(len(calls), least_calls) // len(calls)) * len(calls)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    times = []
    for repeat in range(-2, repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= 0:
            times.append(begin.elapsed_time(end) * 1000 / count)
    return statistics.median(times)


def random(batch, heads, length, scale=1.0):
    return torch.empty(batch, heads, length, DIM, dtype=torch.bfloat16, device="cuda").uniform_(-scale, scale)


def random_queries(batch, length):
    """Of a size that lets some tokens count more than others: scores of standard deviation 1.3."""
    return random(batch, HEADS, length, 4.0)


def attention(batch, queries, tokens, causal):
    """A call of cuDNN's attention on fresh random inputs."""
    q, k, v = random_queries(batch, queries), random(batch, KV_HEADS, tokens), random(batch, KV_HEADS, tokens)
    run = torch.nn.functional.scaled_dot_product_attention
    return lambda: run(q, k, v, is_causal=causal, enable_gqa=True)


def with_sums(q, k, v):
    """cuDNN's attention with the logarithm of each query's softmax sum."""
    out, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False)
    return out, sums.reshape(*out.shape[:3], 1)


def unfused(q, k, v, anchor_k, anchor_v):
    """Attention over each sequence's cache, another over what all share (as one sequence of all queries), merged."""
    out, sums = with_sums(q, k, v)
    anchor_out, anchor_sums = with_sums(q.permute(2, 1, 0, 3), anchor_k, anchor_v)
    share = torch.sigmoid(anchor_sums.permute(2, 1, 0, 3) - sums)
    return torch.lerp(out, anchor_out.permute(2, 1, 0, 3), share.to(out.dtype))


def time_anchors(repeats):
    batch, tokens = ANCHORED
    run = torch.nn.functional.scaled_dot_product_attention
    q, k, v = random_queries(batch, 1), random(batch, KV_HEADS, tokens), random(batch, KV_HEADS, tokens)
    anchor_k, anchor_v = random(1, KV_HEADS, ANCHORS), random(1, KV_HEADS, ANCHORS)
    longer_k = torch.cat((anchor_k.expand(batch, -1, -1, -1), k), 2)
    longer_v = torch.cat((anchor_v.expand(batch, -1, -1, -1), v), 2)
    calls = {"none_us": lambda: run(q, k, v, enable_gqa=True),
             "concatenated_us": lambda: run(q, longer_k, longer_v, enable_gqa=True),
             "unfused_us": lambda: unfused(q, k, v, anchor_k, anchor_v)}
    whole, merged = calls["concatenated_us"]().float(), calls["unfused_us"]().float()
    error = float((merged - whole).norm() / whole.norm())
    if not error < TOLERANCE:
        raise SystemExit(f"torch_attention: merged and concatenated anchors differ by {error:.4f}")
    return {"batch": batch, "tokens": tokens, "anchors": ANCHORS, "relative_error": error,
            **{name: microseconds([call], repeats) for name, call in calls.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(1)
    result = {"engine": f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
              "device": torch.cuda.get_device_name(), "repeats": options.repeats, "decode": [], "prefill": []}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), torch.inference_mode():
        for batch, tokens in DECODE:
            size = 2 * batch * KV_HEADS * tokens * DIM * 2
            calls = [attention(batch, 1, tokens, False) for _ in range(-(-ROTATE_BYTES // size))]
            time = microseconds(calls, options.repeats)
            result["decode"].append({"batch": batch, "tokens": tokens, "kv": "bf16", "us": time,
                                     "tb_per_s": size / time / 1e6})
            del calls
        for batch, tokens in PREFILL:
            call = attention(batch, tokens, tokens, True)
            time = microseconds([call], options.repeats, int(PREFILL_UNIT_US / microseconds([call], 1)) + 1)
            operations = 2 * batch * HEADS * tokens * tokens * DIM
            result["prefill"].append({"batch": batch, "tokens": tokens, "us": time, "tflops": operations / time / 1e6})
        result["anchors"] = time_anchors(options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
