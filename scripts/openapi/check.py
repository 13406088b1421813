"""Whether what clients and a server have said to each other is Kubernetes'."""
import json
import re
import uuid

import defaults
import discovery
import rules
import unpublished
from schemas import FULL, MERGE, META, STRATEGIC, Schemas

JSON = "application/json"
OBJECTS = {JSON, "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"}
PATCHES = {"application/merge-patch+json": MERGE, "application/strategic-merge-patch+json": STRATEGIC, "application/apply-patch+yaml": MERGE}
UPGRADES = {"attach", "exec", "portForward", "portforward"}
# What has the type of another object in the published OpenAPI, but is answered with a Status.
ANSWERED_WITH_STATUS = ("/binding", "/eviction")
EVENTS = {"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"}
INITIAL_END = "k8s.io/initial-events-end"


def media_type(header):
    return header.partition(";")[0].strip().lower()


class Template:
    """A path of the OpenAPI."""

    def __init__(self, path, operations):
        self.path, self.operations = path, operations
        words = [re.escape(word) for word in path.split("/")]
        named = [re.sub(r"\\\{(\w+)\\\}", lambda match: f"(?P<{match[1]}>{'.+' if match[1] == 'path' else '[^/]+'})", word) for word in words]
        self.pattern = re.compile("/".join(named))
        # Words rank before placeholders.
        self.rank = [word.startswith("{") for word in path.split("/")]
        parts = path.split("/")
        self.group = parts[2] if parts[1] == "apis" and len(parts) > 2 else ""
        self.group_version = tuple(parts[2:4]) if parts[1] == "apis" else ("", "v1")
        # A node's own API has the word first.
        self.upgrades = bool(UPGRADES & {parts[-1], parts[1]})

    def verb(self, exchange):
        """As an authorizer calls it: k8s.io/apiserver, pkg/endpoints/request/requestinfo.go."""
        if self.upgrades:
            return "connect"
        verb = {"get": "get", "post": "create", "put": "update", "patch": "patch", "delete": "delete"}.get(exchange.method.lower(), "?")
        if verb == "get" and self.is_list():
            return "watch" if exchange.flag("watch") else "list"
        return "deletecollection" if verb == "delete" and self.is_list() else verb

    def is_list(self):
        kind = self.operations.get("get", {}).get("responses", {}).get("200") or ""
        return kind.endswith("List") and not kind.startswith(("V1API", "APIGroup"))


class Checker:
    """Of an API server with these paths; or of a node's own API, which keeps no objects."""

    def __init__(self, paths, definitions, stores=True):
        self.schemas, self.stores = Schemas(definitions), stores
        templates = [Template(path, operations) for path, operations in paths.items()]
        self.templates = sorted(templates, key=lambda template: template.rank)
        self.paths = {template.path: template for template in templates}

    def find(self, path):
        for template in self.templates:
            match = template.pattern.fullmatch(path)
            if match:
                return template, match.groupdict()
        return None, {}

    def check(self, exchange):
        """What was done, as `client verb path`, and what is wrong with it."""
        template, names = self.find(exchange.path)
        if template is None:
            return f"{exchange.client()} ? {exchange.path}", ["Kubernetes has no such path"]
        one = One(self, exchange, template, names)
        seen = f"{exchange.client()} {one.verb} {template.path}"
        if one.operation is None:
            return seen, ["Kubernetes has no such method there"]
        wrong = [f"request: {text}" for text in one.request()]
        return seen, wrong + [f"answer: {text}" for text in one.answer()]


