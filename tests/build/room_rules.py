"""The rules of the rooms, as functions of sources: file (from the root of the repository) -> its text.

Each returns what breaks it as lines ``file:line: rule what``. Files of ``templates/`` are scripts that run
alone, outside the package, and no rule is about them.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("stl_deploy", "exporters", "hw_sim", "models")
MOST_LINES = 600

# Number of a room; one with several entries is named by its folder.
ROOMS = {
    "stl_deploy/checkout.py": 0,
    "stl_deploy/errors.py": 0,
    "stl_deploy/files.py": 0,
    "stl_deploy/spread.py": 0,
    "stl_deploy/version.py": 0,
    "stl_deploy/ir": 1,
    "stl_deploy/chips": 2,
    "stl_deploy/formats": 3,
    "hw_sim": 3,
    "stl_deploy/report": 3,
    "stl_deploy/importers": 4,
    "stl_deploy/lower": 4,
    "stl_deploy/data": 4,
    "exporters": 4,
    "stl_deploy/backends": 5,
    "models": 5,
    "stl_deploy/verify": 6,
    "stl_deploy/commands": 8,
    "stl_deploy/__init__.py": 9,
    "stl_deploy/pytest_plugin.py": 9,
}
# Entry points: `python -m stl_deploy.hw_sim` is the command of the same name.
ENTRY_POINTS = {"hw_sim/__main__.py"}

# Packages that only some uses need, or that are slow to load: imported where they are used.
HEAVY = {
    "torch": "a second to load; files, hw_sim and the exporters do without",
    "onnx": "an extra",
    "onnxruntime": "an extra",
    "matplotlib": "half a second to load, for reports alone",
    "distributed": "an extra",
    "aedat": "an extra",
    "uv": "for the environments of other tools alone",
    "snntorch": "an extra",
    "resource": "Windows has none",
}
# Compiles when it is imported; nothing but the engine needs it.
COMPILERS, COMPILED = {"numba", "llvmlite"}, "hw_sim"
# Files that may import inside functions whatever takes time to load, our own modules included.
LAZY = {
    "stl_deploy/commands": "so that --help is quick",
    "stl_deploy/__init__.py": "so that `import stl_deploy` is quick",
    "stl_deploy/pytest_plugin.py": "pytest loads it at every start",
}
SLOW = {*HEAVY, *COMPILERS, "h5py", "nir", "numpy", "pydantic", "scipy", "jinja2"}

# Where type tests on our own kinds may stand, besides stl_deploy/ir: the tables by kind.
TABLES: dict[str, str] = {}
# Classes that are kinds without an attribute ``kind``, by file and by how their names end.
KINDS = {
    "stl_deploy/ir/floats.py": ("FloatLayer",),
    "hw_sim/plans.py": ("Plan",),
}
# Where type tests on nodes of NIR may stand.
NIR_ROOMS = {
    "stl_deploy/ir": "the float network is decoded here",
    "stl_deploy/importers": "reads graphs of any tool",
    "stl_deploy/formats": "reads and writes NIR files",
    "stl_deploy/lower/graph.py": "the one lowering: from the nodes of a graph",
    "stl_deploy/lower/flow.py": "the same",
    "stl_deploy/lower/nodes.py": "the same: a table of maps by node, and what is wrong with nodes",
    "stl_deploy/backends/consumers": "its rules are about nodes of any NIR file",
}

# Where numbers of the arithmetic may stand.
NUMBERS = {"stl_deploy/chips": "the arithmetic itself", "stl_deploy/ir/units.py": "their names"}
LITERALS = {4095: "FORGETS", 4096: "DECAY_ONE", 64: "UNIT"}
SHIFTS = {6: "FRACTION_BITS", 12: "DECAY_BITS"}

Sources = Mapping[str, str]


def product() -> dict[str, str]:
    """The sources of the product."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {
        str(path.relative_to(ROOT).as_posix()): path.read_text("utf-8")
        for path in paths
        if "templates" not in path.parts
    }


def within(path: str, places: Mapping[str, object] | set[str]) -> str | None:
    """The entry of ``places``, a file or folder, that ``path`` is or lies in."""
    for place in (path, *map(str, Path(path).parents)):
        if place in places:
            return place
    return None


class Import:
    """One module that a file imports: its name, and where."""

    def __init__(self, path: str, node: ast.stmt, target: str, function: bool, types: bool) -> None:
        self.path, self.line, self.target = path, node.lineno, target
        self.in_function, self.for_types = function, types

    @property
    def package(self) -> str:
        """The first part of its name."""
        return self.target.partition(".")[0]


