"""Tests of tools/tidy: each rule finds what it is for, and leaves ordinary code alone."""

import os
import subprocess
import sys
import tempfile
import unittest

TOOLS = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, TOOLS)

import tidy_cpp
import tidy_rooms
import tidy_text

ROOMS = """# room(ghost DIR ghost DEPS base)
room(base DIR base DEPS OpenSSL::Crypto)
room(core DIR core DEPS base)
room(exact DIR exact DEPS base)
room(backend_scalar DIR backend/scalar DEPS exact FLAGS -O3)
room(backend_avx2 DIR backend/avx2 DEPS exact
     FLAGS -O3 -mavx2)
room(backend DIR backend DEPS core exact backend_scalar backend_avx2)
room(kv DIR kv DEPS core backend)
room(weights DIR weights DEPS core exact backend nlohmann_json::nlohmann_json)
room(model DIR model DEPS kv weights)
room(ledger DIR ledger DEPS base)
room(sampler DIR sampler DEPS core exact)
room(engine DIR engine DEPS model sampler ledger)
room(verify DIR verify DEPS model sampler ledger)
"""


def source(name, text):
    return tidy_cpp.Source(name, text)


def check_files(rooms=ROOMS, **files):
    """Findings about files given as path="text", with / written as __ and . as ___ (cc and h)."""
    sources = {}
    for key, text in files.items():
        name = key.replace("___", ".").replace("__", "/")
        sources[name] = source(name, text)
    return tidy_rooms.check(rooms, sources)


def messages(findings):
    return [finding.message for finding in findings]


class TextRules(unittest.TestCase):
    def assert_finds(self, text, part, name="src/base/a.cc"):
        findings = tidy_text.check_text(name, text)
        self.assertEqual(1, len(findings), findings)
        self.assertIn(part, findings[0].message)
        return findings[0]

    def test_clean_text_has_no_findings(self):
        self.assertEqual([], tidy_text.check_text("src/base/a.cc", "int a;\n\nint b;\n"))

    def test_blanks_and_tabs_are_found_on_their_line(self):
        self.assertEqual(2, self.assert_finds("a\nb \n", "trailing").line)
        self.assert_finds("a\tb\n", "tab")

    def test_makefiles_may_use_tabs_and_data_may_hold_anything(self):
        self.assertEqual([], tidy_text.check_text("Makefile", "a:\n\tb\n"))
        self.assertEqual([], tidy_text.check_text("vectors/tokens.txt", "a \t\n"))

    def test_unfinished_work_is_found(self):
        for word in ("TO" + "DO", "FIX" + "ME", "X" + "XX"):
            self.assert_finds(f"// {word}: later\n", word)

    def test_a_mktemp_template_is_not_unfinished_work(self):
        self.assertEqual([], tidy_text.check_text("tools/setup", "mktemp -d a.XX" + "XXXX\n"))

    def test_paths_of_one_machine_are_found(self):
        for path in ("/wo" + "rk/x", "/t" + "mp/w", "/ho" + "me/me"):
            self.assert_finds(f"see {path}\n", "absolute path")

    def test_relative_paths_and_cache_variables_are_not_machine_paths(self):
        self.assertEqual([], tidy_text.check_text("a.md", "src/work/x $HOME/work/y ~/home/z net/tmp/t\n"))

    def test_fast_math_is_found_and_its_opposite_is_not(self):
        self.assert_finds("target_compile_options(a PRIVATE -ffast-" + "math)\n", "numeric contract", "CMakeLists.txt")
        self.assertEqual([], tidy_text.check_text("CMakeLists.txt", "-fno-fast-math -ffp-contract=off\n"))

    def test_a_missing_last_newline_is_found(self):
        self.assert_finds("a", "newline")

    def test_long_files_warn_and_then_fail(self):
        self.assertEqual([], tidy_text.check_text("a.cc", "x\n" * 400))
        self.assertFalse(self.assert_finds("x\n" * 401, "file has 401 lines", "a.cc").is_error)
        self.assertTrue(self.assert_finds("x\n" * 501, "file has 501 lines", "a.cc").is_error)
        self.assertEqual([], tidy_text.check_text("README.md", "x\n" * 600))

    def test_large_files_fail(self):
        self.assertEqual([], tidy_text.check_size("a", 1 << 20))
        self.assertEqual(1, len(tidy_text.check_size("a", (1 << 20) + 1)))

    def test_long_python_functions_fail(self):
        body = "def f():\n" + "    x = 1\n" * 90
        self.assertIn("function f has 91 lines", messages(tidy_text.check_python("a.py", body))[0])
        self.assertEqual(1, len(tidy_text.check_python("a.py", "def f(:\n")))


