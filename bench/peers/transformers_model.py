"""Times Hugging Face's transformers on a model of Llama 3 8B's shape with random bf16 weights.

usage: transformers_model.py [--tokens T] [--repeats N] [--batches B,…] [--prefills T,…] [--compile-seconds S]

The measurements of `fieldprint bench model`: a decode step of B sequences with T tokens of context, the largest logit
of each taken on the device, and the prefill of one sequence up to the choice of a token. Each is tried in several ways,
the fastest of which counts; all are in the results:

- attention by scaled_dot_product_attention with FlashAttention 2 or cuDNN. Decode reads a static cache of T slots, all of
  them full, so that no mask is needed, which would keep transformers from these kernels;
- eager, and by torch.compile as long as S seconds are not over. A decode step is a CUDA graph in both cases, so that
  launches cost nothing; a prefill is launched call by call, as a server would.

Prints one JSON object: versions, the device's copy bandwidth, and every way's median.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.models.llama import modeling_llama

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Where a backend has no kernel for a call, as for some of one query, PyTorch's own choice among the others counts.
OTHERS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def make_model():
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    # Initialised by hand: transformers' own way takes longer than all measurements.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cuda").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, 0.02)
    # Buffers of the rotary embedding hold nothing yet after to_empty().
    model.model.rotary_emb = modeling_llama.LlamaRotaryEmbedding(config=config).to("cuda")
    # Full slots and causal prefills need none; sdpa is then told is_causal.
    modeling_llama.create_causal_mask = lambda *_, **__: None
    return model


def time_ms(call, repeats, before=lambda: None):
    times = []
    for repeat in range(-3, repeats):
        before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 0:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Decode:
    """Steps of a batch over a full cache."""

    def __init__(self, model, batch, tokens, repeats):
        self.tokens, self.repeats = tokens, repeats
        self.ids = torch.randint(0, model.config.vocab_size, (batch, 1), device="cuda")
        self.cache = StaticCache(config=model.config, max_cache_len=tokens)
        shape = (batch, model.config.num_key_value_heads, 1, model.config.head_dim)
        for layer in self.cache.layers:
            layer.lazy_initialization(torch.zeros(shape, device="cuda"), torch.zeros(shape, device="cuda"))
            layer.keys.normal_()
            layer.values.normal_()
        self.positions = torch.full((batch, 1), tokens - 1, device="cuda")

    def rewind(self):
        """Each step writes its keys and values into the last slot."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.tokens - 1)

    def step(self, forward):
        out = forward(input_ids=self.ids, position_ids=self.positions, past_key_values=self.cache, use_cache=True,
                      logits_to_keep=1)
        self.ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))

    def milliseconds(self, forward):
        def call():
            self.rewind()
            self.step(forward)

        call()
        call()
        self.rewind()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(forward)
        return time_ms(graph.replay, self.repeats, self.rewind)


def prefill_ms(model, count, repeats):
    ids = torch.randint(0, model.config.vocab_size, (1, count), device="cuda")

    def call():
        out = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1)

    return time_ms(call, repeats)


def copy_bandwidth():
    """Bytes read and written a second by a copy of 4 GiB, in TB/s."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / time_ms(lambda: target.copy_(source), 10) * 1e-9


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batches", type=numbers, default=[1, 16, 64, 256])
    parser.add_argument("--prefills", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--compile-seconds", type=float, default=90)
    options = parser.parse_args()
    runs = []

    def measure(kind, size, attention, way, milliseconds):
        """Notes a way's time, or why it has none."""
        run = {kind: size, "attention": attention, "way": way}
        try:
            with sdpa_kernel([ATTENTION[attention]] + OTHERS, set_priority=True):
                run["milliseconds"] = milliseconds()
        except Exception as error:  # a peer's way that does not work here is a result, not an end
            run["error"] = f"{type(error).__name__}: {error}"[:300]
        runs.append(run)

    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        torch.cuda.empty_cache()
        model = make_model()
        for count in options.prefills:
            for attention in ATTENTION:
                measure("prefill", count, attention, "eager", lambda: prefill_ms(model, count, 5))
        for batch in options.batches:
            decode = Decode(model, batch, options.tokens, options.repeats)
            for attention in ATTENTION:
                measure("batch", batch, attention, "eager", lambda: decode.milliseconds(model))
            del decode
            torch.cuda.empty_cache()
        begin = time.monotonic()
        for batch in options.batches:
            if time.monotonic() - begin > options.compile_seconds:
                break
            done = [run for run in runs if run.get("batch") == batch and "milliseconds" in run]
            best = min(done, key=lambda run: run["milliseconds"])["attention"] if done else "flash"
            torch._dynamo.reset()
            forward = torch.compile(model.forward, dynamic=False)
            decode = Decode(model, batch, options.tokens, options.repeats)
            measure("batch", batch, best, "compiled", lambda: decode.milliseconds(forward))
            del decode
            torch.cuda.empty_cache()
    print(json.dumps({"versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                                   "cudnn": torch.backends.cudnn.version()},
                      "copy_tb_per_s": bandwidth, "tokens": options.tokens, "runs": runs}))


if __name__ == "__main__":
    main()