class Code:
    """Parsed sources, and who imports whom."""

    def __init__(self, sources: Sources) -> None:
        self.trees = {path: ast.parse(text, path) for path, text in sources.items()}
        self.modules = {_module(path): path for path in sources}
        self.imports = {path: list(self._imports(path)) for path in sources}

    def file(self, target: str) -> str | None:
        """The file of a module of ours, None for others."""
        return self.modules.get(target)

    def _imports(self, path: str) -> Iterator[Import]:
        for node, function, types in _statements(self.trees[path]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(path, node, alias.name, function, types)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    target = whole if whole in self.modules else node.module
                    yield Import(path, node, target, function, types)

    @cached_property
    def loads(self) -> dict[str, frozenset[str]]:
        """The packages that importing each file of ours loads, by all that it imports in turn."""
        direct = {
            path: [i for i in found if not i.in_function and not i.for_types]
            for path, found in self.imports.items()
        }
        loaded: dict[str, frozenset[str]] = {}
        for path in self.trees:
            seen, waiting, packages = {path}, [path], set()
            while waiting:
                for one in direct[waiting.pop()]:
                    packages.add(one.package)
                    for target in self._with_parents(one.target):
                        if target not in seen:
                            seen.add(target)
                            waiting.append(target)
            loaded[path] = frozenset(packages)
        return loaded

    def _with_parents(self, target: str) -> Iterator[str]:
        """The file of a module, and those of the packages that it is in."""
        parts = target.split(".")
        for n in range(len(parts), 0, -1):
            if path := self.file(".".join(parts[:n])):
                yield path


def imports_at_the_top(sources: Sources) -> list[str]:
    """R1: inside functions only heavy packages, and in few places what loads them."""
    code, found = Code(sources), []
    for path, imports in code.imports.items():
        for one in imports:
            if not one.in_function or one.package in HEAVY:
                continue
            if one.package in COMPILERS and within(path, {COMPILED}):
                continue
            own = code.file(one.target)
            why = "is imported inside a function"
            if within(path, LAZY):
                if one.package in SLOW or (own and code.loads[own] & SLOW):
                    continue
                why += ", and is quick to load"
            found.append(f"{path}:{one.line}: R1 {one.target} {why}")
    return sorted(set(found), key=_place)


def no_higher_room(sources: Sources) -> list[str]:
    """R2: no import of a higher room, and no circle of modules or of rooms; types count too."""
    code, found = Code(sources), []
    modules: dict[tuple[str, str], list[str]] = defaultdict(list)
    rooms: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, imports in code.imports.items():
        here = within(path, ROOMS)
        if path in ENTRY_POINTS:
            continue
        if here is None:
            if path.count("/") or sources[path].strip():
                found.append(f"{path}:1: R2 is in no room")
            continue
        for one in imports:
            other = code.file(one.target)
            there = within(other, ROOMS) if other else None
            if other is None or there is None or other == path:
                continue
            at = f"{path}:{one.line}: R2"
            if ROOMS[there] > ROOMS[here]:
                found.append(f"{at} {here} imports the higher room {there} ({one.target})")
                continue
            modules[path, other].append(at)
            if here != there:
                rooms[here, there].append(at)
    for edges, what in ((modules, "modules"), (rooms, "rooms")):
        for circle in _circles(edges):
            for (a, b), places in edges.items():
                if a in circle and b in circle:
                    found += [f"{at} a circle of {what}: {a} imports {b}" for at in places]
    return sorted(set(found), key=_place)


def no_type_tests(sources: Sources) -> list[str]:
    """R3: no test for the type of our own kinds outside stl_deploy/ir and the tables."""
    code = Code(sources)
    kinds = {
        (path, node.name)
        for path, tree in code.trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and (_has_kind(node) or node.name.endswith(KINDS.get(path, ("\0",))))
    }
    unions = {}
    for path, tree in code.trees.items():
        names = _names(code, path)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Tuple):
                parts = [_resolve(part, names) for part in _parts(node.value)]
                if parts and all(part in kinds for part in parts):
                    unions |= {(path, t.id): True for t in node.targets if isinstance(t, ast.Name)}
    kinds |= set(unions)
    found = []
    for path, tree in code.trees.items():
        names = _names(code, path)
        for line, tested in _type_tests(tree):
            for part in _parts(tested):
                what = _resolve(part, names)
                if what in kinds and not within(path, {"stl_deploy/ir", *TABLES}):
                    found.append(f"{path}:{line}: R3 a type test on {what[1]} of {what[0]}")
                elif _is_node(what) and not within(path, {*NIR_ROOMS, *TABLES}):
                    found.append(
                        f"{path}:{line}: R3 a type test on the node {what[1]} of {what[0]}"
                    )
    return sorted(set(found), key=_place)


