"""Compares our most likely next tokens with llama.cpp's, and gives llama.cpp's perplexity on the same windows.

usage: llama_cpp_agreement.py MODEL.gguf TOP1 --threads T [--windows N]

TOP1 is what `fieldprint eval perplexity --dump-top1 TOP1` writes: a line "token top1" for each position, an empty line
after each window. Prints one JSON object. The protocol is fieldprint's: every token of a window after its first is
predicted and counts. llama.cpp runs with its default arithmetic on the CPU and a KV cache of --cache-type (f16 or f32).
"""

import argparse
import ctypes
import json
import sys

import llama_cpp
import numpy

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
CACHE_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}
CHUNK = 64  # positions evaluated at once, so that their logits stay small


def read_windows(path):
    """[(tokens, top1)] of a file of lines "token top1" with an empty line after each window."""
    windows, tokens, top1 = [], [], []
    with open(path, encoding="ascii") as file:
        for line in file:
            if line.strip():
                token, top = line.split()
                tokens.append(int(token))
                top1.append(int(top))
            elif tokens:
                windows.append((tokens, top1))
                tokens, top1 = [], []
    if tokens:
        windows.append((tokens, top1))
    return windows


class Peer:
    """A model and a context of llama.cpp for windows of at most `length` tokens."""

    def __init__(self, options, length):
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(options.model.encode(), model_params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {options.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = length
        params.n_batch = params.n_ubatch = CHUNK
        params.type_k = params.type_v = CACHE_TYPES[options.cache_type]
        params.n_threads = params.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp cannot make a context of this size")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def start_window(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def logits(self, tokens, position):
        """Logits [len(tokens)][vocab] of tokens that begin at `position`, as binary64."""
        self.batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            self.batch.token[index] = token
            self.batch.pos[index] = position + index
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = 0
            self.batch.logits[index] = True
        if status := llama_cpp.llama_decode(self.context, self.batch):
            sys.exit(f"llama_decode failed with {status}")
        pointer = llama_cpp.llama_get_logits(self.context)
        rows = numpy.ctypeslib.as_array(pointer, shape=(len(tokens), self.vocab))
        return rows.astype(numpy.float64)


def compare_window(peer, tokens, top1):
    """(loss summed over predicted tokens, positions of agreement among them) of one window."""
    loss, agreements = 0.0, 0
    peer.start_window()
    for begin in range(0, len(tokens), CHUNK):
        end = min(begin + CHUNK, len(tokens))
        rows = peer.logits(tokens[begin:end], begin)
        # The last position of a window predicts a token that is not there.
        count = min(end, len(tokens) - 1) - begin
        if count < 1:
            break
        rows = rows[:count]
        maxima = rows.max(axis=1)
        sums = numpy.exp(rows - maxima[:, None]).sum(axis=1)
        following = rows[numpy.arange(count), tokens[begin + 1 : begin + 1 + count]]
        loss += float((numpy.log(sums) + maxima - following).sum())
        agreements += int((rows.argmax(axis=1) == numpy.array(top1[begin : begin + count])).sum())
    return loss, agreements


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model")
    parser.add_argument("top1")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--windows", type=int, help="use the first so many windows")
    parser.add_argument("--cache-type", choices=sorted(CACHE_TYPES), default="f16")
    options = parser.parse_args()
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    windows = read_windows(options.top1)[: options.windows]
    if not any(len(tokens) > 1 for tokens, _ in windows):
        sys.exit(f"{options.top1} holds no window of two tokens or more")
    peer = Peer(options, max(len(tokens) for tokens, _ in windows))
    loss, agreements, predicted = 0.0, 0, 0
    for number, (tokens, top1) in enumerate(windows, 1):
        window_loss, window_agreements = compare_window(peer, tokens, top1)
        loss += window_loss
        agreements += window_agreements
        predicted += len(tokens) - 1
        print(f"window {number} of {len(windows)}", file=sys.stderr)
    print(json.dumps({
        "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "system": llama_cpp.llama_print_system_info().decode().strip(" |"),
        "cache_type": options.cache_type, "windows": len(windows), "tokens": predicted,
        "perplexity": float(numpy.exp(loss / predicted)), "top1_agreement": agreements / predicted,
    }))


if __name__ == "__main__":
    main()
