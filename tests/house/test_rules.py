"""The house rules that keep files small and faults visible. Each failure lists the offenders."""

import ast
import re

FILE_LINES, FUNCTION_LINES, CLASS_LINES, PARAMETERS = 400, 60, 250, 7
FEW, POSITIONAL = 3, 2  # a function with more than a few parameters takes all after the first two by keyword
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "manager"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "torch.load", "torch.save"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
MUTABLE = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
MUTABLE_TYPES = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter", "WeakKeyDictionary", "count"}
MUTATORS = {"append", "add", "extend", "insert", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear", "sort"}

# Calls whose order the field or another library has fixed.
FIXED_ORDER = {
    "actorllm/layers/attention.py forward",  # q, k, v, as everybody writes it
    "actorllm/tokenizer/template_worker.py to_json",  # the filter that templates call
}

def length(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1  # type: ignore[attr-defined]


def functions(source) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return source.nodes(ast.FunctionDef, ast.AsyncFunctionDef)


def positional_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [parameter.arg for parameter in (*node.args.posonlyargs, *node.args.args) if parameter.arg not in ("self", "cls")]


def test_sizes(sources_and_tests) -> None:
    offenders = []
    for source in sources_and_tests:
        num_lines = len(source.text.splitlines())
        offenders += [f"{source.name}: {num_lines} lines"] * (num_lines > FILE_LINES)
        offenders += [f"{source.name}:{node.lineno} {node.name}: {length(node)}" for node in functions(source) if length(node) > FUNCTION_LINES]
        offenders += [
            f"{source.name}:{node.lineno} {node.name}: {length(node)}" for node in source.nodes(ast.ClassDef) if length(node) > CLASS_LINES
        ]
    assert not offenders


def test_at_most_seven_parameters(sources) -> None:
    offenders = []
    for source in sources:
        for node in functions(source):
            count = len(positional_parameters(node)) + len(node.args.kwonlyargs)
            if count > PARAMETERS and not source.name.startswith("kernels/"):
                offenders.append(f"{source.name}:{node.lineno} {node.name}: {count} parameters")
    assert not offenders


def test_parameters_after_the_first_two_are_keywords(sources) -> None:
    found = {}
    for source in sources:
        for node in functions(source):
            positional = positional_parameters(node)
            is_many = len(positional) + len(node.args.kwonlyargs) > FEW and len(positional) > POSITIONAL
            if is_many and not source.name.startswith("kernels/"):
                found[f"{source.name} {node.name}"] = f"{source.name}:{node.lineno} {node.name}({', '.join(positional)})"
    assert not [text for name, text in found.items() if name not in FIXED_ORDER]
    assert not [name for name in FIXED_ORDER if name not in found], "keeps the rule now: take it off the list"


def test_names(sources_and_tests) -> None:
    assert not [source.name for source in sources_and_tests if source.path.stem.lower() in FORBIDDEN_NAMES]
    assert not [f"{source.name} {node.name}" for source in sources_and_tests for node in source.nodes(ast.ClassDef) if "Mixin" in node.name]


def module_values(source) -> list[tuple[str, ast.expr]]:
    """What a module assigns at its top level: (name, value)."""
    values = []
    for node in source.tree.body:
        if isinstance(node, ast.Assign):
            values += [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            values.append((ast.unparse(node.target), node.value))
    return values


def is_mutable(value: ast.expr) -> bool:
    is_built = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in MUTABLE_TYPES
    return is_built or isinstance(value, MUTABLE)


def changed_names(source) -> set[str]:
    """Names of which an item is assigned or deleted, which are added to, or on which a mutator is called."""
    names = set()
    for node in source.nodes(ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete, ast.Call):
        if isinstance(node, ast.Call):
            changed = [node.func.value] if isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS else []
        else:
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
            changed = [target.value for target in targets if isinstance(target, ast.Subscript)]
            changed += [node.target] if isinstance(node, ast.AugAssign) else []
        names |= {ast.unparse(each) for each in changed}
    return names


def test_no_global_state(sources) -> None:
    offenders = [f"{source.name}:{node.lineno} global" for source in sources for node in source.nodes(ast.Global)]
    for source in sources:
        changed = changed_names(source)
        for name, value in module_values(source):
            is_constant = (name.isupper() and name not in changed) or name == "__all__"
            is_counter = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "count"
            if is_mutable(value) and (is_counter or not is_constant):
                offenders.append(f"{source.name}:{value.lineno} {name}")
    assert not offenders


def test_broad_excepts_are_marked_boundaries(sources) -> None:
    offenders = []
    for source in sources:
        lines = source.text.splitlines()
        for node in source.nodes(ast.ExceptHandler):
            names = ast.unparse(node.type) if node.type else "everything"
            is_broad = re.search(r"\b(Exception|BaseException|everything)\b", names)
            reraises = bool(node.body) and isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if is_broad and not reraises and "# boundary:" not in lines[node.lineno - 1]:
                offenders.append(f"{source.name}:{node.lineno}")
        for node in source.nodes(ast.Call):
            swallows = ast.unparse(node.func).split(".")[-1] == "suppress" and {"Exception", "BaseException"} & set(map(ast.unparse, node.args))
            if swallows and "# boundary:" not in lines[node.lineno - 1]:
                offenders.append(f"{source.name}:{node.lineno} suppress")
    assert not offenders


def test_no_pickle_and_no_eval(sources) -> None:
    offenders = []
    for source in sources:
        for node in source.nodes(ast.Import, ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            offenders += [f"{source.name}:{node.lineno} {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        for node in source.nodes(ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                offenders.append(f"{source.name}:{node.lineno} {name}")
        if "trust_remote_code" in source.text:
            offenders.append(f"{source.name}: trust_remote_code")
    assert not offenders


def test_every_module_says_what_it_does(sources_and_tests) -> None:
    assert not [source.name for source in sources_and_tests if source.text.strip() and not ast.get_docstring(source.tree)]


def test_nothing_is_left_to_do(sources) -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert not [source.name for source in sources if pattern.search(source.text)]


def test_no_machine_paths(repository) -> None:
    pattern = re.compile(r"(/work/|/home/|/root/|/Users/)")
    files = [path for suffix in ("py", "md", "toml", "txt") for path in repository.rglob(f"*.{suffix}")]
    own = [path for path in files if not {".venv", ".git", "build", "dist"} & set(path.relative_to(repository).parts)]
    assert not [str(path) for path in own if path.name != "test_rules.py" and pattern.search(path.read_text())]


def test_the_sanitizers_run_every_test_of_compiled_kernels(repository):
    """But for those that compile on their own."""
    listed = re.search(r"^CPU_KERNEL_TESTS := .*test_,([^)]*)\)$", (repository / "Makefile").read_text(), re.MULTILINE)
    tests = {path.name for path in (repository / "tests/kernels").glob("test_*.py") if "needs a C++ compiler" in path.read_text()}
    tests -= {"test_native.py", "test_other_processors.py", "test_parallel_regions.py"}
    assert listed is not None and tests <= {f"test_{name}" for name in listed[1].split()}
