"""Times PyTorch's attention (cuDNN, bf16) on the shapes that `fieldprint bench attention` times.

usage: torch_attention.py [--repeats N]

32 query and 8 KV heads of size 128. Decode: one query a sequence over a cache of bf16 keys and values. Prefill: causal
self-attention. Prints one JSON object. Inputs are random; buffers rotate so that no run finds its inputs in the L2 cache.
"""

import argparse
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128
DECODE = ((64, 8192), (16, 32768), (1, 131072), (256, 1024), (1, 8192), (4, 8192))
PREFILL = ((4, 4096), (1, 16384), (1, 32768))
ROTATE_BYTES = 200 << 20  # four times the L2 cache


def microseconds(calls, repeats):
    """Median time of a call, in turns over the calls, by CUDA events."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    times = []
    for repeat in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        calls[repeat % len(calls)]()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times)


def attention(batch, queries, tokens, causal):
    """A call of cuDNN's attention on fresh random inputs."""
    make = lambda heads, length: torch.randn(batch, heads, length, DIM, dtype=torch.bfloat16, device="cuda")
    q, k, v = make(HEADS, queries), make(KV_HEADS, tokens), make(KV_HEADS, tokens)
    run = torch.nn.functional.scaled_dot_product_attention
    return lambda: run(q, k, v, is_causal=causal, enable_gqa=True)


def read_bandwidth(repeats):
    """TB/s of a sum over 4 GiB, which reads and hardly writes."""
    data = torch.randn(1 << 30, device="cuda")
    out = torch.empty((), device="cuda")
    return (4 << 30) / microseconds([lambda: torch.sum(data, dim=0, out=out)], repeats) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(1)
    result = {"engine": f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, bf16",
              "device": torch.cuda.get_device_name(), "repeats": options.repeats, "decode": [], "prefill": []}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), torch.inference_mode():
        for batch, tokens in DECODE:
            size = 2 * batch * KV_HEADS * tokens * DIM * 2
            calls = [attention(batch, 1, tokens, False) for _ in range(max(1, -(-ROTATE_BYTES // size)))]
            time = microseconds(calls, options.repeats)
            result["decode"].append({"batch": batch, "tokens": tokens, "us": time, "tb_per_s": size / time / 1e6})
        for batch, tokens in PREFILL:
            time = microseconds([attention(batch, tokens, tokens, True)], options.repeats)
            operations = 2 * batch * HEADS * tokens * tokens * DIM
            result["prefill"].append({"batch": batch, "tokens": tokens, "us": time, "tflops": operations / time / 1e6})
    result["read_tb_per_s"] = read_bandwidth(options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
