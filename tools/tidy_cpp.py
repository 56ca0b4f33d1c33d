"""Rules of tools/tidy for C++ files: a small lexer, the shape of scopes, and what follows from them."""

import re

from tidy_text import MAX_FUNCTION_LINES, WARN_FUNCTION_LINES, Finding, check_length

CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")

# One alternative each: comment to the end of the line, block comment, raw string, string, character (a quote
# between digits separates them).
LEXEME = re.compile(
    r'//[^\n]*|/\*.*?\*/|\bu?8?R"(?P<tag>[^()\\\s]*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.MULTILINE)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
STATEMENT = re.compile(
    r"^(return\b.*;|(if|for|while|switch) \(.*[{;)]|\}.*|.*\{|#\s*(include|define|if|endif)\b.*"
    r"|[\w:.>*&\[\]-]+(<.*>)?( [\w:.>*&\[\]-]+)* ?[-+*/|&^]?=[^=].*;|[\w:.>-]+\(.*\);)$"
)
TOLERANCE = re.compile(r"\b(?:EXPECT|ASSERT)_(?:NEAR|FLOAT_EQ|DOUBLE_EQ)\b")
NAMESPACE = re.compile(r"\bnamespace\b\s*([\w:]*)|\bextern\s*\"\"")
ACCESS = re.compile(r"\b(?:public|private|protected)\s*:(?!:)")
SCOPE_TOKEN = re.compile(ACCESS.pattern + r"|\n|[{};]|(?:(?!" + ACCESS.pattern + r")[^\n{};])+")
TYPE_HEAD = re.compile(r"\b(class|struct|union|enum)\b")


def is_cpp(name):
    """Whether this is a file of ours in C++ or CUDA."""
    return name.endswith(CPP_SUFFIXES)


def _blank(match):
    """Strings become empty strings, comments vanish; line numbers and columns stay."""
    text = match.group()
    if text.startswith("/"):
        return re.sub(r"[^\n]", " ", text)
    quote = text[-1]
    return quote + quote + re.sub(r"[^\n]", " ", text[2:])


class Scope:
    """A pair of braces: kind is namespace, type, function or other (initialisers, blocks)."""

    def __init__(self, kind, head, first_line, namespaces):
        self.kind = kind
        self.head = head
        self.first_line = first_line
        self.last_line = first_line
        self.namespaces = namespaces  # names from the outermost in; "" is an unnamed one


class Source:
    """One file: its text, its code without comments and string contents, its includes and comments."""

    def __init__(self, name, text):
        self.name = name
        self.text = text
        self.code = LEXEME.sub(_blank, text)
        self.includes = [
            (text.count("\n", 0, match.start()) + 1, match.group(1) == "<", match.group(2))
            for match in INCLUDE.finditer(text)
        ]
        self.is_test = bool(re.search(r"_(test|fuzz|bench)\.\w+$", name))

    def line_comments(self):
        """(line, text after //) of plain comments; /// and //! are documentation and may show code."""
        for match in LEXEME.finditer(self.text):
            comment = match.group()
            if comment.startswith("//") and not comment.startswith(("///", "//!")):
                yield self.text.count("\n", 0, match.start()) + 1, comment[2:].strip()

    def scopes_and_statements(self):
        """Two lists: every Scope, and (line, text, namespaces) of what stands in a namespace and ends in ';'."""
        code = DIRECTIVE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), self.code)
        scopes, statements, stack = [], [], []
        line, head_line, head = 1, 1, ""
        for token in SCOPE_TOKEN.findall(code):
            if token == "\n":
                line += 1
                head += " "
                continue
            if token == "{":
                scope = _open_scope(head.strip(), head_line, stack)
                scopes.append(scope)
                stack.append(scope)
            elif token == "}" and stack:
                stack.pop().last_line = line
            elif token == ";" and head.strip() and all(scope.kind == "namespace" for scope in stack):
                statements.append((head_line, head.strip(), stack[-1].namespaces if stack else ()))
            if token in "{};" or ACCESS.fullmatch(token):
                head = ""
                continue
            if not head.strip():
                head_line = line
            head += token
        return scopes, statements


def _open_scope(head, line, stack):
    parent = stack[-1] if stack else None
    namespaces = parent.namespaces if parent else ()
    if parent is not None and parent.kind in ("function", "other"):
        return Scope("other", head, line, namespaces)
    if match := NAMESPACE.search(head):
        names = () if match.group(1) is None else tuple(match.group(1).split("::"))
        return Scope("namespace", head, line, namespaces + names)
    before_call = head.split("(", 1)[0]
    if TYPE_HEAD.search(re.sub(r"template\s*<[^{]*?>", "", before_call)) and "(" not in head:
        return Scope("type", head, line, namespaces)
    if "(" in head and not re.search(r"(?<!operator)(?<![=!<>])=(?!=)", before_call.replace("operator=", "")):
        return Scope("function", head, line, namespaces)
    return Scope("other", head, line, namespaces)


def function_name(head):
    """The name before the first parenthesis, for messages; a test's name is its arguments."""
    if match := re.match(r"(?:TYPED_)?TEST(?:_[FP])?\s*\(\s*([^)]*)\)", head):
        return match.group(1)
    match = re.search(r"([\w:~]+|operator\s*\S+?)\s*\(", head)
    return match.group(1) if match else "?"


def check_source(source):
    """Header guard, commented-out code, length of functions."""
    findings = []
    if source.name.endswith((".h", ".cuh")):
        first = source.code.strip().split("\n", 1)[0].strip()
        if first != "#pragma once":
            findings.append(Finding(source.name, 1, "a header begins with #pragma once"))
    for line, comment in source.line_comments():
        if STATEMENT.match(comment):
            findings.append(Finding(source.name, line, "commented-out code; remove it or say it in words"))
    scopes, _ = source.scopes_and_statements()
    for scope in scopes:
        if scope.kind == "function":
            findings += check_length(source.name, scope.first_line, f"function {function_name(scope.head)}",
                                     scope.last_line - scope.first_line + 1, WARN_FUNCTION_LINES, MAX_FUNCTION_LINES)
    return findings


def find_all(pattern, source):
    """(line, matched text) of a pattern in the code, comments and strings left out."""
    for match in pattern.finditer(source.code):
        yield source.code.count("\n", 0, match.start()) + 1, match.group()
