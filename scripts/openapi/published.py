"""Kubernetes' published paths, read out of PyPI's `kubernetes`: a client that its authors generate from the published OpenAPI."""
import ast
import re


def paths(client):
    """Of the client's unpacked wheel: {path: {method: {"query": {name: type}, "consumes", "produces", "body", "responses"}}}.
    Its code is read, not run."""
    found = {}
    for file in sorted((client / "kubernetes/client/api").glob("*_api.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_with_http_info"):
                add(found, node)
    return found


def add(found, function):
    code, about = ast.unparse(function), ast.get_docstring(function) or ""
    call = re.search(r"call_api\('([^']+)', '(\w+)'", code)
    if call is None:
        raise SystemExit(f"{function.name} calls nothing: the client is generated in another way than was known")
    types = dict(re.findall(r":type (\w+): (\w+)$", about, re.M))
    query = re.findall(r"query_params\.append\(\('(\w+)', local_var_params\['(\w+)'\]", code)
    responses = re.search(r"response_types_map = (\{.*?\})", code, re.S)
    body = types.get("body") if "body_params = local_var_params['body']" in code else None
    found.setdefault(call[1].rstrip("/"), {})[call[2].lower()] = {
        "query": {name: types[variable] for name, variable in query},
        "consumes": media_types(code, "content_type"),
        "produces": media_types(code, "accept"),
        "body": body,
        "responses": {str(code): kind for code, kind in ast.literal_eval(responses[1]).items()} if responses else {},
    }


def media_types(code, header):
    match = re.search(rf"select_header_{header}\((\[.*?\])", code, re.S)
    return ast.literal_eval(match[1]) if match else []
