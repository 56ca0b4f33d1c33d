#!/usr/bin/env python3
"""Writes what another library's tokenizers make of a fixed set of strings, for the tokenizer room's reference test.

    pip install tokenizers==0.23.3              (--engine tokenizers, the default; seconds)
    pip install llama-cpp-python==0.3.36        (--engine llama.cpp; built from source in about 10 minutes)
    tools/reference_tokens.py -o reference.txt smollm2=SmolLM2.gguf gemma3=gemma3.gguf
    FIELDPRINT_TOKEN_REFERENCE=reference.txt FIELDPRINT_SMOLLM2_GGUF=... FIELDPRINT_GEMMA3_GGUF=... build/src/tokenizer_test

The output has one section per model: a line "model NAME", then a line per string: its bytes in hexadecimal, a tab,
the ids without BOS and with the texts of control tokens read as text. --strings FILE takes other strings, one a line in
hexadecimal. Strings for which the engine's answer is not the test's get no ids ("-"): with both engines those that are
not UTF-8; with tokenizers those that hold a byte for which a byte-level vocabulary has no token; with llama.cpp those
that hold "</s>", which it takes for a control token in every vocabulary.
"""
import argparse
import random
import sys
import unicodedata

sys.dont_write_bytecode = True

HAND_PICKED = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n\n", "\t", "\t\t\t", " \n ", "\r\n\r\n", "a", " a", "a ", "  a  b   c    d",
    "Hello, world!", "Hello  world", "I'm you're HE'S they'LL we'd've 'tis", "it''s 's 't", "don\u2019t",
    "x = 3.14159; y += 0x1F;\n\tif (x > y) {\n\t\treturn -1;\n\t}\n",
    "def f(a, b):\n    return a ** b  # power\n\n\nclass C:\n    pass\n",
    "<h1>Title</h1>\n<ul>\n  <li>one</li>\n</ul>", "> </", "a > </b>", "https://example.org/a?b=c&d=%20#e",
    "1234567890", "1 12 123 1234 12345", "3,141.59 \u00bd \u2167 \u0664\u0662 \u4e09 \u2460",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "e\u0301 n\u0303 a\u0308\u0304", "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319", "\U0001f600\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd", "a\u00a0b\u2003c\u3000d\u180ee\u200bf\u2028g\u2029h\u0085i", "\ufeffbom", "\x00", "a\x00b", "\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x1b\x7f",
    "<|im_start|>system\nyou<|im_end|>", "<start_of_turn>user\nhi<end_of_turn>\n", "<bos><eos><unk><pad>", "<0x0A><0xFF>", "<unused7>",
    "[multimodal]", "\u2581", "\u2581\u2581a", "a\u2581b", "\ufffd", "\U0010ffff", "\ue000", "\ud7ff", "\u0130\u0131\u017f\u212a",
    " " * 31, " " * 32, " " * 33, " " * 1000 + "x", "\n" * 31, "\n" * 32, "\n" * 100, "\t" * 40, "a" * 1000, "ab" * 500, "\u4e00" * 300,
    "-" * 200, "=" * 79 + "\n", "0" * 100, "antidisestablishmentarianism" * 8, "\r" * 5, "\n\r\n\r", " \t \t \t", "</s><s>",
]

WORDS = ("the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what there "
         "we can out other were all your when up use word how said an each she which do their time if will way about many then "
         "them would write like so these her long make thing see him two has look more day could go come did my sound no most "
         "number who over know water than call first people may down side been now find token cache kernel transformer attention "
         "Zurich Reykjavik O'Brien naive co-operate vis-a-vis e.g. i.e. U.S.A. Dr. Ph.D. 2nd 10th 42 1999 3.14 $5.00 100% "
         "self.x foo_bar fooBar FOO_BAR std::vector<int> a[i] != && || -> => == ++i /* */ // # @ <br> </div> {} [] () ; : , . ! ? "
         "\u00fcber na\u00efve fa\u00e7ade \u0141\u00f3d\u017a \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u05e9\u05dc\u05d5\u05dd").split()

