"""Rules of tools/tidy that hold for every text file, and for Python."""

import ast
import re
from typing import NamedTuple

MAX_FILE_BYTES = 1 << 20
MAX_LINES, WARN_LINES = 500, 400
MAX_FUNCTION_LINES, WARN_FUNCTION_LINES = 90, 70

# Files whose length is not ours to choose.
UNLIMITED_LENGTH = re.compile(r"(^LICENSE$|\.(md|txt|json|jsonl|csv|tsv)$|^vectors/)")
TAB_INDENTED = re.compile(r"(^|/)(Makefile|.*\.mk|.*\.go)$")
# Golden data and example input are bytes, not prose.
RAW_TEXT = re.compile(r"(^vectors/.*\.(txt|json|jsonl)$|\.(jsonl|csv|tsv)$)")
CODE_FILE = re.compile(r"(\.(h|cc|cu|cuh|py|cmake|sh)$|(^|/)(CMakeLists\.txt|Makefile)$|^tools/[a-z_]+$|^\.ci/)")

# Written in halves, so that this file passes its own check.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(home|ro" r"ot|wo" r"rk|Users|t" r"mp)/\w")
DENIED_WORD = re.compile(r"\bsub-?age" r"nts?\b", re.IGNORECASE)
FAST_MATH = re.compile(r"-(ffast-m" r"ath|Of" r"ast|funsafe-m" r"ath\S*|ffp-contract=(on|f" r"ast)|march=nat" r"ive)")


class Finding(NamedTuple):
    """Something that breaks a rule. Sorts by place."""

    file: str
    line: int
    message: str
    is_error: bool = True


def check_size(name, size):
    """Committed files stay small: weights and corpora are fetched, results are summaries."""
    if size > MAX_FILE_BYTES:
        return [Finding(name, 1, f"{size} bytes; a committed file has at most {MAX_FILE_BYTES}")]
    return []


def check_length(name, line, what, length, warn, limit):
    """A finding if something is longer than it should be, an error if longer than it may be."""
    if length <= warn:
        return []
    return [Finding(name, line, f"{what} has {length} lines; look for a better cut above {warn} (limit {limit})",
                    length > limit)]


def check_text(name, text):
    """Blanks, tabs, unfinished work, paths of one machine, forbidden flags, length."""
    findings = []

    def error(line, message):
        findings.append(Finding(name, line, message))

    raw = RAW_TEXT.search(name)
    for number, line in enumerate(text.split("\n"), 1):
        if not raw and line != line.rstrip():
            error(number, "trailing blanks")
        if not raw and "\t" in line and not TAB_INDENTED.search(name):
            error(number, "tab; indent with spaces")
        if match := UNFINISHED.search(line):
            error(number, f"'{match.group()}': finish it, or describe it where the work is planned")
        if match := MACHINE_PATH.search(line):
            error(number, f"absolute path '{match.group()}...' of one machine")
        if match := DENIED_WORD.search(line):
            error(number, f"'{match.group()}': say agent or trajectory")
        if CODE_FILE.search(name) and (match := FAST_MATH.search(line)):
            error(number, f"'{match.group()}' breaks the numeric contract")
    if text and not text.endswith("\n"):
        error(text.count("\n") + 1, "no newline at the end of the file")
    if not UNLIMITED_LENGTH.search(name):
        findings += check_length(name, 1, "file", text.count("\n"), WARN_LINES, MAX_LINES)
    return findings


def check_python(name, text):
    """Python parses, and its functions are short."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [Finding(name, error.lineno or 1, f"Python: {error.msg}")]
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            findings += check_length(name, node.lineno, f"function {node.name}", length, WARN_FUNCTION_LINES,
                                     MAX_FUNCTION_LINES)
    return findings
