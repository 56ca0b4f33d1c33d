"""Rules of tools/tidy about rooms: who may include whom. The DEPS in src/CMakeLists.txt are the only source."""

import os
import re

import tidy_cpp
from tidy_text import Finding

ROOMS_FILE = "src/CMakeLists.txt"

# Each of these rooms may know those before it only; rooms that share a place do not know each other.
ORDER = (("base",), ("core",), ("exact",), ("backend",), ("kv", "weights"), ("model",))
# What some rooms must never reach, however long the way, and the one room that the ledger may know.
NEVER = {"verify": {"engine", "scheduler", "server"}}
ONLY = {"ledger": {"base"}}

# Headers of libraries, by how they begin, and the DEPS entry that provides them.
LIBRARY_HEADERS = {
    "openssl/": "OpenSSL::Crypto",
    "sqlite3": "SQLite::SQLite3",
    "libpq-fe.h": "PkgConfig::PQ",
    "pcre2": "PkgConfig::PCRE2",
    "cbor": "PkgConfig::CBOR",
    "nlohmann/": "nlohmann_json::nlohmann_json",
    "CLI/": "CLI11::CLI11",
    "httplib.h": "PkgConfig::HTTPLIB",
    "zlib.h": "ZLIB::ZLIB",
}

BACKENDS = "src/backend/"
ISA_FOLDERS = ("avx2", "avx512", "amx", "simd", "sha_ni")
# Of these, those with one operation that is no part of a table of kernels.
ONE_OPERATION = ("sha_ni",)
# A folder that replaces some kernels of another: it may include the other's headers, and has no file that it lacks.
EXTENDS = {"amx": "avx512"}
# What instruction sets share; like their own code it is in unnamed namespaces, so that each has a copy.
SHARED_ISA_CODE = "backend/simd/"
# A kernel's folder is compiled with its own flags. An inline function of any other header could be emitted there
# and then be linked into baseline code, so nothing but plain structs and intrinsics comes in.
PLAIN_HEADERS = {"exact/format.h", "exact/choice.h", "backend/ops.h", "backend/cpu_kernels.h", "backend/sha256_constants.h"}
# What a device's folder may see of the backend room: plain structs, the interface that it implements, and what
# every planner of attention must agree on.
INTERFACE_HEADERS = PLAIN_HEADERS | {"backend/backend.h", "backend/shared_preface.h"}
PLAIN_SYSTEM_HEADER = re.compile(r"^(\w*intrin\.h|cstdint|cstring|cstddef)$")
EXPORTED_NAME = re.compile(r"\bk\w*Kernels\b\s*(\{|=|$)")
HARMLESS_STATEMENT = re.compile(r"^(using\b|static_assert\b|namespace\b)")

# Rooms that tokens pass on their way: exact equality is the only test, and libm is not used.
TOKEN_PATH = ("exact", "backend", "tokenizer", "kv", "model", "sampler", "scheduler", "engine", "commit", "verify")
NUMERIC_PATH = ("exact", "backend", "kv", "model", "sampler", "verify")
LIBM = re.compile(
    r"\bstd::(exp2?|expm1|log(2|10|1p)?|pow|sinh?|cosh?|tanh?|asin|acos|atan2?|erfc?|tgamma|lgamma|cbrt|hypot)f?\s*\("
)