RANGES = {
    "latin": [(0x20, 0x7e), (0xa1, 0x17f)], "arabic": [(0x600, 0x6ff), (0x20, 0x20)], "cjk": [(0x4e00, 0x9fff), (0x3000, 0x30ff)],
    "hangul": [(0xac00, 0xd7a3), (0x20, 0x20)], "indic": [(0x900, 0xdff), (0x20, 0x20)], "thai": [(0xe00, 0xeff)],
    "marks": [(0x300, 0x36f), (0x61, 0x7a)], "emoji": [(0x1f300, 0x1faff), (0x2600, 0x27bf), (0x200d, 0x200d), (0xfe0f, 0xfe0f)],
    "space": [(0x9, 0xd), (0x20, 0x20), (0x2000, 0x200f), (0x85, 0x85), (0xa0, 0xa0), (0x3000, 0x3000), (0x61, 0x62)],
    "control": [(0x0, 0x1f), (0x7f, 0x9f), (0x61, 0x63)], "digits": [(0x30, 0x39), (0x30, 0x39), (0x660, 0x669), (0x2150, 0x218b), (0x20, 0x20)],
    "symbols": [(0x21, 0x2f), (0x3a, 0x40), (0x2190, 0x22ff), (0x20, 0x20)], "any": [(0x0, 0xd7ff), (0xe000, 0xffff), (0x10000, 0x2ffff)],
}


def assigned(code):
    # Later versions of Unicode give properties to characters that older tables hold for unassigned.
    return unicodedata.category(chr(code)) != "Cn"


def characters(rng, kind, count):
    out = []
    while len(out) < count:
        low, high = rng.choice(RANGES[kind])
        code = rng.randint(low, high)
        if assigned(code):
            out.append(chr(code))
    return "".join(out)


def prose(rng):
    out = []
    for _ in range(rng.randint(1, 40)):
        out.append(rng.choice(WORDS))
        out.append(rng.choice([" "] * 20 + ["  ", "\n", "\n\n", "\t", ", ", ". ", "", "\r\n", "    ", "\n    "]))
    return "".join(out)


def mixed(rng):
    parts = []
    for _ in range(rng.randint(2, 8)):
        parts.append(prose(rng)[:40] if rng.random() < 0.4 else characters(rng, rng.choice(list(RANGES)), rng.randint(1, 8)))
        if rng.random() < 0.2:
            parts.append(rng.choice([" ", "\n", "\t", "<h1>", "0", "-"]) * rng.randint(1, 70))
    return "".join(parts)


def broken(rng):
    text = bytearray(mixed(rng).encode())
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(text))
        if rng.random() < 0.5:
            text[at:at] = bytes(rng.randint(0x80, 0xff) for _ in range(rng.randint(1, 3)))
        else:
            del text[at:at + 1]
    return bytes(text)


def strings(seed):
    rng = random.Random(seed)
    out = [text.encode() for text in HAND_PICKED]
    for kind in RANGES:
        out += [characters(rng, kind, rng.randint(1, 60)).encode() for _ in range(400)]
    out += [prose(rng).encode() for _ in range(3000)]
    out += [mixed(rng).encode() for _ in range(3000)]
    out += [broken(rng) for _ in range(2000)]
    return out


class LlamaCppEngine:
    """Ids by llama.cpp."""

    def __init__(self, path):
        from llama_cpp import Llama  # here, so that the other engine and --help work without it

        self.model = Llama(path, vocab_only=True, verbose=False)

    def ids(self, text):
        """The ids of a bytes object of UTF-8; None where the answer is not comparable."""
        return None if b"</s>" in text else self.model.tokenize(text, add_bos=False, special=False)


def open_engine(name, path):
    if name == "llama.cpp":
        return LlamaCppEngine(path)
    from reference_gguf import TokenizersEngine  # here, so that the other engine and --help work without the wheel

    return TokenizersEngine(path)


def ids(engine, text):
    try:
        text.decode()
    except UnicodeDecodeError:
        return None
    return engine.ids(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE.gguf")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--engine", choices=["tokenizers", "llama.cpp"], default="tokenizers")
    parser.add_argument("--strings", help="strings to use, one a line in hexadecimal")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how many strings got ids")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    if args.strings:
        with open(args.strings, encoding="ascii") as file:
            texts = [bytes.fromhex(line) for line in file]
    else:
        texts = strings(args.seed)
    with open(args.output, "w", encoding="ascii") as out:
        for entry in args.models:
            name, _, path = entry.partition("=")
            if not path:
                parser.error(f"{entry!r} is not NAME=FILE.gguf")
            engine = open_engine(args.engine, path)
            compared = 0
            print(f"model {name}", file=out)
            for text in texts:
                found = ids(engine, text)
                compared += found is not None
                print(f"{text.hex()}\t{'-' if found is None else ' '.join(map(str, found))}", file=out)
            if args.verbose:
                print(f"{name}: {len(texts)} strings, {compared} with ids", file=sys.stderr)


if __name__ == "__main__":
    main()