def no_numbers(sources: Sources) -> list[str]:
    """R4: the numbers of the arithmetic have names."""
    found = []
    for path, text in sources.items():
        if within(path, NUMBERS):
            continue
        tree = ast.parse(text, path)
        named = _named_powers(tree)
        for node in ast.walk(tree):
            what = None
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                if node.value in LITERALS:
                    what = f"{node.value} ({LITERALS[int(node.value)]})"
            elif isinstance(node, ast.BinOp | ast.AugAssign) and id(node) not in named:
                left = node.left if isinstance(node, ast.BinOp) else node.target
                right = node.right if isinstance(node, ast.BinOp) else node.value
                bits = _literal(right)
                shift = isinstance(node.op, ast.LShift | ast.RShift)
                power = isinstance(node.op, ast.Pow) and _literal(left) == 2
                if (shift or power) and bits in SHIFTS:
                    what = f"{ast.unparse(node)} ({SHIFTS[int(bits)]})"
            if what:
                found.append(f"{path}:{node.lineno}: R4 {what}")  # type: ignore[attr-defined]
    return sorted(set(found), key=_place)


def short_files(sources: Sources) -> list[str]:
    """No file above 600 lines."""
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    return [
        f"{path}:{MOST_LINES + 1}: {n} lines, {MOST_LINES} at most"
        for path, n in lengths.items()
        if n > MOST_LINES
    ]


def _place(line: str) -> tuple[str, int]:
    path, number, _ = line.split(":", 2)
    return path, int(number)


def _module(path: str) -> str:
    """The dotted name of a file of ours."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.startswith("stl_deploy") else f"stl_deploy.{name}"


def _statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool, bool]]:
    """Every statement, whether it is inside a function, and whether it is for type checkers alone."""

    def walk(node: ast.AST, function: bool, types: bool) -> Iterator[tuple[ast.stmt, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield child, function, types
            inside = function or isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            only = types or (
                isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            )
            yield from walk(child, inside, only)

    yield from walk(tree, False, False)


def _circles(edges: Mapping[tuple[str, str], object]) -> list[set[str]]:
    """The largest sets whose members all reach one another."""
    after: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        after[a].add(b)

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = after[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reached = {name: reach(name) for name in list(after)}
    circles: list[set[str]] = []
    for name, seen in reached.items():
        circle = {other for other in seen if name in reached.get(other, ())}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def _has_kind(node: ast.ClassDef) -> bool:
    """Whether a class says of itself what it is: ``kind = "..."``, with or without a type."""
    for statement in node.body:
        target = None
        if isinstance(statement, ast.AnnAssign):
            target, value = statement.target, statement.value
        elif isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Name) and target.id == "kind":
            return isinstance(value, ast.Constant) and isinstance(value.value, str)
    return False


Found = tuple[str, str]


def _names(code: Code, path: str) -> dict[str, Found]:
    """What the names of a file stand for: (file or package, name there); "" for a module itself."""
    names: dict[str, Found] = {}
    for node, _, _ in _statements(code.trees[path]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
                if whole in code.modules:
                    names[name] = (code.modules[whole], "")
                else:
                    names[name] = (code.modules.get(node.module, node.module), alias.name)
        elif isinstance(node, ast.ClassDef):
            names[node.name] = (path, node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id: (path, t.id) for t in node.targets if isinstance(t, ast.Name)}
    return names


def _resolve(node: ast.expr, names: Mapping[str, Found]) -> Found:
    """What an expression for a class stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id, ("", node.id))
    if isinstance(node, ast.Attribute):
        where, name = _resolve(node.value, names)
        return (where, node.attr) if not name else (where, f"{name}.{node.attr}")
    return ("", "")


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """The classes of a union or a tuple."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _parts(node.left)
        yield from _parts(node.right)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for element in node.elts:
            yield from _parts(element)
    else:
        yield node


def _type_tests(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """(line, the classes) of every isinstance, issubclass, class pattern and comparison of a type."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass") and len(node.args) == 2:
                yield node.lineno, node.args[1]
        elif isinstance(node, ast.MatchClass):
            yield node.lineno, node.cls
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(
                isinstance(side, ast.Call) and ast.unparse(side.func) == "type" for side in sides
            ):
                for side in sides:
                    if not isinstance(side, ast.Call):
                        yield node.lineno, side


def _is_node(found: Found) -> bool:
    """Whether it is a class of NIR's nodes; a graph is what everyone hands on."""
    where, name = found
    return where.partition(".")[0] == "nir" and name.rpartition(".")[2] != "NIRGraph"


def _named_powers(tree: ast.Module) -> set[int]:
    """Ids of the powers of two, ``1 << n``, that a constant in capitals gives a name."""
    found = set()
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id.lstrip("_").isupper() for t in targets):
            value = node.value  # type: ignore[attr-defined]
            found |= {
                id(part)
                for part in ast.walk(value)
                if isinstance(part, ast.BinOp)
                and isinstance(part.op, ast.LShift)
                and _literal(part.left) is not None
                and _literal(part.right) is not None
            }
    return found


def _literal(node: ast.expr) -> float | None:
    """The number that is written there."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    return None