class Rooms:
    """The rooms of src/CMakeLists.txt: folder and direct DEPS of each, and TEST_DEPS of its tests."""

    def __init__(self, text):
        self.folder, self.deps, self.test_deps, self.line = {}, {}, {}, {}
        without_comments = re.sub(r"#[^\n]*", "", text)
        for match in re.finditer(r"\broom\(\s*(\w+)\s+DIR\s+(\S+)\s+DEPS\s+([^)]*)\)", without_comments):
            name, folder, rest = match.groups()
            self.folder[name] = "src/" + folder.rstrip("/") + "/"
            lists = dict(re.findall(r"\b(DEPS|TEST_DEPS|FLAGS)\s+((?:(?!\bTEST_DEPS\b|\bFLAGS\b).)*)", "DEPS " + rest, re.S))
            self.deps[name] = lists["DEPS"].split()
            self.test_deps[name] = lists.get("TEST_DEPS", "").split()
            self.line[name] = without_comments.count("\n", 0, match.start()) + 1

    def of_file(self, path):
        """The room of a path: the one with the longest folder that holds it, or None."""
        holding = [name for name, folder in self.folder.items() if path.startswith(folder)]
        return max(holding, key=lambda name: len(self.folder[name]), default=None)

    def reachable(self, name, for_tests=False):
        """Rooms and libraries that a room, or its tests, may include, itself among them."""
        seen, waiting = set(), [name] + (self.test_deps[name] if for_tests else [])
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen.add(current)
                waiting += self.deps.get(current, [])
        return seen


def check(rooms_text, sources):
    """All findings about rooms, for the sources by name."""
    rooms = Rooms(rooms_text)
    findings = check_graph(rooms)
    for source in sources.values():
        room = rooms.of_file(source.name)
        if source.name.startswith("src/") and room is None:
            findings.append(Finding(source.name, 1, f"this folder is no room of {ROOMS_FILE}"))
        if room is None:
            continue
        if source.name.startswith(BACKENDS) and source.name.split("/")[2] in ISA_FOLDERS and not source.is_test:
            findings += check_isa_includes(source)
            findings += check_isa_names(source)
        elif source.name[len("src/") :] in PLAIN_HEADERS:
            findings += check_isa_includes(source)
        else:
            findings += check_includes(rooms, room, source, sources)
        findings += check_exactness(room, source)
    findings += check_companions(sources)
    return findings + check_same_files(sources)


def check_graph(rooms):
    """The DEPS keep the order of the house."""
    findings = []
    place = {name: index for index, names in enumerate(ORDER) for name in names}
    for name, deps in rooms.deps.items():
        reach = rooms.reachable(name) - {name}

        def error(message, room=name):
            findings.append(Finding(ROOMS_FILE, rooms.line[room], message))

        for dep in deps:
            if "::" not in dep and dep not in rooms.deps:
                error(f"{name}: DEPS names '{dep}', which is neither a room nor a library target")
        for other in sorted(reach & rooms.deps.keys()):
            if name in place and other in place and place[other] >= place[name]:
                error(f"{name} must not know {other}: base < core < exact < backend < kv, weights < model")
            if name in rooms.reachable(other):
                error(f"{name} and {other} know each other")
            if other in NEVER.get(name, ()):
                error(f"{name} must never reach {other}")
            if name in ONLY and other not in ONLY[name]:
                error(f"{name} may know {', '.join(sorted(ONLY[name]))} alone, not {other}")
    return findings


def check_includes(rooms, room, source, sources):
    """Every include is of the room itself or of what its DEPS reach."""
    findings = []
    reach = rooms.reachable(room, source.is_test or source.name.endswith("_testing.h"))
    for line, is_system, header in source.includes:
        target = f"src/{header}"
        if is_system:
            library = next((lib for start, lib in LIBRARY_HEADERS.items() if header.startswith(start)), None)
            if library is not None and library not in reach:
                findings.append(Finding(source.name, line, f"<{header}> needs {library} in the DEPS of {room}"))
            elif target in sources:
                findings.append(Finding(source.name, line, f'write "{header}": the header is ours'))
            continue
        if target not in sources:
            findings.append(Finding(source.name, line, f'"{header}" is no file under src/'))
            continue
        other = rooms.of_file(target)
        plain = room.startswith("backend_") and header in INTERFACE_HEADERS
        if other not in reach and not plain:
            findings.append(Finding(source.name, line, f'{room} must not include "{header}": {other} is not in its DEPS'))
    return findings


