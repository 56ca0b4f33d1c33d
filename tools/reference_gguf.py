"""Hugging Face tokenizers made of the vocabulary in a GGUF file, for tools/reference_tokens.py.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""
import struct

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

# struct formats of the scalar types, by type number; 8 is a string and 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
NORMAL, USER_DEFINED = 1, 4  # tokenizer.ggml.token_type


def read_string(file):
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode()


def read_value(file, kind):
    if kind == 8:
        return read_string(file)
    if kind == 9:
        element, count = struct.unpack("<IQ", file.read(12))
        if element in SCALARS:
            layout = f"<{count}{SCALARS[element]}"
            return struct.unpack(layout, file.read(struct.calcsize(layout)))
        return [read_value(file, element) for _ in range(count)]
    layout = "<" + SCALARS[kind]
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def read_keys(path):
    """The metadata of a GGUF file, by key."""
    with open(path, "rb") as file:
        magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{path} is not a GGUF file of version 3")
        keys = {}
        for _ in range(count):
            key = read_string(file)
            (kind,) = struct.unpack("<I", file.read(4))
            keys[key] = read_value(file, kind)
        return keys


def byte_level(keys):
    """SmolLM2's tokenizer.json: digits stand alone, then GPT-2's words, merged as bytes."""
    vocabulary = {token: number for number, token in enumerate(keys["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    out = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return out


def merges_of(tokens, scores, mergeable):
    """All pairs of tokens that together are a token, the result with the higher score first.

    Of equal results the pair whose left part has the higher score comes first, as in transformers' conversion.
    """
    ranked = []
    for number in mergeable.values():
        token = tokens[number]
        for cut in range(1, len(token)):
            left, right = mergeable.get(token[:cut]), mergeable.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[number], left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, left, right in ranked]


def sentencepiece(keys):
    """Gemma's tokenizer.json: merges follow from the scores, and what has no token is spelled in bytes."""
    tokens = keys["tokenizer.ggml.tokens"]
    types = keys["tokenizer.ggml.token_type"]
    mergeable = {token: number for number, token in enumerate(tokens) if types[number] in (NORMAL, USER_DEFINED)}
    out = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=merges_of(tokens, keys["tokenizer.ggml.scores"], mergeable),
            unk_token=tokens[keys["tokenizer.ggml.unknown_token_id"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    out.normalizer = normalizers.Replace(" ", "\u2581")
    # They are cut out of the text before anything else.
    out.add_tokens(
        [AddedToken(token, normalized=False) for number, token in enumerate(tokens) if types[number] == USER_DEFINED]
    )
    return out


class TokenizersEngine:
    """Ids by Hugging Face's tokenizers."""

    def __init__(self, path):
        keys = read_keys(path)
        self.absent = frozenset()
        if keys["tokenizer.ggml.model"] == "llama":
            self.tokenizer = sentencepiece(keys)
        elif keys.get("tokenizer.ggml.pre") == "smollm":
            self.tokenizer = byte_level(keys)
            # Where a byte has no token, this library drops it before it merges and llama.cpp after, so that its
            # neighbours may meet or not.
            alphabet = {token for token in keys["tokenizer.ggml.tokens"] if len(token) == 1}
            self.absent = set(pre_tokenizers.ByteLevel.alphabet()) - alphabet
        else:
            raise ValueError(f"{path}: the pre-tokenizer is {keys.get('tokenizer.ggml.pre')!r}; 'smollm' is known")
        self.spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str

    def ids(self, text):
        """The ids of a bytes object of UTF-8; None where the answer is not comparable."""
        text = text.decode()
        if self.absent and any(self.absent.intersection(word) for word, _ in self.spell(text)):
            return None
        return self.tokenizer.encode(text, add_special_tokens=False).ids