class CppRules(unittest.TestCase):
    def test_a_header_begins_with_pragma_once(self):
        self.assertEqual([], tidy_cpp.check_source(source("a.h", "// About.\n#pragma once\nint f();\n")))
        self.assertEqual(1, len(tidy_cpp.check_source(source("a.h", "#include <a>\n#pragma once\n"))))

    def test_commented_out_code_is_found(self):
        for line in ("return x;", "foo(a, b);", "int x = 3;", "if (a) {", "}", "#include <a>", "x->y = z;",
                     "for (int i = 0; i < n; ++i)", "a.b[i] += c;"):
            found = tidy_cpp.check_source(source("a.cc", f"  // {line}\n"))
            self.assertEqual(1, len(found), line)

    def test_prose_and_documentation_are_not_commented_out_code(self):
        for line in ("// Two passes: digits first, then sums; see CANON.md.", "/// x = f(y);", "// n = rows (padded)",
                     "// holds if a == b;", "// The set {a, b} is closed.", 'auto url = "http://a/b = c;";'):
            self.assertEqual([], tidy_cpp.check_source(source("a.cc", line + "\n")), line)

    def assert_length(self, code, name, length):
        found = tidy_cpp.check_source(source("a.cc", code))
        self.assertEqual([f"function {name} has {length} lines; look for a better cut above 70 (limit 90)"],
                         messages(found))
        return found[0]

    def test_long_functions_warn_and_then_fail(self):
        self.assertEqual([], tidy_cpp.check_source(source("a.cc", "int f() {\n" + "g();\n" * 68 + "}\n")))
        self.assertFalse(self.assert_length("int f() {\n" + "g();\n" * 69 + "}\n", "f", 71).is_error)
        self.assertTrue(self.assert_length("int f() {\n" + "g();\n" * 89 + "}\n", "f", 91).is_error)

    def test_functions_are_measured_in_classes_and_namespaces_and_with_blocks(self):
        block = "if (a) {\n  for (;;) {\n b = [&] { return 1; };\n }\n}\n" * 20
        code = "namespace a::b {\nnamespace {\nclass C : public D {\n public:\n  template <typename T>\n" \
               "  auto run(const T& t) const -> int {\n" + block + "  }\n};\n}\n}\n"
        self.assert_length(code, "run", 103)

    def test_tables_and_types_are_not_functions(self):
        table = "constexpr int kTable[] = {\n" + "1,\n" * 100 + "};\n"
        fields = "struct S {\n" + "int a = f(1);\n" * 100 + "};\n"
        self.assertEqual([], tidy_cpp.check_source(source("a.cc", table + fields)))

    def test_braces_in_strings_and_comments_do_not_count(self):
        code = "int f() {\n  g(\"}{{\", '{', R\"x({{{)x\");  // an opening { only\n  /* { */ n = 1'000'000;\n}\n" + "int a;\n" * 100
        self.assertEqual([], tidy_cpp.check_source(source("a.cc", code)))

    def test_includes_in_comments_do_not_count(self):
        self.assertEqual([(2, False, "base/a.h")], source("a.cc", '// see\n#include "base/a.h"\n').includes)