def check_isa_includes(source):
    """Plain structs, intrinsics and headers of the same folder, or the one that it extends, only."""
    own = source.name[len("src/") :].rsplit("/", 1)[0] + "/"
    extended = [f"backend/{base}/" for folder, base in EXTENDS.items() if own == f"backend/{folder}/"]
    findings = []
    for line, is_system, header in source.includes:
        isa_code = header.startswith((SHARED_ISA_CODE, *extended)) or header.startswith(own) and own not in ("backend/", "exact/")
        allowed = PLAIN_SYSTEM_HEADER.match(header) if is_system else header in PLAIN_HEADERS or isa_code
        if not allowed:
            message = f"{header}: code with its own instruction set sees plain structs and intrinsics only"
            findings.append(Finding(source.name, line, message))
    return findings


def check_isa_names(source):
    """All but the kernel table is in an unnamed namespace, or in the one named after the folder."""
    scopes, statements = source.scopes_and_statements()
    folder = source.name.split("/")[2]
    message = f"neither in an unnamed namespace nor in {folder}: baseline code could be linked to this copy"
    findings = []
    for scope in scopes:
        if scope.kind in ("function", "type") and not {"", folder} & set(scope.namespaces):
            findings.append(Finding(source.name, scope.first_line, message))
    for line, text, namespaces in statements:
        exempt = HARMLESS_STATEMENT.match(text) or EXPORTED_NAME.search(text)
        if not {"", folder} & set(namespaces) and not exempt:
            findings.append(Finding(source.name, line, message))
    return findings


def check_exactness(room, source):
    """No tolerances where tokens pass, no libm where numbers are made."""
    family = room.split("_")[0]
    findings = []
    if family in TOKEN_PATH:
        for line, match in tidy_cpp.find_all(tidy_cpp.TOLERANCE, source):
            findings.append(Finding(source.name, line, f"{match}: results in the token path are equal or wrong"))
    if family in NUMERIC_PATH and not source.is_test:
        for line, match in tidy_cpp.find_all(LIBM, source):
            findings.append(Finding(source.name, line, f"{match.rstrip(' (')}: libm differs between machines"))
    return findings


def check_companions(sources):
    """x_test.cc, x_fuzz.cc and x_bench.cc sit beside x.h or x.cc, or above the folders that each have one.

    A test of one side of x may be called x_side_test.cc.
    """
    findings = []
    for source in sources.values():
        if not (source.is_test and source.name.startswith("src/")):
            continue
        folder, file = os.path.split(source.name)
        stem = re.sub(r"_(test|fuzz|bench)\.\w+$", "", file)
        near = (other for other in sources.values()
                if not other.is_test and folder in (os.path.dirname(other.name), os.path.dirname(os.path.dirname(other.name))))
        if not any((stem + "_").startswith(os.path.basename(other.name).split(".")[0] + "_") for other in near):
            findings.append(Finding(source.name, 1, f"no {stem}.h or .cc beside it", False))
    return findings


def check_same_files(sources):
    """Each backend has the kernel files of the scalar one, and a CPU's no others; headers are its own affair.

    A folder that extends another one has files of the same names, but only those whose kernels it replaces. One with a
    single operation is left alone.
    """
    names = {}
    for source in sources.values():
        if source.name.startswith(BACKENDS) and source.name.count("/") == 3 and not source.is_test:
            _, _, folder, name = source.name.split("/")
            if folder not in ONE_OPERATION and name.endswith((".cc", ".cu")):
                names.setdefault(folder, set()).add(name.split(".")[0] + ".cc")
    everywhere = set().union(*(present for folder, present in names.items() if folder != "cuda" and folder not in EXTENDS))
    # A device's operations are launched one by one, so that it has no table of kernels.
    wanted = {folder: everywhere - ({"kernels.cc"} if folder == "cuda" else set()) for folder in names if folder not in EXTENDS}
    return [
        Finding(f"{BACKENDS}{folder}", 1, f"has no {name}, other backends do")
        for folder in wanted
        for name in sorted(wanted[folder] - names[folder])
    ] + [
        Finding(f"{BACKENDS}{folder}", 1, f"has {name}, which {base} does not")
        for folder, base in EXTENDS.items()
        for name in sorted(names.get(folder, set()) - names.get(base, set()))
    ]
