#!/usr/bin/env python3
"""Holds the source to what the plan of the house says; each check is a test of its own.

usage: lint.py CHECK --source DIR [--library libweft.a] [--cc CC] [--cxx CXX] [--nm NM] [--work DIR]

  layers    includes follow rooms.txt
  headers   each public header compiles alone, as C17 and as C++17; each internal one that has a guard as C17
  symbols   every global symbol of libweft.a begins with "weft", and none is called that rooms.txt keeps to one place
  sizes     no function over 80 lines and no file over 1,000, but with a line "lint: long because ..."
  words     nothing that sounds unfinished, and no path of the machine it was written on
  self      the checks above notice what they are for
"""
import argparse
import fnmatch
import os
import re
import subprocess
import sys
import tempfile

FUNCTION_LINES, FILE_LINES = 80, 1000
CODE = (".c", ".h", ".def", ".cu", ".cuh", ".cpp")
EXCUSE = re.compile(r"lint: long because \S+")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def files(source, folders, endings):
    for folder in folders:
        for where, names, inside in os.walk(os.path.join(source, folder)):
            names[:] = sorted(n for n in names if not n.startswith((".", "build", "__pycache__", "runs")))
            for name in sorted(inside):
                if name.endswith(endings):
                    yield os.path.relpath(os.path.join(where, name), source)


class Rooms:
    """The table: which room a file is in, and which rooms that one may look into."""

    def __init__(self, text):
        self.allowed, self.foreign, self.calls = {}, [], []
        for line in text.splitlines():
            line = line.split("#")[0].strip()
            if not line:
                continue
            left, right = line.split(":")
            kind, *names = left.split()
            if kind == "room":
                self.allowed[names[0]] = right.split()
            elif kind == "foreign":
                self.foreign.append((names[0], right.split()))
            elif kind == "call":
                self.calls.append((names, right.split()))
            else:
                raise ValueError(f"rooms.txt: {line}")
        for room, others in self.allowed.items():
            for other in others:
                if other not in self.allowed:
                    raise ValueError(f"rooms.txt: {room} names {other}, which is no room")

    def room_of(self, path):
        fits = [room for room in self.allowed if path == room or path.startswith(room + "/")]
        return max(fits, key=len) if fits else None

    def reach(self, room):
        """The rooms that one may include from, its own among them."""
        seen, waiting = set(), [room]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += self.allowed[one]
        return seen