class One:
    """One exchange, with the operation that it is of."""

    def __init__(self, checker, exchange, template, names):
        self.checker, self.schemas = checker, checker.schemas
        self.exchange, self.template, self.names = exchange, template, names
        self.operation = template.operations.get(exchange.method.lower())
        self.verb = template.verb(exchange)
        self.media = media_type(exchange.asked.get("content-type", ""))

    def definition(self, name):
        return name if name in self.schemas.definitions else self.schemas.of_client(name, self.template.group)

    # ---- the request ----

    def request(self):
        yield from self.parameters()
        if self.verb in ("list", "watch", "deletecollection"):
            yield from rules.listing(self.exchange)
        accepted = [media_type(one) for one in self.exchange.asked.get("accept", "*/*").split(",")]
        produced = set(self.operation["produces"]) | {"*/*", "application/*"}
        if "*/*" not in self.operation["produces"] and not produced & set(accepted):
            yield f"none of {accepted} is served here"
        if self.verb == "patch":
            yield from self.patch()
        elif self.operation["body"] and self.exchange.body.strip():
            yield from self.object_sent()
        elif self.operation["body"] and self.verb != "delete" and self.verb != "deletecollection":
            yield "the body is missing"

    def parameters(self):
        for name, value in self.exchange.query:
            kind = self.operation["query"].get(name)
            words = rules.WORDS.get(name) or unpublished.QUERY.get(name)
            if kind is None and name not in unpublished.QUERY:
                yield f"unknown parameter {name}={value}"
            elif kind == "bool" and value.lower() not in ("true", "false", "1", "0"):
                yield f"parameter {name}={value}: neither true nor false"
            elif kind == "int" and not re.fullmatch(r"-?\d+", value):
                yield f"parameter {name}={value}: no number"
            elif words and value not in words:
                yield f"parameter {name}={value}: none of {sorted(words)}"

    def patch(self):
        yield from rules.patch(self.exchange, self.media)
        if self.media not in self.operation["consumes"]:
            yield f"{self.media or 'a body without a type'} is no patch"
            return
        value, wrong = parsed(self.exchange.body)
        if wrong:
            yield wrong
        elif self.media == "application/json-patch+json":
            yield from rules.operations(value)
        elif self.media in PATCHES:
            yield from self.schemas.check(self.definition(self.operation["responses"]["200"]), value, PATCHES[self.media])

    def object_sent(self):
        if self.media not in OBJECTS:
            yield f"a body of the type {self.media!r}"
        # Protobuf is what kubectl sends now and then, of types that it has from Kubernetes itself.
        if self.media != JSON:
            return
        value, wrong = parsed(self.exchange.body)
        if wrong:
            yield wrong
            return
        name = self.definition(self.operation["body"])
        yield from self.schemas.check(name, value)
        yield from rules.written(self.verb, value, name.rpartition(".")[2])
        metadata = value.get("metadata") or {}
        for field in ("name", "namespace"):
            if metadata.get(field) not in (None, "", self.names.get(field)) and field in self.names:
                yield f"metadata.{field}: {metadata[field]!r} is not the path's"

    # ---- the answer ----

    def answer(self):
        exchange, code = self.exchange, self.exchange.status
        if code == 0 or (code == 101 and self.verb == "connect"):
            return
        media = media_type(exchange.answered.get("content-type", ""))
        if code >= 400:
            yield from self.failure(code, media)
            return
        if str(code) not in self.operation["responses"] or (self.verb == "create" and code != 201):
            yield f"the code {code}"
        produced = self.operation["produces"]
        if media not in produced and "*/*" not in produced:
            yield f"the type {media!r}"
        if self.operation["responses"].get(str(code)) == "str":
            return
        if self.verb == "watch":
            yield from self.stream()
            return
        if not exchange.ended:
            return
        value, wrong = parsed(exchange.data)
        if wrong:
            yield wrong
        else:
            yield from self.result(value)

    def failure(self, code, media):
        # Health tells in text what is ill, and a node's own API whatever is wrong.
        if media == "text/plain" and (not self.checker.stores or not self.template.path.startswith("/api")):
            return
        value, wrong = parsed(self.exchange.data)
        if wrong:
            yield f"{wrong} with code {code}"
            return
        yield from self.alone(META + "Status", value)
        yield from rules.status(code, value)

    def alone(self, name, value, at="", mode=FULL):
        """A value of this definition that says what it is."""
        schema = self.schemas.definitions[name]
        # The core group's resources are told without a version, see any server's /api/v1.
        if name == META + "APIResourceList" and value.get("groupVersion") == "v1":
            value = {"apiVersion": "v1", **value}
        kinds = [(k["group"], k["version"], k["kind"]) for k in schema.get("x-kubernetes-group-version-kind", [])]
        group, _, version = str(value.get("apiVersion", "")).rpartition("/")
        if kinds and (group, version, value.get("kind")) not in kinds:
            yield f"{at}: is {value.get('kind')} of {value.get('apiVersion')!r}, not {name.rpartition('.')[2]}"
            return
        yield from self.schemas.check(name, value, mode, at)

    def result(self, value):
        """An answer that is good and whole."""
        if not isinstance(value, dict):
            yield "no object"
            return
        name = self.definition(self.operation["responses"]["200"])
        if "as=Table" in self.exchange.asked.get("accept", "") and value.get("kind") == "Table":
            yield from self.table(value, "", True)
        elif value.get("kind") == "Status" and (self.verb in ("delete", "deletecollection") or self.template.path.endswith(ANSWERED_WITH_STATUS)):
            yield from self.success(value, name)
        elif value.get("kind") == "APIGroupDiscoveryList":
            version = str(value.get("apiVersion")).rpartition("/")[2]
            yield from self.alone(f"io.k8s.api.apidiscovery.{version}.APIGroupDiscoveryList", value)
            yield from discovery.discovered(self.checker.paths, value)
        elif self.verb == "delete":
            yield from self.deleted(value, name)
        else:
            yield from self.alone(name, value)
            if name.endswith("List") and self.verb == "list":
                yield from self.items(value)
            elif self.is_stored():
                yield from self.stored(value, "")
            if name == META + "APIResourceList":
                yield from discovery.offered(self.checker.paths, value)

    def success(self, value, name):
        yield from self.alone(META + "Status", value)
        if value.get("status") != "Success":
            yield f"status: {value.get('status')!r} with code {self.exchange.status}"
        if self.verb == "delete" and name != META + "Status":
            yield f"a Status, not the {name.rpartition('.')[2]} that was deleted"

    def deleted(self, value, name):
        """What is not gone yet is told as it is, whatever its kind."""
        if name == META + "Status":
            name = self.definition(self.template.operations["get"]["responses"]["200"])
            if not self.names.get("name") or not (value.get("metadata") or {}).get("deletionTimestamp"):
                yield "an object that is not being deleted, not a Status"
        yield from self.alone(name, value)
        yield from self.stored(value, "")

    def is_stored(self):
        """Whether the path is of an object that can be read again."""
        if not self.checker.stores:
            return False
        whole = re.match(r".*/\{name\}", self.template.path)
        at = self.checker.paths.get(whole[0] if whole else f"{self.template.path}/{{name}}")
        answer = self.operation["responses"]["200"]
        return at is not None and at.operations.get("get", {}).get("responses", {}).get("200") == answer and "metrics.k8s.io" not in answer

    def stored(self, value, at):
        """k8s.io/apiserver, pkg/registry/rest/{create,meta}.go: what every object has that the server keeps."""
        metadata = value.get("metadata") or {}
        if self.verb == "create" and self.exchange.parameter("dryRun"):
            return
        for field in ("name", "uid", "resourceVersion", "creationTimestamp"):
            if not metadata.get(field):
                yield f"{at}metadata.{field}: missing"
        for field in ("name", "namespace"):
            if field in self.names and metadata.get(field) != self.names[field]:
                yield f"{at}metadata.{field}: {metadata.get(field)!r} is not the path's"
        try:
            uuid.UUID(metadata.get("uid", ""))
        except ValueError:
            yield f"{at}metadata.uid: {metadata.get('uid')!r} is no UUID"
        if not re.fullmatch(r"[1-9]\d*", metadata.get("resourceVersion", "1")):
            yield f"{at}metadata.resourceVersion: {metadata.get('resourceVersion')!r} is no number"
        if metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds") is None:
            yield f"{at}metadata.deletionGracePeriodSeconds: missing beside deletionTimestamp"
        yield from (f"{at}{text}" for text in defaults.missing(value.get("kind"), value))

    def items(self, value):
        if not self.is_stored_list():
            return
        if not (value.get("metadata") or {}).get("resourceVersion"):
            yield "metadata.resourceVersion: missing"
        for n, item in enumerate(value.get("items") or []):
            yield from self.stored(item, f"items[{n}].")

    def is_stored_list(self):
        return self.checker.stores and "metrics.k8s.io" not in self.template.path

    def table(self, value, at, first):
        """A list, an object or an event as a table."""
        yield from self.alone(META + "Table", value, at)
        columns, kind = value.get("columnDefinitions") or [], self.exchange.parameter("includeObject") or "Metadata"
        if not (value.get("metadata") or {}).get("resourceVersion"):
            yield f"{at}metadata.resourceVersion: missing"
        if first and not columns:
            yield f"{at}columnDefinitions: missing"
        for n, row in enumerate(value.get("rows") or []):
            if columns and len(row.get("cells", [])) != len(columns):
                yield f"{at}rows[{n}]: {len(row.get('cells', []))} cells in {len(columns)} columns"
            inside = row.get("object") or {}
            name = META + "PartialObjectMetadata" if kind == "Metadata" else self.kind_here()
            if kind == "None" or name is None:
                continue
            yield from self.alone(name, inside, f"{at}rows[{n}].object")
            yield from self.stored(inside, f"{at}rows[{n}].object.") if self.is_stored_list() else ()

    def kind_here(self):
        """The definition of the objects of the path."""
        name = self.definition(self.operation["responses"]["200"])
        return name.removesuffix("List") if name.removesuffix("List") in self.schemas.definitions else None

    # ---- watches ----

    def stream(self):
        lines = self.exchange.data.split(b"\n")
        # The last one ends with the connection, wherever that is.
        last, newest, initial = lines.pop(), 0, self.exchange.flag("sendInitialEvents")
        if last and self.exchange.ended:
            yield f"the watch ends within a line: {last[:80]!r}"
        # What there was before may come in any order.
        before = initial or self.exchange.parameter("resourceVersion") in ("", "0")
        ends = 0
        for n, line in enumerate(lines):
            value, wrong = parsed(line)
            if wrong:
                yield f"event {n}: {wrong}"
                continue
            kind, version = value.get("type"), version_of(value)
            yield from self.event(value, f"event {n} {kind} ", n)
            ends += is_initial_end(value)
            before = before and kind == "ADDED"
            if version < newest and not before and kind != "ERROR":
                yield f"event {n} {kind}: version {version} after {newest}"
            newest = max(newest, version)
        if ends > int(initial):
            yield f"{ends} bookmarks tell of the end of the initial events"
        if lines and initial and self.exchange.ended and not ends and b'"ERROR"' not in lines[-1]:
            yield "no bookmark tells of the end of the initial events"

    def event(self, value, at, n):
        yield from self.schemas.check(META + "WatchEvent", value, FULL, at.strip())
        kind, inside = value.get("type"), value.get("object") or {}
        if set(value) - {"type", "object"} or kind not in EVENTS:
            yield f"{at}: no event"
        elif kind == "ERROR":
            yield from self.alone(META + "Status", inside, at)
            yield from rules.status(inside.get("code"), inside)
        elif inside.get("kind") == "Table" and "as=Table" in self.exchange.asked.get("accept", ""):
            if kind != "BOOKMARK":
                yield from self.table(inside, at, n == 0)
        elif kind == "BOOKMARK":
            yield from self.bookmark(inside, at)
        else:
            yield from self.alone(self.kind_here(), inside, at)
            yield from self.stored(inside, at)

    def bookmark(self, value, at):
        if not self.exchange.flag("allowWatchBookmarks"):
            yield f"{at}: nobody has asked for bookmarks"
        # Nothing of an object but its version.
        yield from self.alone(self.kind_here(), value, at, MERGE)
        if not (value.get("metadata") or {}).get("resourceVersion"):
            yield f"{at}metadata.resourceVersion: missing"


def parsed(data):
    """The value of JSON text, or what is wrong with it."""
    try:
        return json.loads(data), None
    except ValueError as error:
        return None, f"no JSON: {error}: {data[:80]!r}"


def version_of(event):
    try:
        return int(((event.get("object") or {}).get("metadata") or {}).get("resourceVersion") or 0)
    except ValueError:
        return 0


def is_initial_end(event):
    """k8s.io/apimachinery, pkg/apis/meta/v1/types.go, InitialEventsAnnotationKey."""
    inside = event.get("object") or {}
    places = [inside, *((row or {}).get("object") or {} for row in inside.get("rows") or [])]
    marks = [((place.get("metadata") or {}).get("annotations") or {}).get(INITIAL_END) for place in places]
    return event.get("type") == "BOOKMARK" and "true" in marks
