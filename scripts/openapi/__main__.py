"""Holds what is said to and by a Kubernetes API server against the OpenAPI that Kubernetes publishes.

    scripts/openapi record --listen ADDRESS --server ADDRESS --authority FILE --key FILE RECORD
    scripts/openapi check [--node] RECORD
    scripts/openapi compare DEFINITION <JSON

`record` is a proxy for clients of the server, until it is killed; see record.py. `check` prints JSON: {"seen": {"client verb path": how
often}, "complaints": {complaint: how often}}; --node: the server was a node with its own API. `compare` spoils an
object in many ways and prints which of them python's jsonschema finds and this does not, see compare.py.

`scripts/install test` puts what Kubernetes publishes into <target>/tools: the schemas into helm/, the paths into openapi/ (by
`scripts/openapi paths FOLDER`, of the client of published.py).
"""
import argparse
import collections
import json
import os
import pathlib
import sys

import published

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).resolve().parents[2] / "target")
TOOLS = pathlib.Path(os.environ.get("BERTH_TOOLS") or TARGET / "tools")


def definitions():
    return json.loads((TOOLS / "helm/schemas/_definitions.json").read_text())["$defs"]


def check(path, of_node):
    import exchange
    import node
    import unpublished
    from check import Checker

    known = {**definitions(), **unpublished.DEFINITIONS, **node.DEFINITIONS}
    paths = node.PATHS if of_node else {**json.loads((TOOLS / "openapi/paths.json").read_text()), **unpublished.PATHS}
    checker = Checker(paths, known, stores=not of_node)
    seen, complaints = collections.Counter(), collections.Counter()
    with open(path) as lines:
        for one in exchange.read(lines):
            what, wrong = checker.check(one)
            seen[what] += 1
            complaints.update(f"{one}: {text}" for text in wrong)
    print(json.dumps({"seen": seen, "complaints": complaints}, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("compare").add_argument("definition")
    verbs.add_parser("paths").add_argument("folder", type=pathlib.Path)
    checking = verbs.add_parser("check")
    checking.add_argument("--node", action="store_true")
    checking.add_argument("record")
    recording = verbs.add_parser("record")
    for flag in ("--listen", "--server", "--authority", "--key"):
        recording.add_argument(flag, required=True)
    recording.add_argument("record")
    given = parser.parse_args()
    if given.verb == "paths":
        print(json.dumps(published.paths(given.folder)))
    elif given.verb == "compare":
        import compare

        print(json.dumps(compare.compare(definitions(), given.definition, json.load(sys.stdin))))
    elif given.verb == "check":
        check(given.record, given.node)
    else:
        import record

        record.main(given)


if __name__ == "__main__":
    main()