def layers(rooms, source, paths):
    """Complaints about includes. A name is looked up beside the file, then in include/, src/ and tests/."""
    known = set(paths)
    for path in paths:
        room = rooms.room_of(path)
        if room is None:
            yield f"{path}: is in no room of rooms.txt"
            continue
        reach = rooms.reach(room)
        for number, line in enumerate(read(os.path.join(source, path)).splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            name = match.group(2)
            beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
            found = next((p for p in (beside, f"include/{name}", f"src/{name}", f"tests/{name}") if p in known), None)
            if found is None:
                if match.group(1) == '"':
                    yield f'{path}:{number}: "{name}" is nowhere in the tree'
                for pattern, places in rooms.foreign:
                    # A folder below a room counts with it: src/core/cpu/kernels is src/core/cpu.
                    if fnmatch.fnmatch(name, pattern) and not any(path.startswith(p + "/") for p in places):
                        yield f"{path}:{number}: <{name}> belongs to {', '.join(places)} only"
                continue
            other = rooms.room_of(found)
            if other not in reach:
                yield f"{path}:{number}: {room} may not include {found}, which is in {other or 'no room'}"


def headers(options):
    public = [p for p in files(options.source, ["include"], (".h",))]
    # A header without a guard is a template that its includers fill in; CUDA's need the toolkit.
    internal = [p for p in files(options.source, ["src"], (".h",)) if not p.startswith("src/cuda/") and
                "#ifndef WEFTI_" in read(os.path.join(options.source, p))]
    folders = ["-I", os.path.join(options.source, "include")]
    strict = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    runs = [(p, [options.cc, "-std=c17", "-pedantic", *strict, *folders, "-x", "c"]) for p in public]
    if options.cxx:
        runs += [(p, [options.cxx, "-std=c++17", "-pedantic", *strict, *folders, "-x", "c++"]) for p in public]
    else:
        print("no C++ compiler: the headers were not tried as C++17")
    folders = [*folders, "-I", os.path.join(options.source, "src")]
    runs += [(p, [options.cc, "-std=c17", "-D_GNU_SOURCE", "-DWEFTI_ISA=baseline", *strict, *folders, "-x", "c"])
             for p in internal]
    for path, command in runs:
        name = path.split("/", 1)[1]
        text = f'#include "{name}"\n#include "{name}"\ntypedef int something;\n'
        done = subprocess.run([*command, "-"], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{path} does not compile alone ({os.path.basename(command[0])} {command[1]}):\n{done.stderr}"


def symbols(options, rooms):
    lines = subprocess.run([options.nm, "-A", options.archive], capture_output=True, text=True, check=True).stdout
    sources = {}
    for path in files(options.source, ["src"], (".c",)):
        sources.setdefault(os.path.basename(path), []).append(path)
    count = 0
    for line in lines.splitlines():
        match = re.match(r".*:([^:]+)\.o:\s*[0-9a-f]*\s+(\S) (\S+)$", line)
        if not match:
            continue
        member, kind, name = match.groups()
        if kind.isupper() and kind != "U":
            count += 1
            if not name.startswith("weft"):
                yield f"{member}: the global symbol {name} does not begin with weft"
        if kind == "U":
            for names, places in rooms.calls:
                if name in names and not any(p in places for p in sources.get(member, [])):
                    where = f"only {', '.join(places)} may" if places else "the library may not"
                    yield f"{member}: calls {name}, which {where}"
    if count == 0:
        yield f"{options.archive} has no global symbols"


def functions(text):
    """(name, first line, last line, its text with two lines before) of each function: a definition begins at the first
    column, as does the brace that closes it."""
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines):
        if line == "}" and start is not None:
            name = re.search(r"([A-Za-z_]\w*(?:\([\w, ]*\))?)\s*\(|^Test\((.*?)\)", lines[start])
            yield name.group(0) if name else lines[start], start + 1, number + 1, lines[max(0, start - 2):number + 1]
            start = None
        elif re.match(r"[A-Za-z_].*\(", line) and not re.match(r"(typedef|struct|enum|union)\b.*[{;]$", line):
            start = number
        elif line.startswith("};") or (start is not None and line.endswith(";") and not line.startswith((" ", "\t"))):
            start = None


def sizes(source, paths):
    for path in paths:
        text = read(os.path.join(source, path))
        lines = text.count("\n")
        if lines > FILE_LINES and not EXCUSE.search(text):
            yield f"{path}: {lines} lines, more than {FILE_LINES}"
        for name, first, last, body in functions(text):
            if last - first + 1 > FUNCTION_LINES and not any(EXCUSE.search(line) for line in body):
                yield f"{path}:{first}: {name.rstrip('(').strip()} has {last - first + 1} lines, more than {FUNCTION_LINES}"


WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\b(for now|not implemented|placeholder)\b"
                   r"|(?<![\w.$}>/])/(?:home|work|farm|Users)/\w", re.IGNORECASE)


def words(source, paths):
    for path in paths:
        if path.startswith("tests/lint/"):
            continue
        for number, line in enumerate(read(os.path.join(source, path)).splitlines(), 1):
            match = WORDS.search(line)
            if match:
                yield f"{path}:{number}: {match.group(0)!r} in: {line.strip()}"