class RoomRules(unittest.TestCase):
    def test_the_room_of_a_file_is_the_innermost(self):
        rooms = tidy_rooms.Rooms(ROOMS)
        self.assertEqual("backend_avx2", rooms.of_file("src/backend/avx2/linear.cc"))
        self.assertEqual("backend", rooms.of_file("src/backend/select.cc"))
        self.assertIsNone(rooms.of_file("src/ghost/a.cc"))
        self.assertNotIn("-mavx2", rooms.deps["backend_avx2"])

    def test_includes_along_the_deps_are_fine_also_at_a_distance(self):
        self.assertEqual([], check_files(
            src__base__a___h="#pragma once\n", src__kv__k___h='#include "base/a.h"\n',
            src__model__m___cc='#include <vector>\n#include "kv/k.h"\n#include "base/a.h"\n'))

    def test_an_include_against_the_deps_is_found(self):
        found = check_files(src__kv__k___h="", src__sampler__s___cc='\n#include "kv/k.h"\n')
        self.assertEqual(['sampler must not include "kv/k.h": kv is not in its DEPS'], messages(found))
        self.assertEqual(("src/sampler/s.cc", 2), found[0][:2])

    def test_an_unknown_header_and_a_folder_that_is_no_room_are_found(self):
        self.assertIn("is no file under src/", check_files(src__kv__k___cc='#include "kv/no.h"\n')[0].message)
        self.assertIn("is no room", check_files(src__ghost__k___cc="")[0].message)

    def test_a_library_needs_its_place_in_the_deps(self):
        use = "#include <nlohmann/json.hpp>\n"
        self.assertEqual([], check_files(src__weights__w___cc=use))
        self.assertIn("needs nlohmann_json", check_files(src__kv__k___cc=use)[0].message)

    def test_the_order_of_the_house_is_kept_by_the_deps(self):
        bad = {
            "room(core DIR core DEPS base)": ("room(core DIR core DEPS base kv)", "core must not know kv"),
            "room(kv DIR kv DEPS core backend)": ("room(kv DIR kv DEPS core backend weights)", "kv must not know weights"),
            "room(ledger DIR ledger DEPS base)": ("room(ledger DIR ledger DEPS core)", "ledger may know base alone"),
            "room(verify DIR verify DEPS model": ("room(verify DIR verify DEPS engine model", "verify must never reach engine"),
            "room(sampler DIR sampler DEPS core exact)": ("room(sampler DIR sampler DEPS corr)", "neither a room nor"),
        }
        self.assertEqual([], messages(check_files()))
        for old, (new, message) in bad.items():
            self.assertTrue(any(message in found for found in messages(check_files(ROOMS.replace(old, new)))), message)

    def test_rooms_that_know_each_other_are_found(self):
        rooms = ROOMS.replace("room(sampler DIR sampler DEPS core exact)", "room(sampler DIR sampler DEPS engine)")
        self.assertIn("engine and sampler know each other", messages(check_files(rooms)))

    def test_isa_code_sees_plain_structs_and_intrinsics_only(self):
        files = {"src__exact__format___h": "", "src__backend__ops___h": "", "src__exact__arith___h": "",
                 "src__backend__avx2__detail___h": "", "src__backend__scalar__l___cc": "", "src__backend__scalar__detail___h": ""}
        good = '#include <immintrin.h>\n#include <cstdint>\n#include "backend/ops.h"\n#include "exact/format.h"\n' \
               '#include "backend/avx2/detail.h"\n'
        self.assertEqual([], check_files(**files, src__backend__avx2__l___cc=good))
        for bad in ("<vector>", "<algorithm>", '"exact/arith.h"', '"backend/scalar/detail.h"'):
            found = check_files(**files, src__backend__avx2__l___cc=f"#include {bad}\n")
            self.assertEqual(1, len(found), bad)
            self.assertIn("plain structs", found[0].message)

    def test_plain_headers_stay_plain(self):
        self.assertIn("plain structs", check_files(src__backend__ops___h="#include <string>\n")[0].message)

    def test_isa_code_exports_its_kernel_table_only(self):
        frame = "namespace fieldprint::backend {{\nnamespace {{\nint helper(int a) {{ return a; }}\nconst int k = 1;\n}}\n" \
                "{}\n}}\nnamespace fieldprint::backend::avx2 {{\nvoid linear(int a);\nint own() {{ return 1; }}\n}}\n"
        files = {"src__backend__scalar__l___cc": ""}
        for good in ("const CpuKernels kAvx2Kernels = {\n  .linear = avx2::linear,\n};",
                     "extern const CpuKernels kAvx2Kernels;", "using A = int;", ""):
            self.assertEqual([], check_files(**files, src__backend__avx2__l___cc=frame.format(good)), good)
        for bad in ("int f() { return 1; }", "inline int f();", "struct S {\n int f() { return 1; }\n};", "const int k2 = 2;",
                    "namespace avx512 {\nint f() { return 1; }\n}"):
            found = check_files(**files, src__backend__avx2__l___cc=frame.format(bad))
            self.assertEqual(["neither in an unnamed namespace nor in avx2: baseline code could be linked to this copy"],
                             sorted(set(messages(found))), bad)

    def test_backends_have_the_same_files(self):
        found = check_files(src__backend__scalar__a___cc="", src__backend__scalar__b___cc="",
                            src__backend__avx2__a___cc="", src__backend__avx2__a_test___cc="")
        self.assertEqual([("src/backend/avx2", "has no b.cc, other backends do")],
                         [(finding.file, finding.message) for finding in found])

    def test_a_folder_with_one_operation_needs_no_others(self):
        self.assertEqual([], check_files(src__backend__scalar__a___cc="", src__backend__sha_ni__digest___cc=""))

    def test_an_instruction_set_that_extends_another_replaces_some_of_its_files(self):
        files = {"src__backend__scalar__a___cc": "", "src__backend__scalar__b___cc": "", "src__backend__avx512__a___cc": "",
                 "src__backend__avx512__a___h": "", "src__backend__avx512__b___cc": "", "src__backend__scalar__a___h": ""}
        self.assertEqual([], check_files(**files, src__backend__amx__a___cc='#include "backend/avx512/a.h"\n'))
        self.assertIn("plain structs", check_files(**files, src__backend__amx__a___cc='#include "backend/scalar/a.h"\n')[0].message)
        found = check_files(**files, src__backend__amx__c___cc="")
        self.assertEqual([("src/backend/amx", "has c.cc, which avx512 does not")],
                         [(finding.file, finding.message) for finding in found])

    def test_tolerances_and_libm_have_no_place_in_the_token_path(self):
        near = "TEST(A, B) { EXPECT_NEAR(a, b, 1e-3); }\n"
        self.assertIn("equal or wrong", check_files(src__model__m___h="", src__model__m_test___cc=near)[0].message)
        self.assertEqual([], check_files(src__ledger__m___h="", src__ledger__m_test___cc=near))
        self.assertIn("libm", check_files(src__sampler__s___cc="float f = std::exp(x);\n")[0].message)
        self.assertEqual([], check_files(src__sampler__s___cc="float f = std::fma(x, y, std::sqrt(z)); // std::exp(x)\n"))

    def test_a_test_sits_beside_what_it_tests(self):
        found = check_files(src__kv__pool_test___cc="")
        self.assertEqual(["no pool.h or .cc beside it"], messages(found))
        self.assertFalse(found[0].is_error)
        for near in ("src__kv__pool___h", "src__kv__inner__pool___cc", "src__kv__po___h"):
            found = check_files(**{near: ""}, src__kv__pool_test___cc="", src__kv__pool_crash_test___cc="")
            self.assertEqual(2 if near == "src__kv__po___h" else 0, len(found), near)


class Program(unittest.TestCase):
    def run_tidy(self, root):
        return subprocess.run([sys.executable, os.path.join(TOOLS, "tidy"), root], capture_output=True, text=True,
                              check=False)

    def test_prints_places_and_answers_with_its_exit_status(self):
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(os.path.join(root, "src", "base"))
            path = os.path.join(root, "src", "base", "a.cc")
            with open(path, "w", encoding="utf-8") as file:
                file.write("int a;\n")
            self.assertEqual((0, ""), (self.run_tidy(root).returncode, self.run_tidy(root).stdout))
            with open(path, "w", encoding="utf-8") as file:
                file.write("int a;\nint b; \n")
            result = self.run_tidy(root)
            self.assertEqual((1, "src/base/a.cc:2: trailing blanks\n"), (result.returncode, result.stdout))

    def test_this_tree_is_tidy(self):
        result = self.run_tidy(os.path.join(TOOLS, ".."))
        self.assertEqual(0, result.returncode, result.stdout)


if __name__ == "__main__":
    unittest.main()
