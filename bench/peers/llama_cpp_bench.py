"""Times llama.cpp as `fieldprint bench cpu` times us: prefill of P tokens in each of B sequences, then G decode steps.

usage: llama_cpp_bench.py MODEL.gguf --threads T --prompt P --generate G --batch B

Prints one JSON object. Like llama-bench it feeds fixed tokens and does not sample, which favours llama.cpp a little.
Every setting is the library's default but the sizes, the threads and the device (CPU).
"""

import argparse
import ctypes
import json
import sys
import time

import llama_cpp

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


def fill(batch, entries):
    """Puts (token, position, sequence, whether logits are wanted) into a llama_batch."""
    batch.n_tokens = len(entries)
    for index, (token, position, sequence, logits) in enumerate(entries):
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = logits


class Bench:
    """A model and a context that holds `batch` sequences of prompt + generate tokens."""

    def __init__(self, options):
        self.options = options
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(options.model.encode(), model_params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {options.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options.batch * (options.prompt + options.generate)
        params.n_seq_max = options.batch
        params.n_threads = params.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp cannot make a context of this size")
        self.chunk = params.n_batch
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(self.chunk, 0, 1)

    def decode(self, entries):
        fill(self.batch, entries)
        if status := llama_cpp.llama_decode(self.context, self.batch):
            sys.exit(f"llama_decode failed with {status}")

    def token(self, sequence, position):
        return (1009 * position + 101 * sequence + 17) % self.vocab

    def run(self, prompt_tokens, generated_tokens):
        """Seconds of prefill and of decode for so many tokens in each sequence."""
        sequences = range(self.options.batch)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        prompt = [
            (self.token(sequence, position), position, sequence, position == prompt_tokens - 1)
            for sequence in sequences
            for position in range(prompt_tokens)
        ]
        start = time.perf_counter()
        for begin in range(0, len(prompt), self.chunk):
            self.decode(prompt[begin : begin + self.chunk])
        llama_cpp.llama_synchronize(self.context)
        middle = time.perf_counter()
        for position in range(prompt_tokens, prompt_tokens + generated_tokens):
            self.decode([(self.token(sequence, position), position, sequence, True) for sequence in sequences])
            # Waits for the logits, as sampling would.
            llama_cpp.llama_get_logits_ith(self.context, self.options.batch - 1)
        return middle - start, time.perf_counter() - middle


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    for name in ("--threads", "--prompt", "--generate", "--batch"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    bench = Bench(options)
    bench.run(min(32, options.prompt), min(4, options.generate))  # pages the weights in
    prefill, decode = bench.run(options.prompt, options.generate)
    print(json.dumps({
        "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "system": llama_cpp.llama_print_system_info().decode().strip(" |"),
        "threads": options.threads, "prompt": options.prompt, "generate": options.generate, "batch": options.batch,
        "prefill_tokens_per_s": options.batch * options.prompt / prefill,
        "decode_tokens_per_s": options.batch * options.generate / decode,
    }))


if __name__ == "__main__":
    main()
