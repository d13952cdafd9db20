"""The house's structure, read from its imports and hints: `python test/test_structure.py [DIR]` prints the figures."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # from the ground up; an import points down, or to its own room
    {"errors", "calibration"},
    {"files"},
    {"arguments", "job", "about", "http"},
    {"detections", "images", "models"},
    {"system"},
    {"engine"},
    {"run"},
    {"evaluation", "report"},
    {"check", "predict", "serve", "view"},
    {"__main__", "__init__", "inference"},
    {"resources"},
    {"resources.data"},
    {"resources.train.kit"},
    {"resources.train", "resources.benchmark"},
)


def modules(root):
    """Path by dotted name, of the library, the entry point, and what is offline."""
    paths = [
        root / "inference.py",
        *sorted((root / "midog").rglob("*.py")),
        *sorted((root / "resources").rglob("*.py")),
    ]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def imports(root):
    """(importer, imported) pairs of modules, wherever in the file the import stands."""
    known, found = modules(root), set()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            else:
                continue
            for each in wanted:
                target = each if each in known else f"{each}.__init__"
                if target in known and target != name and not (target == "midog.__init__" and each == "midog"):
                    found.add((name, target))
    return found


def room(name):
    """A wing, or a module beside the wings; of resources the folder."""
    parts = name.split(".")
    if parts[0] == "resources":
        return ".".join(parts[:-1])
    return parts[1] if len(parts) > 1 else parts[0]


def without_hints(root):
    """As "path:line name" the functions that lack a hint for an argument or for what they return."""
    found = []
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                taken = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
                bare = [each.arg for each in taken if not each.annotation and each.arg not in ("self", "cls")]
                if bare or not node.returns:
                    found.append(f"{path.relative_to(root)}:{node.lineno} {node.name}")
    return found


def circles(arrows):
    """The imports that lie on a circle: of two modules that reach each other."""
    reached = {}
    for start in {importer for importer, _ in arrows}:
        seen, rest = set(), [start]
        while rest:
            here = rest.pop()
            new = {imported for importer, imported in arrows if importer == here} - seen
            seen |= new
            rest += new
        reached[start] = seen
    return {(importer, imported) for importer, imported in arrows if importer in reached.get(imported, ())}


def upward(arrows):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    pairs = {(room(importer), room(imported)) for importer, imported in arrows}
    return {
        (importer, imported)
        for importer, imported in pairs
        if importer != imported and floor[importer] <= floor[imported]
    }


def test_imports_point_down_and_in_no_circle():
    arrows = imports(ROOT)
    assert len(arrows) > 50  # the reading works
    assert {room(name) for name in modules(ROOT)} <= set().union(*FLOORS)
    assert circles(arrows) == set()
    assert upward(arrows) == set()


def test_the_reading_sees_a_circle_and_an_upward_import():
    circle = {("a", "b"), ("b", "c"), ("c", "a")}
    assert circles(circle | {("d", "a"), ("c", "e")}) == circle
    assert not circles({("a", "b"), ("b", "c"), ("d", "a")})
    assert upward({("midog.system", "midog.run")}) == {("system", "run")}
    assert not upward({("midog.run", "midog.system"), ("midog.images.tiff", "midog.images.level")})
    script, kit, data = "resources.train.mine", "resources.train.kit.loop", "resources.data.fields"
    assert not upward({(script, kit), (kit, data), (script, data), (data, "midog.job"), ("resources.train.a", script)})
    kit_up, beside = ("resources.train.kit", "resources.train"), ("resources.train", "resources.benchmark")
    assert upward({(kit, script)}) == {kit_up}
    assert upward({(script, "resources.benchmark.job")}) == {beside}
    assert upward({("resources.benchmark.job", script)}) == {beside[::-1]}
    assert upward({("midog.predict", data)}) == {("predict", "resources.data")}


def test_every_function_says_what_it_takes_and_returns(tmp_path):
    assert without_hints(ROOT) == []
    (tmp_path / "inference.py").write_text(
        "class A:\n    def fine(self, x: int) -> int: ...\n    def a(self, x) -> int: ...\ndef b(*, y: int): ...\n"
    )
    assert sorted(without_hints(tmp_path)) == ["inference.py:3 a", "inference.py:4 b"]


def test_networks_know_nothing_of_the_project_and_the_library_nothing_of_the_trainings():
    assert {room(imported) for importer, imported in imports(ROOT) if room(importer) == "models"} <= {"models"}
    for path in [path for name, path in modules(ROOT).items() if not name.startswith("resources")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "resources" for name in names), path


def test_a_report_needs_no_torch_at_its_start():
    for path in (ROOT / "midog/report").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "torchvision", "timm"}, path


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    arrows, rooms = imports(root), {room(name) for name in modules(root)}
    for part in ("midog", "resources"):
        known = [name for name in modules(root) if name.startswith("resources") == (part == "resources")]
        mine = {(a, b) for a, b in arrows if a in known}
        between = {(room(a), room(b)) for a, b in mine if room(a) != room(b)}
        print(f"{part}: modules {len(known)}, their imports {len(mine)}, in circles {len(circles(mine))}")
        print(f"{part}: rooms {len({room(name) for name in known})}, imports between rooms {len(between)}")
    print(f"in circles {len(circles(arrows))}")
    if rooms <= set().union(*FLOORS):
        print(f"upward {len(upward(arrows))}")
    print(f"functions without hints {len(without_hints(root))}")
    for part in ("midog", "resources", "test"):
        lines = sum(len(path.read_text().splitlines()) for path in (root / part).rglob("*.py"))
        print(f"lines of {part}: {lines}")