def check_self(rooms):
    """Each check on a small tree with one fault of each kind: a check that says nothing there is broken."""
    good = {"include/weft/a.h": "int weft_a(void);\n", "src/core/base/b.h": '#include "weft/a.h"\n#include <stdio.h>\n',
            "src/core/plan/p.c": '#include "core/base/b.h"\n#include "p.h"\n', "src/core/plan/p.h": "\n",
            "src/transport/t.h": "\n", "src/runtime.c": '#include "transport/t.h"\n#include "core/plan/p.h"\n',
            "tests/io/test_x.c": '#include "core/plan/p.h"\n'}
    faults = {"src/core/base/up.c": '#include "core/plan/p.h"\n', "src/io/side.c": '#include "transport/t.h"\n',
              "samples/inside.c": '#include "core/base/b.h"\n', "src/train/gone.c": '#include "train/nowhere.h"\n',
              "src/core/graph/z.c": "#include <zlib.h>\n", "include/weft/in.h": '#include "core/base/b.h"\n',
              "src/lost/l.c": "\n"}
    with tempfile.TemporaryDirectory() as tree:
        for path, text in {**good, **faults}.items():
            os.makedirs(os.path.dirname(os.path.join(tree, path)), exist_ok=True)
            with open(os.path.join(tree, path), "w", encoding="utf-8") as file:
                file.write(text)
        said = list(layers(rooms, tree, sorted({**good, **faults})))
        for path in faults:
            if not any(line.startswith(path + ":") for line in said):
                yield f"layers did not notice {path}"
        for line in said:
            if line.split(":")[0] in good:
                yield f"layers complained about what is right: {line}"
        long = "static int f(int a,\n             int b) {\n" + "    a += b;\n" * 79 + "}\n"
        cases = {"long.c": (long, 1), "short.c": (long.replace("    a += b;\n", "", 2), 0),
                 "excused.c": ("/* lint: long because it is a table. */\n" + long, 0),
                 "two.c": ("int g(void) {\n}\n" * 50, 0), "file.c": ("\n" * 1001, 1)}
        for name, (text, expected) in cases.items():
            with open(os.path.join(tree, name), "w", encoding="utf-8") as file:
                file.write(text)
            if len(list(sizes(tree, [name]))) != expected:
                yield f"sizes is wrong about {name}: {list(sizes(tree, [name]))}"
        bad = ["/* TODO: more */", "x = 1; // for now", 'open("/home/me/x")']
        with open(os.path.join(tree, "words.c"), "w", encoding="utf-8") as file:
            file.write("\n".join([*bad, "$HOME/home/x", "network/home/y"]))
        if len(list(words(tree, ["words.c"]))) != len(bad):
            yield f"words is wrong: {list(words(tree, ['words.c']))}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["layers", "headers", "symbols", "sizes", "words", "self"])
    parser.add_argument("--source", required=True)
    parser.add_argument("--library", dest="archive")
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--cxx", default="")
    parser.add_argument("--nm", default="nm")
    options = parser.parse_args()
    rooms = Rooms(read(os.path.join(os.path.dirname(os.path.abspath(__file__)), "rooms.txt")))
    code = list(files(options.source, ["include", "src", "tools", "samples", "bench", "tests"], CODE))
    everything = ["include", "src", "tools", "samples", "bench", "tests", "scripts", "cmake"]
    text = list(files(options.source, everything, (*CODE, ".sh", ".py", ".txt", ".cmake", ".in", ".md")))
    text += [name for name in sorted(os.listdir(options.source)) if name.endswith((".md", ".txt", ".json"))]
    complaints = list({"layers": lambda: layers(rooms, options.source, code),
                       "headers": lambda: headers(options),
                       "symbols": lambda: symbols(options, rooms),
                       "sizes": lambda: sizes(options.source, code),
                       "words": lambda: words(options.source, text),
                       "self": lambda: check_self(rooms)}[options.check]())
    print("\n".join(complaints) or f"{options.check}: nothing to complain about")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
