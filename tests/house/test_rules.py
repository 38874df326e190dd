"""The house rules that keep files small and faults visible. Each failure lists the offenders."""

import ast
import re

FILE_LINES, FUNCTION_LINES, CLASS_LINES, PARAMETERS = 400, 60, 250, 7
POSITIONAL = 5
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "manager"}
FORBIDDEN_CALLS = {"eval", "exec", "compile"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def length(node: ast.AST) -> int:
    return (node.end_lineno or 0) - node.lineno + 1  # type: ignore[attr-defined]


def functions(source) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return source.nodes(ast.FunctionDef, ast.AsyncFunctionDef)


def test_sizes(sources) -> None:
    offenders = [f"{source.name}: {len(source.text.splitlines())} lines" for source in sources if len(source.text.splitlines()) > FILE_LINES]
    for source in sources:
        offenders += [f"{source.name}:{node.lineno} {node.name}: {length(node)}" for node in functions(source) if length(node) > FUNCTION_LINES]
        offenders += [
            f"{source.name}:{node.lineno} {node.name}: {length(node)}" for node in source.nodes(ast.ClassDef) if length(node) > CLASS_LINES
        ]
    assert not offenders


def test_parameters(sources) -> None:
    offenders = []
    for source in sources:
        if source.name.startswith("kernels/"):
            continue
        for node in functions(source):
            positional = [name for name in (*node.args.posonlyargs, *node.args.args) if name.arg not in ("self", "cls")]
            count = len(positional) + len(node.args.kwonlyargs)
            if count > PARAMETERS or len(positional) > POSITIONAL:
                offenders.append(f"{source.name}:{node.lineno} {node.name}: {count} parameters, {len(positional)} positional")
    assert not offenders


def test_file_names(sources) -> None:
    assert not [source.name for source in sources if source.path.stem.lower() in FORBIDDEN_NAMES]


def test_no_global_state(sources) -> None:
    offenders = [f"{source.name}:{node.lineno}" for source in sources for node in source.nodes(ast.Global)]
    for source in sources:
        for node in source.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            for target in targets:
                value = node.value  # type: ignore[union-attr]
                is_constant = isinstance(target, ast.Name) and (target.id.isupper() or target.id.startswith("__"))
                if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp) and not is_constant:
                    offenders.append(f"{source.name}:{node.lineno}")
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
    assert not offenders


def test_no_pickle_and_no_eval(sources) -> None:
    offenders = []
    for source in sources:
        for node in source.nodes(ast.Import, ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            offenders += [f"{source.name}:{node.lineno} {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        for node in source.nodes(ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name in ("torch.load", "torch.save"):
                offenders.append(f"{source.name}:{node.lineno} {name}")
        if "trust_remote_code" in source.text:
            offenders.append(f"{source.name}: trust_remote_code")
    assert not offenders


def test_every_module_says_what_it_does(sources) -> None:
    assert not [source.name for source in sources if source.text.strip() and not ast.get_docstring(source.tree)]


def test_nothing_is_left_to_do(sources) -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert not [source.name for source in sources if pattern.search(source.text)]


def test_no_machine_paths(repository) -> None:
    pattern = re.compile(r"(/work/|/home/|/root/|/Users/)")
    files = [path for suffix in ("py", "md", "toml", "txt") for path in repository.rglob(f"*.{suffix}")]
    own = [path for path in files if not {".venv", ".git", "build", "dist"} & set(path.relative_to(repository).parts)]
    assert not [str(path) for path in own if path.name != "test_rules.py" and pattern.search(path.read_text())]
